"""The options: one clear error each, at construction."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest

from cm_auth_middleware import (
    AuthEngine,
    CMAuthConfig,
    CMAuthMiddleware,
    CMAuthOptions,
    ConfigError,
)
from tests.helpers.apps import make_app
from tests.helpers.world import SECRET_KEY

GOOD = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
NO_LOGOS = [
    "", "/", "logo.svg", "//cdn.example/logo.svg", "/a//b.svg", "/../logo.svg", "/a b.svg",
    "https://cdn.example/logo.svg", '/a"onerror=x', "javascript:alert(1)", "data:image/png,x",
    "data:text/html;base64,PGI+", "data:image/svg+xml,<svg/>", "data:image/png;base64,",
    "data:image/png;base64,iVBORw=", "data:image/png;base64," + "A" * 65_536,
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_id": ""}, "client_id is missing: .*CM_AUTH_CLIENT_ID"),
        ({"client_secret": None}, "client_secret is missing"),
        ({"secret_key": ""}, "secret_key is missing"),
        ({"secret_key": "short"}, "secret_key is too weak"),
        ({"secret_key": "a" * 40}, "secret_key is too weak"),
        ({"secret_key": [SECRET_KEY, "short"]}, "secret_key is too weak"),
        ({"client_secret": SECRET_KEY}, "secret_key equals client_secret"),
        ({"store": "mongodb://x"}, "store has an unknown scheme"),
        (
            {"base_url": "rest.cameramanager.com"},
            "base_url needs a scheme and a host: https://rest.cameramanager.com for example$",
        ),
        (
            {"provider": "eagleeye", "base_url": "auth.eagleeyenetworks.com"},
            "base_url needs a scheme and a host: https://auth.eagleeyenetworks.com for example$",
        ),
        ({"base_url": "https://user:pw@host"}, "base_url is scheme, host and port"),
        ({"base_url": "https://host:x"}, "base_url is not a URL"),
        ({"redirect_uri": "/auth/callback"}, "redirect_uri is not absolute"),
        ({"redirect_uri": "https://host/elsewhere"}, "redirect_uri has to end in /auth/callback"),
        ({"redirect_uri": "https://host/auth/callback#x"}, "redirect_uri has a fragment"),
        (
            {"scope": "vms.all"},
            "scope has to be 'read' or 'write' for provider 'cameramanager'$",
        ),
        (
            {"provider": "eagleeye", "scope": "write"},
            r"scope has to be 'vms\.all' for provider 'eagleeye'$",
        ),
        ({"prefix": "auth/"}, "prefix is a path"),
        ({"exempt": ["/ok", "health"]}, "exempt has no path in place 2"),
        ({"exempt": ["/a*b/*"]}, "exempt has no path"),
        ({"timeout": "soon"}, "timeout is a number of seconds"),
        ({"idle_timeout": -1}, "idle_timeout has to be a positive"),
        ({"cookie_name": "a b"}, "cookie_name is a token"),
        ({"cookie_name": "__Host-x", "cookie_secure": False}, "needs a secure cookie"),
        ({"cookie_name": "__secure-x", "cookie_secure": False}, "needs a secure cookie"),
        ({"colour": "blue"}, "unknown option colour; the options are"),
        (
            {"idle_timout": 5, "colour": "blue"},
            r"unknown option colour, idle_timout \(did you mean idle_timeout\?\); the options are",
        ),
        ({"store": object()}, "store is a URL or an object"),
        ({"client_secret": "…"}, "client_secret has characters that no API key has"),
        ({"allow": "anna"}, "allow is a function"),
        ({"on_login": 3}, "on_login is a function"),
        ({"cookie_secure": "false"}, "cookie_secure is True, False or None"),
        ({"allowed_hosts": ["*"]}, "allowed_hosts has no host name in place 1: give names alone"),
        ({"allowed_hosts": ["app.example:8000"]}, "give names alone"),
        ({"allowed_hosts": ["https://app.example"]}, "give names alone"),
        (
            {"trusted_origins": ["https://a.example", "*"]},
            "trusted_origins has no origin in place 2",
        ),
        ({"trusted_origins": "https://*.example"}, "trusted_origins has no origin in place 1"),
        ({"trusted_origins": "https://a.example/path"}, "without a path"),
        ({"trusted_origins": "a.example"}, "trusted_origins has no origin"),
        ({"trusted_origins": "null"}, "trusted_origins has no origin"),
        ({"trusted_origins": "https://a.example:99999"}, "trusted_origins has no origin"),
        ({"trusted_origins": "http://[::1::]"}, "trusted_origins has no origin"),
        ({"trusted_origins": None}, "trusted_origins is a string or several"),
        ({"redirect_uri": "https://me:x@host/auth/callback"}, "redirect_uri has a user or an @"),
        ({"base_url": "https://me:12/34@host"}, "base_url is scheme, host and port"),
        ({"allowed_hosts": None}, "allowed_hosts is a string or several"),
        ({"prefix": None}, "prefix is a string"),
        ({"redirect_uri": 7}, "redirect_uri is a string"),
        ({"secret_key": 12345}, "secret_key is a string or several"),
        ({"redirect_uri": " https://host/auth/callback"}, "redirect_uri has a space"),
        (
            {"redirect_uri": "https://host/auth/callback\n"},
            "redirect_uri has a space or a line end",
        ),
        ({"base_url": "https://host\n"}, "base_url has a space or a line end"),
        ({"auto_login": "no"}, "auto_login is True or False"),
        ({"cross_site_check": "true"}, "cross_site_check is True or False"),
        ({"exempt": ["/ok", "/feed?action=rss"]}, "exempt has more than a path in place 2"),
        ({"exempt": "/caf%C3%A9/*"}, "decoded and without a query: /café"),
        ({"exempt": "/#/public"}, "exempt has more than a path"),
        ({"exempt": "/health "}, "exempt has more than a path"),
        *(
            ({"app_name": name}, "app_name is a line of text")
            for name in ("", " ", 7, "two\nlines", "a" * 101)
        ),
        ({"app_logo": 7}, "app_logo is a string"),
        *(({"app_logo": logo}, "app_logo is a path of the application") for logo in NO_LOGOS),
    ],
)
def test_a_wrong_option_is_one_clear_sentence(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CMAuthMiddleware(make_app(), **{**GOOD, **options})


def test_http_outside_loopback_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="base_url is http:// outside loopback"):
        CMAuthMiddleware(make_app(), **GOOD, base_url="http://cm.example")
    with pytest.warns(UserWarning, match="redirect_uri is http:// outside loopback"):
        CMAuthMiddleware(make_app(), **GOOD, redirect_uri="http://app.example/auth/callback")
    with pytest.warns(UserWarning, match="trusted_origins has an http:// origin"):
        CMAuthMiddleware(make_app(), **GOOD, trusted_origins="http://app.example")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CMAuthMiddleware(make_app(), **GOOD, base_url="http://127.0.0.1:9400")


HTTP_HERE = "http://localhost/auth/callback"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cookie_name": "__Host-x", "redirect_uri": HTTP_HERE}, "cookie_name needs https"),
        ({"cookie_name": "__host-x", "redirect_uri": HTTP_HERE}, "cookie_name needs https"),
        ({"cookie_name": "__Secure-x", "redirect_uri": HTTP_HERE}, "cookie_name needs https"),
        ({"cookie_name": "__Secure-x"}, "a neighbouring host may set a cookie of this name"),
    ],
)
def test_a_cookie_name_that_does_not_keep_its_promise_is_a_warning(options, message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        CMAuthMiddleware(make_app(), **GOOD, **options)


def test_other_cookie_names_are_no_reason_to_warn() -> None:
    for options in (
        {"cookie_name": "mine"},
        {"cookie_name": "mine", "redirect_uri": HTTP_HERE},
        {"cookie_name": "__Host-x"},
        {"cookie_name": "__Host-x", "redirect_uri": HTTP_HERE, "cookie_secure": True},
    ):
        CMAuthMiddleware(make_app(), **GOOD, **options)  # a warning is an error in these tests


def test_options_come_from_the_environment_and_keywords_override(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_CLIENT_ID", "from-env")
    monkeypatch.setenv("CM_AUTH_CLIENT_SECRET", "secret")
    monkeypatch.setenv("CM_AUTH_SECRET_KEY", f"{SECRET_KEY}old,{SECRET_KEY}new")
    monkeypatch.setenv("CM_AUTH_EXEMPT", "/health, /static/*")
    monkeypatch.setenv("CM_AUTH_COOKIE_SECURE", "true")
    monkeypatch.setenv("CM_AUTH_TIMEOUT", "2.5")
    config = CMAuthConfig.from_env()
    assert config.client_id == "from-env"
    assert config.secret_key == (f"{SECRET_KEY}old", f"{SECRET_KEY}new")
    assert config.exempt == ("/health", "/static/*")
    assert config.cookie_secure is True
    assert config.timeout == 2.5
    assert CMAuthMiddleware(make_app()).engine.config.client_id == "from-env"
    engine = CMAuthMiddleware(make_app(), config=config, client_id="keyword").engine
    assert engine.config.client_id == "keyword"
    assert engine.config.timeout == 2.5
    monkeypatch.setenv("CM_AUTH_COOKIE_SECURE", "perhaps")
    with pytest.raises(ConfigError, match="CM_AUTH_COOKIE_SECURE is true or false"):
        CMAuthConfig.from_env()


def test_all_missing_options_are_named_at_once(monkeypatch) -> None:
    for name in GOOD:
        monkeypatch.delenv(f"CM_AUTH_{name.upper()}", raising=False)
    with pytest.raises(ConfigError) as caught:
        CMAuthMiddleware(make_app())
    assert str(caught.value) == (
        "client_id, client_secret and secret_key are missing: give them as keywords or in "
        "CM_AUTH_CLIENT_ID, CM_AUTH_CLIENT_SECRET and CM_AUTH_SECRET_KEY"
    )
    with pytest.raises(ConfigError, match=r"^client_id and secret_key are missing: "):
        CMAuthMiddleware(make_app(), client_secret="secret")


# -- options in files ------------------------------------------------------------------------


@pytest.fixture
def in_file(monkeypatch, tmp_path):
    """Put an option into a file that a variable names, as Docker, systemd and others do."""
    for name in ("CLIENT_ID", "CLIENT_SECRET", "SECRET_KEY", "STORE", "COOKIE_SECURE"):
        monkeypatch.delenv(f"CM_AUTH_{name}", raising=False)

    def put(option: str, content: bytes) -> None:
        path = tmp_path / option
        path.write_bytes(content)
        monkeypatch.setenv(f"CM_AUTH_{option.upper()}_FILE", str(path))

    return put


def test_options_come_from_files_that_variables_name(in_file) -> None:
    in_file("client_id", b"from-file\r\n")
    in_file("client_secret", b"\xef\xbb\xbfsecret\n")
    in_file("secret_key", f"{SECRET_KEY}old\n{SECRET_KEY}new\n".encode())
    in_file("cookie_secure", b"true")
    config = CMAuthConfig.from_env()
    assert (config.client_id, config.client_secret) == ("from-file", "secret")
    assert config.secret_key == (f"{SECRET_KEY}old", f"{SECRET_KEY}new")
    assert config.cookie_secure is True
    assert CMAuthConfig.from_env(client_id="keyword").client_id == "keyword"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "client_secret is missing"),
        (b"\xff\xfe", "^CM_AUTH_CLIENT_SECRET_FILE names a file that is not text$"),
        (b"x" * 70_000, "^CM_AUTH_CLIENT_SECRET_FILE names a file that is too large"),
        (b"two\nlines", "client_secret has characters that no API key has"),
    ],
)
def test_a_file_that_holds_no_option_is_one_clear_sentence(in_file, content, message) -> None:
    in_file("client_secret", content)
    with pytest.raises(ConfigError, match=message):
        CMAuthConfig.from_env(client_id="id", secret_key=SECRET_KEY)


def test_a_file_that_cannot_be_read_is_named_by_its_variable_alone(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_SECRET_KEY_FILE", "hunter2")  # the secret, in place of its file
    monkeypatch.delenv("CM_AUTH_SECRET_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        CMAuthConfig.from_env(client_id="id", client_secret="secret")
    assert str(caught.value) == (
        "CM_AUTH_SECRET_KEY_FILE names a file that cannot be read: No such file or directory"
    )


def test_an_option_in_a_variable_and_in_a_file_is_refused(in_file, monkeypatch) -> None:
    in_file("store", b"memory://")
    monkeypatch.setenv("CM_AUTH_STORE", "sqlite:///x.db")
    with pytest.raises(ConfigError, match="CM_AUTH_STORE and CM_AUTH_STORE_FILE are both set"):
        CMAuthConfig.from_env(**GOOD)


def test_a_wrong_switch_in_a_file_names_the_variable_of_the_file(in_file) -> None:
    in_file("cookie_secure", b"perhaps")
    with pytest.raises(ConfigError, match=r"^CM_AUTH_COOKIE_SECURE_FILE is true or false$"):
        CMAuthConfig.from_env(**GOOD)


def test_times_may_be_timedeltas() -> None:
    assert CMAuthConfig(**GOOD, idle_timeout=timedelta(hours=1)).idle_timeout == 3600


def test_secrets_are_not_in_the_repr() -> None:
    config = CMAuthConfig(**GOOD, store="memory://")
    for text in (repr(config), str(config), repr(AuthEngine(config))):
        assert SECRET_KEY not in text
        assert "secret'" not in text.replace("'client_secret'", "")


def test_an_engine_is_shared_and_takes_no_other_options() -> None:
    engine = AuthEngine(**GOOD)
    assert CMAuthMiddleware(make_app(), engine=engine).engine is engine
    with pytest.raises(ConfigError, match="engine is given"):
        CMAuthMiddleware(make_app(), engine=engine, client_id="x")


def test_the_options_for_type_checkers_are_those_of_the_configuration() -> None:
    becomes = CMAuthConfig.__annotations__
    given = {
        name: str(kind.__forward_arg__) for name, kind in CMAuthOptions.__annotations__.items()
    }
    assert list(given) == list(becomes)
    converted = {name for name, kind in given.items() if becomes[name] != kind}
    assert converted == {
        "secret_key", "exempt", "allowed_hosts", "trusted_origins", "allow_emails",
        "allow_accounts", "idle_timeout", "absolute_timeout", "refresh_leeway", "timeout",
        "revalidate",
    }  # fmt: skip
    config = CMAuthConfig(
        client_id="id", client_secret="secret", secret_key=SECRET_KEY, exempt=["/health"],
        allowed_hosts=["app.example"], trusted_origins=["https://x.example"],
        allow_emails="*@example.com", allow_accounts=[7],
        idle_timeout=timedelta(hours=1), absolute_timeout=timedelta(days=1),
        refresh_leeway=timedelta(0), timeout=timedelta(seconds=5), revalidate=timedelta(minutes=1),
    )  # fmt: skip
    kinds = {name: type(getattr(config, name)) for name in converted}
    assert kinds == {name: tuple if "tuple" in becomes[name] else float for name in converted}


def test_a_store_url_is_judged_with_the_other_options() -> None:
    for store in ("sqlite://", "memory://here", "redis-x://host", "redis:host"):
        with pytest.raises(ConfigError, match=r"^store "):
            CMAuthConfig(**GOOD, store=store)


@pytest.mark.parametrize("value", [-1, "64 MB", "", "1e6", 1.5, None, 10**15])
def test_the_size_of_the_caches_is_a_number_of_bytes(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^cache_size is a number of bytes$"):
        CMAuthConfig(**GOOD, cache_size=value)


@pytest.mark.parametrize("value", [0, -1, "two", "", 1.5, True, 10**6])
def test_the_exchanges_at_once_are_a_number(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^exchanges_at_once is a number, 1 or more$"):
        CMAuthConfig(**GOOD, exchanges_at_once=value)


def test_the_exchanges_at_once_come_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_EXCHANGES_AT_ONCE", "8")
    assert CMAuthConfig.from_env(**GOOD).exchanges_at_once == 8


def test_the_size_of_the_caches_comes_from_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("CM_AUTH_CACHE_SIZE", "1000")
    assert CMAuthConfig.from_env(**GOOD).cache_size == 1000
