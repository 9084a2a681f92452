"""The options: read from keywords and the environment, checked once, at construction."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from urllib.parse import urlsplit

from . import environment, stores
from .display import HOST
from .errors import ConfigError
from .events import log
from .runtime.bounded_cache import MOST_BYTES
from .sessions.cookie import needs_https
from .tokens.provider import Provider, find_provider
from .web.local_target import is_local
from .web.origin import normal_origin

if TYPE_CHECKING:
    from .hooks import Allow, ErrorHandler
    from .sessions.session import Session
    from .stores import SessionStore

Hook = Callable[["Session"], Any]
"""The options ``on_login``, ``on_refresh`` and ``on_logout``: what they return is not used."""

REQUIRED = ("client_id", "client_secret", "secret_key")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
FUNCTIONS = ("allow", "on_login", "on_refresh", "on_logout", "error_handler")  # in no environment
# Separated by commas or line ends in the environment.
LISTS = (
    "secret_key", "exempt", "allowed_hosts", "trusted_origins", "allow_emails", "allow_accounts",
)  # fmt: skip
SEPARATOR = re.compile(r"[,\n]")
_SWITCHES = ("background", "cookie_secure", "cross_site_check", "auto_login")
_TIMES = ("idle_timeout", "absolute_timeout", "refresh_leeway", "timeout")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 §5.6.2
_ADDRESS = re.compile(r"(\*|[^\s@*,:]+)@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_MOST_NAME, _MOST_LOGO = 100, 65_536  # characters; each page has them
_LOGO_PATH = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+(\?[A-Za-z0-9._~=&%-]*)?")
_LOGO_DATA = re.compile(
    r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,"
    r"([A-Za-z0-9+/]{4})*[A-Za-z0-9+/]{2}(==|[A-Za-z0-9+/][A-Za-z0-9+/=])"  # RFC 4648 §4
)
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


class CMAuthOptions(TypedDict, total=False):
    """The options as keywords, for type checkers; `CMAuthConfig` says what each means."""

    client_id: str
    client_secret: str
    secret_key: str | Iterable[str]
    provider: str | Provider
    base_url: str
    scope: str
    redirect_uri: str | None
    prefix: str
    exempt: Iterable[str]
    store: str | SessionStore
    idle_timeout: float | timedelta
    absolute_timeout: float | timedelta
    refresh_leeway: float | timedelta
    timeout: float | timedelta
    cache_size: int
    exchanges_at_once: int | None
    background: bool | None
    cookie_name: str | None
    cookie_secure: bool | None
    allowed_hosts: Iterable[str]
    trusted_origins: Iterable[str]
    cross_site_check: bool
    allow: Allow | None
    allow_emails: Iterable[str] | None
    allow_accounts: Iterable[str | int] | None
    revalidate: float | timedelta | None
    app_name: str | None
    app_logo: str | None
    on_login: Hook | None
    on_refresh: Hook | None
    on_logout: Hook | None
    auto_login: bool
    error_handler: ErrorHandler | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CMAuthConfig:
    """Holds every option of the middleware.

    `from_env` and the middlewares read an option that is not given from ``CM_AUTH_<OPTION>``, or
    from the file that ``CM_AUTH_<OPTION>_FILE`` names. Times are given in seconds or as
    `timedelta`, and are seconds here; in the environment, several values are separated by commas
    or line ends.

    Attributes:
        client_id: The ID of the CameraManager API key.
        client_secret: The SECRET of the API key.
        secret_key: Signs the cookies and encrypts the sessions: one random string of 32 characters
            or more, or several from oldest to newest (the newest signs, all verify).
        provider: The server that users log in at: ``cameramanager``, ``eagleeye`` (Eagle Eye's API
            v3), or a `Provider` that describes another one.
        base_url: The OAuth server, and the API unless the server names that with its tokens, as
            Eagle Eye's does; the provider's own if not given.
        scope: The access that the application asks the user for: ``read`` or ``write``; at Eagle
            Eye ``vms.all``.
        redirect_uri: The absolute URL of ``/auth/callback``, as browsers see it; derived from the
            request if not given. Set it if the application runs behind a proxy.
        prefix: The path below which ``login``, ``callback``, ``logout``, ``signed-out``,
            ``session``, ``session.js`` and ``health`` live.
        exempt: Paths that need no login: ``/health`` exact, ``/static/*`` a subtree; relative to
            the path at which the application is mounted. A request that has a session still gets
            it there.
        store: Where sessions are kept: ``memory://``, ``sqlite:///path``, ``redis://…``,
            ``rediss://…``, ``unix://…``, ``postgresql://…``, or an object with the methods of
            `SessionStore`.
        idle_timeout: A session that is not used for this long ends.
        absolute_timeout: Every session ends this long after its login.
        refresh_leeway: The access token is refreshed this long before it expires.
        timeout: The total time for each call to CameraManager that the middleware itself makes.
        cache_size: Bytes of memory that opened sessions, verified cookies, kept snapshots and other
            results may take together in each process. What does not fit is computed again. Small
            ones are kept beside it, about 5 MB: a thousand users of at most 2 kB each, parsed, and
            with Redis 4,096 keys that no older release has used.
        exchanges_at_once: Logins that a process may complete at CameraManager at a time; 16 on ASGI
            and 2 on WSGI if not given. Those beyond it are asked to try again (503): visitors, who
            may invent logins, must not keep threads and connections from users.
        background: Refresh tokens and read users in the background, beside requests. False does it
            within requests, for hosts where nothing goes on once a response was sent; if not given,
            the middleware finds that out.
        cookie_name: The name of the session cookie; ``cm_auth`` if not given. On https, ``__Host-``
            is put before it, which keeps neighbouring hosts from setting the cookie. A name that
            begins with ``__Secure-`` is used as it is, and does not keep them from it.
        cookie_secure: True to send cookies on https only, False to send them on http too; if not
            given, the scheme of `redirect_uri` or of the request decides.
        allowed_hosts: Host names that the redirect URI may be derived from.
        trusted_origins: Origins of other sites whose pages may send writes and open WebSockets:
            ``https://app.example.com``, ``http://localhost:5173``. The site's own origin, that of
            `redirect_uri`, need not be named.
        cross_site_check: Refuse writes (POST, PUT, …) and WebSockets that another site makes the
            browser send.
        allow: Called with the user (the JSON of ``users/self``), sync or async; returns True if
            this user may come in. It is called at the login, for a session that another application
            opened, and whenever the user is read again.
        allow_emails: Addresses that may come in: ``anna@example.com``, or ``*@example.com`` for a
            whole domain. Every user may come in if it is not given. `allow_emails`,
            `allow_accounts` and `allow` all have to agree.
        allow_accounts: Accounts that may come in, by CameraManager's ``accountId``.
        revalidate: The user is read from CameraManager again, in the background, when the known
            data is older than this; with None, or ``none`` in the environment, only after each
            refresh.
        app_name: The name of the application, which the middleware's own pages show.
        app_logo: A picture for these pages: a path of the application, below its mount, such as
            ``/static/logo.svg``, which visitors can load only if it is `exempt`; or a ``data:`` URI
            of a PNG, JPEG, GIF, WebP or SVG image in base64, of up to 64 kB.
        on_login: Called with the session after a login, sync or async.
        on_refresh: Called with the session after a refresh.
        on_logout: Called with the session after a logout, also if another user's login in the same
            browser caused it.
        auto_login: Send a browser that has no session straight to CameraManager. If off, the
            browser shows a page with a button first.
        error_handler: Draws the pages for people: called with an `ErrorPage`, it returns HTML, or
            None for the package's own page.

    Raises:
        ConfigError: an option is missing or wrong; the message names it and says what to do.
    """

    client_id: str = field(repr=False)  # users sometimes paste the secret into it
    client_secret: str = field(repr=False)
    secret_key: tuple[str, ...] = field(repr=False)
    provider: str | Provider = "cameramanager"
    base_url: str = field(default=None)  # type: ignore[assignment]  # the provider's
    scope: str = field(default=None)  # type: ignore[assignment]  # the provider's
    redirect_uri: str | None = field(default=None, repr=False)
    prefix: str = "/auth"
    exempt: tuple[str, ...] = ()
    store: str | SessionStore = field(default="memory://", repr=False)
    idle_timeout: float = 7 * 86_400
    absolute_timeout: float = 30 * 86_400
    refresh_leeway: float = 60
    timeout: float = 10
    cache_size: int = MOST_BYTES
    exchanges_at_once: int | None = None
    background: bool | None = None
    cookie_name: str | None = None
    cookie_secure: bool | None = None
    allowed_hosts: tuple[str, ...] = LOOPBACK
    trusted_origins: tuple[str, ...] = ()
    cross_site_check: bool = True
    allow: Allow | None = None
    allow_emails: tuple[str, ...] | None = None
    allow_accounts: tuple[str, ...] | None = None
    revalidate: float | None = 900
    app_name: str | None = None
    app_logo: str | None = field(default=None, repr=False)  # it may be long
    on_login: Hook | None = None
    on_refresh: Hook | None = None
    on_logout: Hook | None = None
    auto_login: bool = True
    error_handler: ErrorHandler | None = None

    if TYPE_CHECKING:
        # The fields say what the options become; this says what may be given.
        def __init__(self, **options: Unpack[CMAuthOptions]) -> None: ...

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if not getattr(self, name)]
        if missing:
            raise ConfigError(_missing(missing))
        provider = find_provider(self.provider)
        for name, value in provider.defaults.items():
            if getattr(self, name) is None:
                self._set(name, value)
        self._check_types()
        self._set("secret_key", self._checked_secret_keys())
        for name in ("exempt", "allowed_hosts"):
            self._set(name, _strings(name, getattr(self, name)))
        # No message quotes a value: a wrong one may be another option's, such as a password.
        for number, host in enumerate(self.allowed_hosts, 1):
            if not re.fullmatch(HOST, host):
                raise ConfigError(
                    f"allowed_hosts has no host name in place {number}: give names alone, without "
                    "scheme, port or *"
                )
        self._set("trusted_origins", self._checked_origins())
        for name in _TIMES:
            self._set(name, _seconds(name, getattr(self, name)))
        self._set("cache_size", _bytes("cache_size", self.cache_size))
        if self.exchanges_at_once is not None:
            self._set("exchanges_at_once", _count("exchanges_at_once", self.exchanges_at_once))
        if self.revalidate is not None:
            self._set("revalidate", _seconds("revalidate", self.revalidate))
        self._check_allowed()
        self._check_brand()
        if self.scope not in provider.scopes:
            scopes = " or ".join(f"'{scope}'" for scope in sorted(provider.scopes))
            named = self.provider if isinstance(self.provider, str) else provider.name
            raise ConfigError(f"scope has to be {scopes} for provider '{named}'")
        self._set("base_url", self._checked_base_url(provider.base_url))
        self._check_paths()
        self._check_redirect_uri()
        self._check_cookie()
        if isinstance(self.store, str):
            stores.parse(self.store)  # which raises ConfigError

    @classmethod
    def from_env(cls, **options: Any) -> CMAuthConfig:
        """Read the options from ``CM_AUTH_<OPTION>`` variables; keywords override them.

        Each may also be in a file that ``CM_AUTH_<OPTION>_FILE`` names.
        """
        known = {item.name for item in fields(cls)}
        unknown = sorted(options.keys() - known)
        if unknown:
            named = ", ".join(name + _alike(name, known) for name in unknown)
            raise ConfigError(f"unknown option {named}; the options are {', '.join(sorted(known))}")
        for name in known - options.keys() - set(FUNCTIONS):
            found = environment.read(name)
            if found is not None:
                options[name] = _parse(name, *found)
        for name in REQUIRED:
            options.setdefault(name, "")
        return cls(**options)

    @classmethod
    def build(cls, config: CMAuthConfig | None, options: CMAuthOptions) -> CMAuthConfig:
        """Merge ``config=``, keywords and the environment: keywords override the others."""
        given = {}
        if config is not None:
            # An option with its default was not given: the environment may have another value.
            given = {
                option.name: value
                for option in fields(cls)
                if (value := getattr(config, option.name)) != option.default
            }
        return cls.from_env(**{**given, **options})

    def _set(self, name: str, value: Any) -> None:
        """Put an option into its final form, although the object is frozen."""
        object.__setattr__(self, name, value)

    def _check_types(self) -> None:
        for name in ("client_id", "client_secret", "base_url", "prefix"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is a string")
        for name in ("client_id", "client_secret"):
            if not re.fullmatch(r"[\x21-\x7e]+", getattr(self, name)):
                raise ConfigError(f"{name} has characters that no API key has")
        for name in ("redirect_uri", "cookie_name"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} is a string, or None")
        for name in ("background", "cookie_secure"):
            if getattr(self, name) not in (True, False, None):
                raise ConfigError(f"{name} is True, False or None")
        for name in ("auto_login", "cross_site_check"):
            if getattr(self, name) not in (True, False):  # to Python, the text "false" is true
                raise ConfigError(f"{name} is True or False")
        for name in FUNCTIONS:
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigError(f"{name} is a function, or None")

    def _checked_secret_keys(self) -> tuple[str, ...]:
        keys = _strings("secret_key", self.secret_key)
        for key in keys:
            if len(key) < 32 or len(set(key)) < 8 or _is_repetition(key):
                raise ConfigError(
                    "secret_key is too weak: give at least 32 random characters, such as "
                    "python -c 'import secrets; print(secrets.token_urlsafe(48))' prints"
                )
            if key == self.client_secret:
                raise ConfigError(
                    "secret_key equals client_secret: give a random value of its own, so that "
                    "one can be changed without the other"
                )
        return keys

    def _checked_base_url(self, example: str) -> str:
        parts = _split("base_url", self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"base_url needs a scheme and a host: {example} for example")
        # urlsplit() takes "user" for the host of "https://user:12/34@host".
        if "@" in self.base_url or parts.query or parts.fragment:
            raise ConfigError("base_url is scheme, host and port: no user, query or fragment")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            _warn(
                "base_url is http:// outside loopback: the API key and every token travel in "
                "the clear; use https://"
            )
        return self.base_url.rstrip("/")

    def _checked_origins(self) -> tuple[str, ...]:
        given = _strings("trusted_origins", self.trusted_origins)
        origins = tuple(normal_origin(origin.removesuffix("/")) for origin in given)
        for number, origin in enumerate(origins, 1):
            if not origin:
                raise ConfigError(
                    f"trusted_origins has no origin in place {number}: give scheme, host and port "
                    "alone, https://app.example.com for example, without a path or *"
                )
            parts = urlsplit(origin)
            if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
                _warn(
                    "trusted_origins has an http:// origin outside loopback: anybody on the "
                    "network can pose as it; use https://"
                )
        return origins

    def _check_redirect_uri(self) -> None:
        if self.redirect_uri is None:
            return
        parts = _split("redirect_uri", self.redirect_uri)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "redirect_uri is not absolute: give the whole callback URL, "
                f"https://your.host{self.prefix}/callback for example"
            )
        if "@" in self.redirect_uri.partition("?")[0]:
            raise ConfigError(
                "redirect_uri has a user or an @: it is sent to CameraManager and to every browser"
            )
        if parts.fragment or not self.redirect_uri.isascii() or not self.redirect_uri.isprintable():
            raise ConfigError("redirect_uri has a fragment or characters that no URL has")
        if not parts.path.endswith(f"{self.prefix}/callback"):
            raise ConfigError(
                f"redirect_uri has to end in {self.prefix}/callback, where the middleware "
                "listens; change redirect_uri or prefix"
            )
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            _warn(
                "redirect_uri is http:// outside loopback: login codes and session cookies "
                "travel in the clear; use https://"
            )

    def _check_paths(self) -> None:
        if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", self.prefix) or "/." in self.prefix:
            raise ConfigError("prefix is a path such as /auth, without a slash at its end")
        for number, path in enumerate(self.exempt, 1):
            if not path.startswith("/") or "*" in path.removesuffix("/*"):
                raise ConfigError(
                    f"exempt has no path in place {number}: each starts with / and may end in /* "
                    "for a subtree"
                )
            if re.search(r"[?#]|%[0-9A-Fa-f]{2}|\s$", path):
                raise ConfigError(
                    f"exempt has more than a path in place {number}: paths are compared as the "
                    "application routes them, decoded and without a query: /café, not /caf%C3%A9"
                )

    def _check_allowed(self) -> None:
        for name in ("allow_emails", "allow_accounts"):
            given = getattr(self, name)
            if given is None:
                continue
            listed = (given,) if isinstance(given, str | int) else tuple(given)
            values = _strings(name, [str(item).strip() for item in listed])
            if not values or "" in values:
                # An empty variable is a mistake, and must not let every user in.
                raise ConfigError(f"{name} is empty: name who may come in, or leave it out")
            self._set(name, values)
        for number, address in enumerate(self.allow_emails or (), 1):
            if not _ADDRESS.fullmatch(str(address)):
                raise ConfigError(
                    f"allow_emails has no address in place {number}: give one such as "
                    "anna@example.com, or *@example.com for a whole domain"
                )
        for number, account in enumerate(self.allow_accounts or (), 1):
            if not str(account).isalnum():
                raise ConfigError(f"allow_accounts has no account id in place {number}")

    def _check_brand(self) -> None:
        name, logo = self.app_name, self.app_logo
        if name is not None and not (
            isinstance(name, str)
            and name.strip()
            and name.isprintable()
            and len(name) <= _MOST_NAME
        ):
            raise ConfigError(f"app_name is a line of text, of up to {_MOST_NAME} characters")
        if logo is None:
            return
        if not isinstance(logo, str):
            raise ConfigError("app_logo is a string, or None")
        is_path = _LOGO_PATH.fullmatch(logo) and is_local(logo.partition("?")[0])
        is_data = len(logo) <= _MOST_LOGO and _LOGO_DATA.fullmatch(logo)
        if not is_path and not is_data:
            raise ConfigError(
                "app_logo is a path of the application, /static/logo.svg for example, or a data: "
                "URI of an image in base64, of up to 64 kB"
            )

    def _check_cookie(self) -> None:
        name = self.cookie_name
        if name is None:
            return
        if not _TOKEN.match(name) or len(name) > 64:
            raise ConfigError("cookie_name is a token of letters, digits, - and _ (RFC 6265)")
        if not needs_https(name):
            return
        if self.cookie_secure is False:
            raise ConfigError(
                "cookie_name needs a secure cookie by its prefix: drop cookie_secure=False"
            )
        if self.cookie_secure is None and urlsplit(self.redirect_uri or "").scheme == "http":
            _warn(
                "cookie_name needs https by its prefix, and redirect_uri is http: browsers refuse "
                "the cookie; use https, or give a plain name, which gets __Host- by itself there"
            )
        elif not name.lower().startswith("__host-"):
            _warn(
                "cookie_name: a neighbouring host may set a cookie of this name; give a "
                "plain name, which gets __Host- on https by itself"
            )


def environment_options() -> list[str]:
    """Return the names of the options that a variable can set."""
    return [option.name for option in fields(CMAuthConfig) if option.name not in FUNCTIONS]


def unknown_variables() -> Iterator[environment.Unknown]:
    """Yield each variable that looks like an option but sets none."""
    return environment.unknown(environment_options(), FUNCTIONS)


def log_unknown_variables() -> None:
    """Log each variable that is surely meant for an option, and has no effect."""
    for found in unknown_variables():
        if found.option in FUNCTIONS:
            log("variable_for_code", variable=found.variable, advice=only_in_code(found.option))
        elif found.option:  # a Service of Kubernetes may set others that begin so
            log("variable_unknown", variable=found.variable, option=found.meant)


def only_in_code(option: str) -> str:
    """Return the sentence on an option that no variable can set."""
    instead = "; did you mean CM_AUTH_ALLOW_EMAILS or CM_AUTH_ALLOW_ACCOUNTS?"
    return f"{option} is a function, given in code only{instead if option == 'allow' else ''}"


def _alike(name: str, known: Iterable[str]) -> str:
    alike = environment.most_alike(name, known)
    return f" (did you mean {alike[0]}?)" if alike else ""


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)  # where the options are given


def _is_repetition(key: str) -> bool:
    """True if a key repeats one piece over and over ("change-me-change-me-…")."""
    return any(key[period:] == key[:-period] for period in range(1, len(key) // 2 + 1))


def _missing(names: list[str]) -> str:
    """Return the sentence that names all that is missing, and one for each misspelt variable."""
    variables = [environment.variable(name) for name in names]
    misspelt = "".join(
        f"; {found.variable} is set: did you mean {found.meant}?"
        for found in unknown_variables()
        if found.option in names
    )
    if len(names) == 1:
        return f"{names[0]} is missing: give it as a keyword or in {variables[0]}{misspelt}"
    return f"{_and(names)} are missing: give them as keywords or in {_and(variables)}{misspelt}"


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _parse(name: str, value: str, source: str) -> Any:
    if name in LISTS:
        return tuple(part.strip() for part in SEPARATOR.split(value) if part.strip())
    if name in _SWITCHES:
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise ConfigError(f"{source} is true or false")
    if name == "revalidate" and value.lower() == "none":
        return None
    return value


def _strings(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} is a string or several strings")
    values = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(item, str) for item in values):
        raise ConfigError(f"{name} is a string or several strings")
    return values


def _seconds(name: str, value: float | str | timedelta) -> float:
    number: float | None = None
    with contextlib.suppress(TypeError, ValueError):  # their texts quote the value
        number = float(value.total_seconds() if isinstance(value, timedelta) else value)
    if number is None:
        raise ConfigError(f"{name} is a number of seconds or a timedelta")
    least = 0 if name == "refresh_leeway" else 0.001
    if not least <= number < 10**10:
        raise ConfigError(f"{name} has to be a positive number of seconds")
    return number


def _bytes(name: str, value: int | str) -> int:
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ConfigError(f"{name} is a number of bytes")
    return int(text)


def _count(name: str, value: int | str) -> int:
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise ConfigError(f"{name} is a number, 1 or more")
    return int(text)


def _split(name: str, value: str) -> Any:
    if re.search(r"\s", value):  # urlsplit() drops some of them, and others it keeps
        raise ConfigError(f"{name} has a space or a line end in it")
    with contextlib.suppress(ValueError):  # whose text quotes a part of the value
        parts = urlsplit(value)
        _ = parts.port  # raises ValueError if the port is not a number
        return parts
    raise ConfigError(f"{name} is not a URL")


def _is_loopback(host: str) -> bool:
    is_name = host == "localhost" or host.endswith(".localhost")  # RFC 6761 §6.3
    return is_name or host == "::1" or host.startswith("127.")
