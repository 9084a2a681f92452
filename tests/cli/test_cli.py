"""The ``cm-auth`` command: a good configuration, and everything broken, one by one."""

from __future__ import annotations

import http.server
import json
import os
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.applications import Starlette

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.cli import main
from cm_auth_middleware.config import FUNCTIONS, CMAuthConfig
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.stores import SQLiteStore
from cm_auth_middleware.testing import AppServer, Simulator, SimulatorServer, settings_for
from tests.helpers.apps import make_app
from tests.helpers.certificates import self_signed
from tests.helpers.postgres import postgres_server
from tests.helpers.servers import free_port, redis_server, serving
from tests.helpers.world import SECRET_KEY

SECRETS = ("demo-key-secret", SECRET_KEY, "hunter2")
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def cm() -> Iterator[SimulatorServer]:
    with SimulatorServer() as server:
        yield server


@pytest.fixture
def env(cm: SimulatorServer, tmp_path: Path) -> dict[str, str | None]:
    """A configuration with which all is well, but that the application is not running."""
    cm.simulator.reset()
    store = tmp_path / "sessions.db"
    return {
        "CM_AUTH_CLIENT_ID": cm.client_id,
        "CM_AUTH_CLIENT_SECRET": cm.client_secret,
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_BASE_URL": cm.url,
        "CM_AUTH_STORE": f"sqlite:///{store}",
        "CM_AUTH_ALLOWED_HOSTS": "cams.example.com",
        "CM_AUTH_TIMEOUT": "5",
        "CM_AUTH_ALLOW_EMAILS": "*@example.com",
    }


@pytest.fixture
def run(env: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in [name for name in os.environ if name.startswith("CM_AUTH_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, **changes: str | None) -> Result:
        changed = {f"CM_AUTH_{name.upper()}": value for name, value in changes.items()}
        result = CliRunner().invoke(main, arguments, env={**env, **changed})
        for secret in SECRETS:
            assert secret not in result.output
        return result

    return run


def lines(result: Result, level: str) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith(f"{level} ")]


# -- secret --------------------------------------------------------------------------------


def test_a_secret_is_good_and_another_each_time(run: Run) -> None:
    one, two = run("secret").output.strip(), run("secret").output.strip()
    assert one != two
    assert run("check", "--offline", secret_key=one).exit_code == 0


# -- check: all is well --------------------------------------------------------------------


def test_a_good_configuration_is_status_0_with_every_option_and_its_source(run, cm) -> None:
    result = run("check")
    assert result.exit_code == 0, result.output
    assert re.search(r"^client_id +demo-key-id +CM_AUTH_CLIENT_ID$", result.output, re.M)
    assert re.search(r"^client_secret +hidden \(15 characters\) +CM_AUTH_", result.output, re.M)
    assert re.search(r"^secret_key +hidden \(\d+ characters\) ", result.output, re.M)
    assert "every option has a value that makes sense" in result.output
    short = run("check", "--offline", secret_key="x").output
    assert re.search(r"^secret_key +hidden \(1 character\) ", short, re.M)
    assert re.search(r"^scope +write +default$", result.output, re.M)
    topics = [line.split()[1] for line in lines(result, "ok")]
    assert topics == [
        "options",
        "secret_key",
        "store",
        "redirect_uri",
        "base_url",
        "clock",
        "client_id",
    ]
    assert not list(Path(cm.url).parent.glob("*.db"))


@pytest.mark.slow
def test_the_other_server_is_checked_as_far_as_it_can_be_without_a_login(run: Run) -> None:
    sim = Simulator(settings_for("eagleeye"))
    with SimulatorServer(sim) as server:
        given = {"provider": "eagleeye", "base_url": server.url}
        result = run("check", **given)
        assert result.exit_code == 0, result.output
        assert re.search(r"^scope +vms\.all +default$", result.output, re.M)
        assert {"base_url", "clock", "client_id"} <= {
            line.split()[1] for line in lines(result, "ok")
        }
        wrong = run("check", **given, client_secret="another-secret")
        assert wrong.exit_code == 2
        assert "Eagle Eye refuses the API key (invalid_client)" in wrong.output
        assert "a key of the other platform (provider)?" in wrong.output
        assert "an Eagle Eye account" in run("check", **given, allow_emails=None).output
        assert "CameraManager" not in result.output + wrong.output
        itself = run("check", **given, redirect_uri=f"{server.url}/auth/callback")
        assert "points at Eagle Eye itself" in itself.output


def test_a_session_that_outlives_the_refresh_token_is_a_warning(run: Run) -> None:
    most = {"idle_timeout": str(14 * 86_400), "absolute_timeout": str(90 * 86_400)}
    assert run("check", "--offline", provider="eagleeye", **most).exit_code == 0
    more = {option: f"{value}.5" for option, value in most.items()}
    result = run("check", "--offline", provider="eagleeye", **more)
    assert result.exit_code == 1
    idle, absolute = lines(result, "warning")
    assert "idle_timeout  is over 14 days, after which Eagle Eye ends a refresh token that" in idle
    assert "absolute_timeout is over 90 days, after which Eagle Eye ends" in absolute
    assert run("check", "--offline", **more).exit_code == 0  # of CameraManager it is not known


def test_the_help_names_both_servers(run: Run) -> None:
    commands = run("--help").output.splitlines()
    for name in ("demo", "dev"):
        [line] = [line for line in commands if line.startswith(f"  {name} ")]
        own = run(name, "--help").output.partition("Options:")[0]
        for said in (line, own):
            assert "CameraManager" in said
            assert "Eagle Eye" in said


def test_the_secret_keys_are_named_by_a_short_hash_the_same_on_each_machine(run: Run) -> None:
    old, new = run("secret").output.strip(), run("secret").output.strip()

    def said(*keys: str) -> str:
        result = run("check", "--offline", secret_key=",".join(keys))
        assert not any(key in result.output for key in keys)
        (line,) = [line for line in lines(result, "ok") if line.split()[1] == "secret_key"]
        return line.partition("the key ")[2]

    names = {key: said(key).removesuffix(" signs") for key in (old, new)}
    assert len(set(names.values())) == 2
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names.values())
    assert said(new, old) == f"{names[old]} signs; also accepted: {names[new]}"
    assert said(old, new) == f"{names[new]} signs; also accepted: {names[old]}"


def test_quiet_says_nothing_when_all_is_well(run: Run) -> None:
    assert run("check", "--quiet").output == ""


def test_the_application_is_found_where_it_lives(run: Run, cm: SimulatorServer) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}/auth/callback"
    options = {"client_id": "x", "client_secret": "y", "secret_key": SECRET_KEY}
    app = CMAuthMiddleware(make_app(), redirect_uri=uri, base_url=cm.url, **options)
    with AppServer(app, port):
        result = run("check", redirect_uri=uri)
    assert result.exit_code == 0, result.output
    assert "the middleware answers at redirect_uri" in result.output


def test_offline_asks_nobody(run: Run, cm: SimulatorServer) -> None:
    assert run("check", "--offline", base_url="https://127.0.0.1:9").exit_code == 0
    assert not cm.simulator.requests


def test_nothing_is_left_behind(run: Run, env: dict[str, str], cm: SimulatorServer) -> None:
    path = Path(env["CM_AUTH_STORE"].removeprefix("sqlite:///"))
    assert "will be created" in run("check").output
    assert not path.exists()
    run_sync(SQLiteStore(path).blocking().ping())  # which makes it
    assert "written, read and emptied" in run("check").output
    assert run("sessions", "count").output == "0\n"


# -- check: broken, one by one -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"client_id": None}, "client_id is missing"),
        ({"client_secret": ""}, "client_secret is missing"),
        ({"secret_key": "hunter2"}, "secret_key is too weak"),
        ({"scope": "admin"}, "scope has to be 'read' or 'write' for provider"),
        ({"timeout": "soon"}, "timeout is a number"),
        ({"prefix": "auth"}, "prefix is a path"),
        ({"cookie_secure": "perhaps"}, "CM_AUTH_COOKIE_SECURE is true or false"),
        ({"redirect_uri": "/auth/callback"}, "redirect_uri is not absolute"),
        ({"redirect_uri": "https://a.example/callback"}, "has to end in /auth/callback"),
        ({"base_url": "rest.cameramanager.com"}, "base_url needs a scheme"),
        ({"base_url": "https://me:hunter2@cm.example"}, "no user, query"),
        ({"store": "mysql://me:hunter2@db/x"}, "store has an unknown scheme"),
    ],
)
def test_a_wrong_option_is_named_with_the_way_out(run: Run, changes: Any, says: str) -> None:
    result = run("check", **changes)
    assert result.exit_code == 2
    assert says in lines(result, "error")[0]
    assert "Traceback" not in result.output


def test_a_misspelt_option_is_noticed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM_AUTH_REDIRECT_URL", "https://a.example/auth/callback")
    monkeypatch.setenv("CM_AUTH_ALLOW", "anna")
    monkeypatch.setenv("CM_AUTH_ON_LOGIN", "hooks:greet")
    result = run("check")
    assert result.exit_code == 1
    assert "did you mean CM_AUTH_REDIRECT_URI?" in result.output
    assert "CM_AUTH_ALLOW is not an option that can be set in the environment" in result.output
    assert "did you mean CM_AUTH_ALLOW_EMAILS or CM_AUTH_ALLOW_ACCOUNTS?" in result.output
    assert "on_login is a function, given in code only" in result.output
    assert "every other option has a value that makes sense" in result.output


def test_one_character_is_one(run: Run) -> None:
    assert "hidden (1 character) " in run("check", "--offline", client_secret="x").output


def test_options_in_files_are_checked_and_their_secrets_hidden(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("demo-key-secret\n")
    in_file = {"client_secret": None, "client_secret_file": str(secret)}
    result = run("check", **in_file)
    assert result.exit_code == 0, result.output
    shown = r"^client_secret +hidden \(15 characters\) +CM_AUTH_CLIENT_SECRET_FILE$"
    assert re.search(shown, result.output, re.M)
    # An option that repeats the secret is hidden, too: `run` looks for it in the output.
    assert "prefix" in run("check", "--offline", prefix="/demo-key-secret", **in_file).output
    result = run("check", client_secret_file=str(secret))
    assert result.exit_code == 2
    assert "CM_AUTH_CLIENT_SECRET_FILE are both set" in lines(result, "error")[0]
    assert re.search(r"^client_secret +not read +CM_AUTH_CLIENT_SECRET_FILE$", result.output, re.M)
    result = run("check", client_secret=None, client_secret_file="hunter2")
    assert "names a file that cannot be read" in lines(result, "error")[0]


def test_all_missing_options_are_named_at_once(run: Run) -> None:
    result = run("check", client_id=None, client_secret=None, secret_key=None)
    assert "client_id, client_secret and secret_key are missing" in lines(result, "error")[0]


def test_http_outside_loopback_is_a_warning(run: Run) -> None:
    result = run("check", "--offline", base_url="http://cm.example")
    assert result.exit_code == 1
    assert "travel in the clear" in lines(result, "warning")[0]


def test_a_door_that_is_open_to_everybody_is_a_warning(run: Run) -> None:
    result = run("check", "--offline", allow_emails=None)
    assert result.exit_code == 1
    assert "everybody with a CameraManager account may come in" in lines(result, "warning")[0]
    assert "CM_AUTH_ALLOW_EMAILS=*@example.com or CM_AUTH_ALLOW_ACCOUNTS=" in result.output
    result = run("check", "--offline", allow_emails=None, allow_accounts="501")
    assert result.exit_code == 0
    assert "everybody" not in result.output


def test_a_logo_behind_the_login_is_a_warning(run: Run) -> None:
    for logo, exempt, count in (
        ("/static/logo.svg", None, 1),
        ("/static/logo.svg?v=3", "/static/*", 0),
        ("data:image/png;base64,iVBORw==", None, 0),
    ):
        result = run("check", "--offline", app_logo=logo, exempt=exempt)
        assert result.exit_code == count
        assert len([line for line in lines(result, "warning") if "app_logo" in line]) == count


GOOD = {
    "client_id": "demo-key-id", "provider": "cameramanager",
    "base_url": "https://cm.example:8443", "scope": "read",
    "redirect_uri": "https://127.0.0.1/mount/auth/callback", "prefix": "/auth",
    "exempt": "/health,/static/*", "store": "sqlite:///no-such-folder/x.db", "idle_timeout": "60",
    "absolute_timeout": "86400.5", "refresh_leeway": "0", "timeout": "2.5",
    "cookie_name": "__Host-x", "cookie_secure": "true", "allowed_hosts": "a.example, [::1]",
    "background": "no", "revalidate": "none", "cache_size": "1000000", "exchanges_at_once": "8",
    "allow_emails": "*@example.com,anna+cm@example.org", "allow_accounts": "501,502",
    "trusted_origins": "https://app.example:8443,http://[::1]:5173,capacitor://localhost",
    "cross_site_check": "off", "auto_login": "No", "app_name": "Cameras & doors",
    "app_logo": "/static/logo.svg",
}  # fmt: skip


def test_every_option_is_shown_if_its_value_is_good(run: Run) -> None:
    hidden = {"client_secret", "secret_key"}
    assert GOOD.keys() == {f.name for f in fields(CMAuthConfig)} - set(FUNCTIONS) - hidden
    output = run("check", "--offline", **GOOD).output
    for name, value in GOOD.items():
        assert re.search(rf"^{name} +{re.escape(value)} +CM_AUTH_", output, re.M), name
    output = run("check", "--offline", **dict.fromkeys(GOOD, "redis://u:x,/Q7/x@h,a@b:c.de")).output
    assert "Q7" not in output
    assert len(re.findall(r"CM_AUTH_[A-Z_]+$", output, re.M)) == len(GOOD) + 2


def test_what_may_be_the_secret_is_shown_as_no_id(run: Run) -> None:
    for changes in (
        {"client_id": "demo-key-secret", "client_secret": "demo-key-id"},
        {"client_id": "demo-key-secret"},
        {"client_id": "demo-key-secret", "client_secret": None},
    ):
        shown = run("check", "--offline", **changes).output
        assert re.search(r"^client_id +dem… \(15 characters\) ", shown, re.M)


@pytest.mark.parametrize(
    ("store", "level", "says"),
    [
        ("memory://", 1, "serves one process"),
        ("sqlite:////nowhere/at/all/sessions.db", 2, "there is no folder /nowhere/at/all"),
        ("sqlite://sessions.db", 2, "needs the path of a file"),
        ("redis://:hunter2@127.0.0.1:9/0", 2, "127.0.0.1:9"),
        ("postgresql://cm:hunter2@127.0.0.1:9/db", 2, "127.0.0.1:9/… cannot be reached"),
    ],
)
def test_a_store_that_does_not_serve(run: Run, store: str, level: int, says: str) -> None:
    result = run("check", store=store)
    assert result.exit_code == level
    assert says in lines(result, ("ok", "warning", "error")[level])[0]


def test_a_folder_in_which_nobody_may_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    result = run("check", "--offline")
    assert result.exit_code == 2
    assert "may not write in the folder /" in lines(result, "error")[0]


def test_a_file_that_is_no_store(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other.db").write_bytes(b"this is no database, whatever its name says" * 100)
    result = run("check", store=f"sqlite:///{tmp_path / 'other.db'}")
    assert result.exit_code == 2
    assert "other.db" in lines(result, "error")[0]


def test_nobody_at_base_url(run: Run) -> None:
    result = run("check", base_url=f"http://127.0.0.1:{free_port()}")
    assert result.exit_code == 2
    assert "nothing listens there" in lines(result, "error")[0]


def test_a_name_that_does_not_exist(run: Run) -> None:
    result = run("check", base_url="https://cameramanager.invalid")
    assert result.exit_code == 2
    assert "does not know the name" in lines(result, "error")[0]


def test_somebody_else_at_base_url(run: Run) -> None:
    with AppServer(Starlette()) as other:
        result = run("check", base_url=other.url)
    assert result.exit_code == 2
    assert "answered 404 where CameraManager says 401" in lines(result, "error")[0]


def test_a_server_that_does_not_answer(run: Run, cm: SimulatorServer) -> None:
    cm.simulator.fail_api("hang")
    result = run("check", timeout="0.3")
    assert result.exit_code == 2
    assert "no answer in time" in lines(result, "error")[0]


@pytest.mark.slow
def test_a_certificate_that_nobody_signed(run: Run, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    with answering(context=context) as port:
        result = run("check", base_url=f"https://127.0.0.1:{port}")
    assert result.exit_code == 2
    assert "TLS certificate is not trusted: self" in lines(result, "error")[0]


@pytest.mark.slow
def test_tls_to_a_server_without_it(run: Run) -> None:
    with answering() as port:
        result = run("check", base_url=f"https://127.0.0.1:{port}")
    assert result.exit_code == 2
    assert "TLS failed" in lines(result, "error")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("off", "level"), [(0, 1), (120, 1), (4000, 2), (-4000, 2)])
def test_a_clock_that_is_wrong(run: Run, off: int, level: int) -> None:
    with answering(date=formatdate(time.time() + off, usegmt=True)) as port:
        result = run("check", base_url=f"http://127.0.0.1:{port}")
    assert result.exit_code == level  # 1 at least: this server knows no API keys
    assert any("agrees with" in line for line in lines(result, "ok")) is (off == 0)
    assert ("seconds off" in result.output) is (off != 0)


@pytest.mark.slow
def test_a_server_that_does_not_tell_the_time(run: Run) -> None:
    with answering(date="yesterday") as port:
        result = run("check", base_url=f"http://127.0.0.1:{port}")
    assert "did not say what time it is" in result.output


def test_an_api_key_that_is_refused(run: Run) -> None:
    result = run("check", client_secret="hunter2")
    assert result.exit_code == 2
    assert "refuses the API key (unauthorized)" in lines(result, "error")[0]
    assert "is it a key of the other platform (provider)?" in result.output


def test_an_api_key_that_cannot_be_tried(run: Run, cm: SimulatorServer) -> None:
    cm.simulator.fail_token(503)
    result = run("check")
    assert result.exit_code == 1
    assert "could not be tried" in lines(result, "warning")[0]


def test_a_redirect_uri_that_cameramanager_does_not_know(run: Run, cm: SimulatorServer) -> None:
    cm.simulator.settings.redirect_uris = ["https://localhost/auth/callback"]
    result = run("check", redirect_uri="https://127.0.0.1/auth/callback")
    assert result.exit_code == 2
    assert "login page answers 400" in lines(result, "error")[0]


@pytest.mark.slow
def test_a_base_url_of_another_provider_or_with_a_path(run: Run, cm: SimulatorServer) -> None:
    uri = f"http://127.0.0.1:{free_port()}/auth/callback"
    with SimulatorServer(Simulator(settings_for("eagleeye"))) as server:
        for base_url in (cm.url, f"{server.url}/oauth2"):
            result = run("check", provider="eagleeye", base_url=base_url, redirect_uri=uri)
            assert result.exit_code == 2
            key, page = lines(result, "error")
            assert "the API key could not be tried: the server answered 404" in key
            assert "login page answers 404" in page
            advice = "Do base_url and provider belong together, and has base_url no path?"
            assert result.output.count(advice) == 2


@pytest.mark.slow
def test_a_login_page_that_cannot_be_seen(run: Run) -> None:
    with answering(drops="/oauth/authorize") as port:
        uri = f"http://127.0.0.1:{port}/auth/callback"
        result = run("check", redirect_uri=uri, base_url=f"http://localhost:{port}")
    assert result.exit_code == 1
    assert "the login page could not be tried" in result.output


@pytest.mark.parametrize(
    ("changes", "level", "says"),
    [
        ({"allowed_hosts": None}, 1, "logins work on localhost only"),
        ({"redirect_uri": "https://nobody.invalid/auth/callback"}, 1, "does not know nobody.inv"),
        (
            {"redirect_uri": "https://127.0.0.1/auth/callback", "cookie_secure": "no"},
            1,
            "is off although",
        ),
        (
            {"redirect_uri": "http://127.0.0.1/auth/callback", "cookie_secure": "yes"},
            2,
            "browsers drop the session cookie",
        ),
        (
            {"redirect_uri": "http://127.0.0.1/auth/callback", "cookie_name": "__Host-x"},
            2,
            "browsers refuse the session cookie",
        ),
        (
            {"redirect_uri": "https://127.0.0.1/auth/callback", "cookie_name": "__Secure-x"},
            1,
            "a neighbouring host may set a cookie of this name",
        ),
        (
            {
                "redirect_uri": "https://cm.example/auth/callback",
                "base_url": "https://cm.example",
            },
            2,
            "points at CameraManager itself",
        ),
    ],
)
def test_a_redirect_uri_that_makes_no_sense(run, changes: Any, level: int, says: str) -> None:
    result = run("check", "--offline", **changes)
    assert result.exit_code == level
    assert says in lines(result, ("ok", "warning", "error")[level])[0]


def test_an_application_that_is_not_running_yet_is_no_fault(run: Run) -> None:
    result = run("check", redirect_uri=f"http://127.0.0.1:{free_port()}/auth/callback")
    assert [line for line in lines(result, "ok") if "nothing answers at redirect_uri" in line]
    assert not [line for line in lines(result, "warning") if "redirect_uri" in line]


@pytest.mark.parametrize("command", [("count",), ("purge",), ("list", "--user", "1")])
def test_a_file_that_is_not_there_is_told_and_not_made(run: Run, tmp_path: Path, command) -> None:
    path = tmp_path / "typo.db"
    result = run("sessions", *command, "--store", f"sqlite:///{path}")
    assert result.exit_code == 1
    assert "there is no file" in result.output
    assert not path.exists()


def test_another_application_at_redirect_uri_is_a_warning(run: Run) -> None:
    with AppServer(Starlette()) as other:
        result = run("check", redirect_uri=f"{other.url}/auth/callback")
    assert result.exit_code == 1
    assert "answers 404, not as the middleware does" in lines(result, "warning")[0]


@pytest.mark.slow
def test_a_script_sees_the_status(env: dict[str, str]) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CM_AUTH_")}
    command = [sys.executable, "-m", "cm_auth_middleware.cli", "check", "--quiet"]
    for changes, status in (
        ({}, 0),
        ({"CM_AUTH_STORE": "memory://"}, 1),
        ({"CM_AUTH_SCOPE": "x"}, 2),
    ):
        done = subprocess.run(
            command, env={**clean, **env, **changes}, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert not done.stderr


# -- sessions ------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "redis", pytest.param("postgres", marks=pytest.mark.slow)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.db'}"
        return
    with redis_server() if request.param == "redis" else postgres_server() as server:
        yield server.url


def test_sessions_are_counted_listed_and_ended(
    run, store_url, cm_server, cm_login, cm_time
) -> None:
    from cm_auth_middleware import CMAuthWSGIMiddleware
    from tests.helpers.apps import make_wsgi_app

    options = {"store": store_url, "secret_key": SECRET_KEY, "idle_timeout": 3600}
    app = CMAuthWSGIMiddleware(make_wsgi_app(), **options)
    anna, again, bob = cm_login(app), cm_login(app), cm_login(app, "bob@example.com")
    changes = {"store": store_url, "client_id": None, "client_secret": None}

    assert run("sessions", "count", **changes).output == "3\n"
    assert json.loads(run("sessions", "count", "--json", **changes).output) == {"sessions": 3}
    listed = run("sessions", "list", "--user", "10003", **changes)
    assert len(listed.output.splitlines()) == 2
    assert "user 10003  logged in" in listed.output
    assert "from 127.0.0.1" in listed.output
    assert run("sessions", "list", "--email", "Anna@example.com", **changes).output == listed.output
    everybody = run("sessions", "list", **changes).output.splitlines()
    assert [line.split()[2] for line in everybody] == ["10003", "10003", "10007"]
    assert run("sessions", "revoke", "--user", "10003", **changes).output == "2\n"
    assert [b.get("/").status_code for b in (anna, again, bob)] == [302, 302, 200]
    for command in ("list", "revoke"):
        for user in (("--user", "10003"), ("--email", "anna@example.com"), ("--user", "x@y.de")):
            result = run("sessions", command, *user, **changes)
            assert result.exit_code == 1
            assert result.output == (
                "Error: no session of this user; --user takes the id that the server gives users, "
                "--email an address. Not found are sessions opened by a release before 0.2 and not "
                "used since, or with another secret key\n"
            )
    ended = run("sessions", "revoke", "--email", "bob@example.com", "--json", **changes)
    assert json.loads(ended.output) == {"revoked": 1}
    assert bob.get("/").status_code == 302
    assert run("sessions", "list", **changes).output == ""
    assert run("sessions", "list", **changes).exit_code == 0
    app.engine.close()


def test_sessions_are_listed_in_pages(run, tmp_path: Path, cm_simulator, cm_login) -> None:
    from cm_auth_middleware import CMAuthWSGIMiddleware
    from tests.helpers.apps import make_wsgi_app

    changes = {"store": f"sqlite:///{tmp_path / 'sessions.db'}"}
    app = CMAuthWSGIMiddleware(make_wsgi_app(), secret_key=SECRET_KEY, **changes)
    for user in ("anna@example.com", "anna@example.com", "bob@example.com"):
        cm_login(app, user)

    def page(*arguments: str) -> tuple[list[str], str | None]:
        told = json.loads(run("sessions", "list", "--json", *arguments, **changes).output)
        assert all(
            info.keys() == {"reference", "user_id", "logged_in_at", "last_seen_at", "address"}
            for info in told["sessions"]
        )
        assert all(info["logged_in_at"].endswith("+00:00") for info in told["sessions"])
        return [info["user_id"] for info in told["sessions"]], told["next"]

    assert page() == (["10003", "10003", "10007"], None)
    assert page("--limit", "1") == (["10003", "10003"], "10003"), "a user is on one page"
    assert page("--limit", "2") == (["10003", "10003"], "10003")
    assert page("--limit", "3") == (["10003", "10003", "10007"], None)
    assert page("--after", "10003") == (["10007"], None)
    assert page("--after", "10007") == ([], None)
    shown = run("sessions", "list", "--limit", "1", **changes).output
    assert shown.endswith("\nThe next page: --after 10003\n")
    app.engine.close()


def test_sessions_that_cannot_be_listed_are_counted(run, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    store = SQLiteStore(path).blocking()
    run_sync(store.put("old", b"\x04 a session", 60))
    run_sync(store.close())
    said = run("sessions", "list", store=f"sqlite:///{path}")
    assert said.exit_code == 0
    assert said.output.startswith("1 more: opened by a release before 0.2")
    for arguments, others in (((), 1), (("--after", "10003"), None)):
        said = run("sessions", "list", "--json", *arguments, store=f"sqlite:///{path}")
        assert json.loads(said.output) == {"sessions": [], "next": None, "others": others}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("revoke",), "give --user or --email"),
        (("revoke", "--user", ""), "give --user or --email"),
        (("list", "--user", "1", "--email", "a@b.de"), "exclude each other"),
        (("list", "--limit", "0"), "--limit"),
    ],
)
def test_a_wrong_call_is_status_2_and_does_nothing(run, tmp_path, arguments, says: str) -> None:
    path = tmp_path / "sessions.db"
    run_sync(SQLiteStore(path).blocking().ping())
    result = run("sessions", *arguments, store=f"sqlite:///{path}")
    assert result.exit_code == 2
    assert says in result.output


def test_the_store_may_be_named_in_a_file(run, tmp_path: Path) -> None:
    path, named = tmp_path / "sessions.db", tmp_path / "store"
    run_sync(SQLiteStore(path).blocking().ping())
    named.write_text(f"sqlite:///{path}\n")
    assert run("sessions", "count", store=None, store_file=str(named)).output == "0\n"
    assert "Missing option '--store'" in run("sessions", "count", store=None).output
    result = run("sessions", "count", store=None, store_file=str(tmp_path / "none"))
    assert result.exit_code == 1
    assert "CM_AUTH_STORE_FILE names a file that cannot be read" in result.output


# -- JSON ----------------------------------------------------------------------------------


def test_a_check_is_json_too(run: Run) -> None:
    result = run("check", "--json", "--offline", prefix="/demo-key-secret", store="memory://")
    assert result.exit_code == 1
    told = json.loads(result.output)
    options = {option.pop("name"): option for option in told["options"]}
    assert options["client_id"] == {"value": "demo-key-id", "source": "CM_AUTH_CLIENT_ID"}
    assert options["prefix"]["value"] == "/…"
    assert {finding["level"] for finding in told["findings"]} == {"ok", "warning"}
    quiet = json.loads(run("check", "--json", "--offline", "--quiet", store="memory://").output)
    assert [finding["topic"] for finding in quiet["findings"]] == ["store"]
    assert run("check", "--json", scope="x").exit_code == 2
    assert "--json exclude" in run("check", "--json", "--login").output


def test_a_secret_is_json_too(run: Run) -> None:
    assert len(json.loads(run("secret", "--json").output)["secret_key"]) == 64


def test_expired_sessions_are_purged(run, tmp_path: Path) -> None:

    path = tmp_path / "sessions.db"
    store = SQLiteStore(path, clock=lambda: time.time() - 3600).blocking()
    run_sync(store.put("old", b"\x01 a session", 60))
    run_sync(store.put("new", b"\x01 a session", 7200))
    run_sync(store.put("grant", b"\x02 what sessions share", 7200))
    run_sync(store.close())
    assert run("sessions", "purge", "--store", f"sqlite:///{path}").output == "1\n"
    assert run("sessions", "purge", "--store", f"sqlite:///{path}", "--json").output == (
        '{"purged": 0}\n'
    )
    assert run("sessions", "count", "--store", f"sqlite:///{path}").output == "1\n"


@pytest.mark.parametrize("command", [("count",), ("purge",), ("list", "--user", "1")])
def test_a_store_that_fails_is_one_sentence_and_status_1(run: Run, command: Any) -> None:
    url = "redis://:hunter2@127.0.0.1:9/0"
    result = run("sessions", *command, store=url)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output


def test_the_memory_store_cannot_be_looked_into(run: Run) -> None:
    result = run("sessions", "count", store="memory://")
    assert result.exit_code == 2
    assert "inside your application's process" in result.output


def test_revoking_needs_the_secret_key(run: Run) -> None:
    result = run("sessions", "revoke", "--user", "1", secret_key=None)
    assert result.exit_code == 1
    assert "secret_key is missing" in result.output


# -- help ----------------------------------------------------------------------------------


class _Answer(http.server.BaseHTTPRequestHandler):
    date: str | None = None

    drops = ""

    def do_GET(self) -> None:
        if self.drops and self.path.startswith(self.drops):
            self.close_connection = True
            return
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002
        return self.date or super().date_time_string()  # type: ignore[arg-type]

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def answering(
    *, date: str | None = None, context: ssl.SSLContext | None = None, drops: str = ""
) -> Iterator[int]:
    """A server that says 401 to everything, and what time it is."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Response", (_Answer,), {"date": date, "drops": drops})
    )
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server.server_port
