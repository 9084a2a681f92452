"""The options: read from keywords and the environment, checked once, at construction."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .errors import ConfigError

if TYPE_CHECKING:
    from .options import CMAuthOptions
    from .pages import ErrorPage
    from .session import Session
    from .stores import SessionStore

User = Mapping[str, Any]
Allow = Callable[[User], bool | Awaitable[bool]]
Hook = Callable[["Session"], Any]
ErrorHandler = Callable[["ErrorPage"], "str | bytes | Awaitable[str | bytes | None] | None"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_SCHEMES = (
    "memory",
    "sqlite",
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "rediss+sentinel",
    "redis+cluster",
    "rediss+cluster",
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 §5.6.2
FUNCTIONS = ("allow", "on_login", "on_refresh", "on_logout", "error_handler")  # in no environment
# Separated by commas in the environment.
LISTS = ("secret_key", "exempt", "allowed_hosts", "allow_emails", "allow_accounts")
_SWITCHES = ("cookie_secure", "cross_site_check", "auto_login")
_ADDRESS = re.compile(r"(\*|[^\s@*,:]+)@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class CMAuthConfig:
    """Every option of the middleware.

    An option that is not given is taken from ``CM_AUTH_<OPTION>`` by `from_env` and by the
    middlewares. Times are seconds or `timedelta`; in the environment, several values are
    separated by commas.

    Attributes:
        client_id: The ID of the CameraManager API key.
        client_secret: Its SECRET.
        secret_key: Signs the cookies and seals the sessions: one random string of 32 characters
            or more, or several from oldest to newest (the newest signs, all verify).
        base_url: The API and OAuth server.
        scope: What the application may do for the user: ``read`` or ``write``.
        redirect_uri: The absolute URL of ``/auth/callback``, as browsers see it; from the request
            if not given. Give it behind a proxy.
        prefix: Where ``login``, ``callback``, ``logout`` and ``session`` live.
        exempt: Paths that need no login: ``/health`` exact, ``/static/*`` a subtree; below the
            mount, and never outside of it. A session that exists is still attached there.
        store: Where sessions are kept: ``memory://``, ``sqlite:///path``, ``redis://…``,
            ``rediss://…``, ``unix://…``, or an object with the methods of `SessionStore`.
        idle_timeout: A session that nobody uses ends after this time.
        absolute_timeout: Every session ends after this time.
        refresh_leeway: The access token is renewed this long before it expires.
        timeout: In total, for every call to CameraManager that the middleware itself makes.
        cookie_name: The session cookie, ``cm_auth`` if not given. On https it is called
            ``__Host-cm_auth``, and a name of your own gets ``__Host-`` too, which keeps
            neighbouring hosts from setting it; one that begins with ``__Secure-`` stays, and they
            can.
        cookie_secure: Whether cookies are for https only; if not given, they are where
            `redirect_uri` or the request is https.
        allowed_hosts: Host names that the redirect URI may be derived from.
        cross_site_check: Refuse writes (POST, PUT, …) and WebSockets that another site makes the
            browser send.
        allow: Called with the user (the JSON of ``users/self``), sync or async: may this user come
            in? Asked at the login, of a session that another application opened, and whenever the
            user is read anew.
        allow_emails: Addresses that may come in: ``anna@example.com``, or ``*@example.com`` for all
            of a domain. Everybody if not given. With `allow` and `allow_accounts`, all have to
            agree.
        allow_accounts: Accounts that may come in, by CameraManager's ``accountId``.
        revalidate: The user is read anew, beside a request, when what is known is older than this;
            None, or ``none`` in the environment: after each refresh only.
        on_login: Called with the session after a login, sync or async.
        on_refresh: Called with the session after a refresh.
        on_logout: Called with the session after a logout, also after one by another user's login in
            the same browser.
        auto_login: Send a browser that has no session straight to CameraManager. If off, it sees
            a page with a button first.
        error_handler: Draws the pages that a person may see; called with an `ErrorPage`, returns
            HTML, or None for the page of the package.

    Raises:
        ConfigError: an option is missing or wrong; the message names it and the way out.
    """

    client_id: str = field(repr=False)  # into which the secret is pasted now and then
    client_secret: str = field(repr=False)
    secret_key: str | Iterable[str] = field(repr=False)
    base_url: str = "https://rest.cameramanager.com"
    scope: str = "write"
    redirect_uri: str | None = field(default=None, repr=False)
    prefix: str = "/auth"
    exempt: Iterable[str] = ()
    store: str | SessionStore = field(default="memory://", repr=False)
    idle_timeout: float | timedelta = 7 * 86_400
    absolute_timeout: float | timedelta = 30 * 86_400
    refresh_leeway: float | timedelta = 60
    timeout: float | timedelta = 10
    cookie_name: str | None = None
    cookie_secure: bool | None = None
    allowed_hosts: Iterable[str] = LOOPBACK
    cross_site_check: bool = True
    allow: Allow | None = None
    allow_emails: Iterable[str] | None = None
    allow_accounts: Iterable[str | int] | None = None
    revalidate: float | timedelta | None = 900
    on_login: Hook | None = None
    on_refresh: Hook | None = None
    on_logout: Hook | None = None
    auto_login: bool = True
    error_handler: ErrorHandler | None = None

    def __post_init__(self) -> None:
        for name in ("client_id", "client_secret", "secret_key"):
            if not getattr(self, name):
                raise ConfigError(
                    f"{name} is missing: give it as a keyword or in CM_AUTH_{name.upper()}"
                )
        self._check_types()
        self._set("secret_key", self._checked_secret_keys())
        for name in ("exempt", "allowed_hosts"):
            self._set(name, _strings(name, getattr(self, name)))
        # No message quotes a value: one that is wrong may be of another option, or a password.
        for number, host in enumerate(self.allowed_hosts, 1):
            if not _HOST.fullmatch(host):
                raise ConfigError(
                    f"allowed_hosts has no host name in place {number}: give names alone, without "
                    "scheme, port or *"
                )
        for name in ("idle_timeout", "absolute_timeout", "refresh_leeway", "timeout"):
            self._set(name, _seconds(name, getattr(self, name)))
        if self.revalidate is not None:
            self._set("revalidate", _seconds("revalidate", self.revalidate))
        self._check_allowed()
        if self.scope not in ("read", "write"):
            raise ConfigError("scope is 'read' or 'write'")
        self._set("base_url", self._checked_base_url())
        self._check_paths()
        self._check_redirect_uri()
        self._check_cookie()
        store = self.store
        if isinstance(store, str) and store.partition(":")[0] not in _SCHEMES:
            raise ConfigError(
                "store has an unknown scheme: give memory://, sqlite:///path, redis://, "
                "rediss://, unix:// or a store object"
            )

    @classmethod
    def from_env(cls, **options: Any) -> CMAuthConfig:
        """Build a configuration from ``CM_AUTH_<OPTION>`` variables; keywords override them."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise ConfigError(
                f"unknown option {', '.join(unknown)}; the options are {', '.join(sorted(known))}"
            )
        for name in known - options.keys():
            value = os.environ.get(f"CM_AUTH_{name.upper()}")
            if value is not None and name not in FUNCTIONS:
                options[name] = _parse(name, value)
        for name in ("client_id", "client_secret", "secret_key"):
            options.setdefault(name, "")
        return cls(**options)

    @classmethod
    def build(cls, config: CMAuthConfig | None, options: CMAuthOptions) -> CMAuthConfig:
        """Merge ``config=`` and keywords as both middlewares do: keywords override."""
        given = {}
        if config is not None:
            # What is as it is by default was not given: the environment may say otherwise.
            given = {
                option.name: value
                for option in fields(cls)
                if (value := getattr(config, option.name)) != option.default
            }
        return cls.from_env(**{**given, **options})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(
            self, name, value
        )  # the one place where a frozen value is made canonical

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
        if self.cookie_secure not in (True, False, None):
            raise ConfigError("cookie_secure is True, False or None")
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

    def _checked_base_url(self) -> str:
        parts = _split("base_url", self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                "base_url needs a scheme and a host: https://rest.cameramanager.com for example"
            )
        # Of "https://user:12/34@host", urlsplit makes the host "user".
        if "@" in self.base_url or parts.query or parts.fragment:
            raise ConfigError("base_url is scheme, host and port: no user, query or fragment")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            warnings.warn(
                "base_url is http:// outside loopback: the API key and every token travel in "
                "the clear; use https://",
                stacklevel=5,
            )
        return self.base_url.rstrip("/")

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
            warnings.warn(
                "redirect_uri is http:// outside loopback: login codes and session cookies "
                "travel in the clear; use https://",
                stacklevel=5,
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

    def _check_allowed(self) -> None:
        for name in ("allow_emails", "allow_accounts"):
            given = getattr(self, name)
            if given is None:
                continue
            listed = (given,) if isinstance(given, str | int) else tuple(given)
            values = _strings(name, [str(item).strip() for item in listed])
            if not values or "" in values:
                # An empty variable is a mistake, and must not let everybody in.
                raise ConfigError(f"{name} is empty: name who may come in, or leave it out")
            self._set(name, values)
        for number, address in enumerate(self.allow_emails or (), 1):
            if not _ADDRESS.fullmatch(str(address)):
                raise ConfigError(
                    f"allow_emails has no address in place {number}: give such as "
                    "anna@example.com, or *@example.com for all of a domain"
                )
        for number, account in enumerate(self.allow_accounts or (), 1):
            if not str(account).isalnum():
                raise ConfigError(f"allow_accounts has no id of an account in place {number}")

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
            warnings.warn(
                "cookie_name needs https by its prefix, and redirect_uri is http: browsers refuse "
                "the cookie; use https, or give a plain name, which gets __Host- by itself there",
                stacklevel=5,
            )
        elif not name.lower().startswith("__host-"):
            warnings.warn(
                "cookie_name: a neighbouring host may set a cookie of this name; give a "
                "plain name, which gets __Host- on https by itself",
                stacklevel=5,
            )


def needs_https(name: str) -> bool:
    """True if browsers refuse a cookie of this name without ``Secure``, whatever its letters' case.

    Source: RFC 6265bis §4.1.3 and §5.7.
    """
    return name.lower().startswith(("__host-", "__secure-"))


def _is_repetition(key: str) -> bool:
    """Whether a key says one thing over and over ("change-me-change-me-…")."""
    return any(key[period:] == key[:-period] for period in range(1, len(key) // 2 + 1))


def seconds(value: float | timedelta) -> float:
    """A time of the configuration in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def _parse(name: str, value: str) -> Any:
    if name in LISTS:
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if name in _SWITCHES:
        if value.lower() in _TRUE:
            return True
        if value.lower() in _FALSE:
            return False
        raise ConfigError(f"CM_AUTH_{name.upper()} is true or false")
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
    with contextlib.suppress(TypeError, ValueError):  # which would quote the value in the chain
        number = float(value.total_seconds() if isinstance(value, timedelta) else value)
    if number is None:
        raise ConfigError(f"{name} is a number of seconds or a timedelta")
    least = 0 if name == "refresh_leeway" else 0.001
    if not least <= number < 10**10:
        raise ConfigError(f"{name} has to be a positive number of seconds")
    return number


def _split(name: str, value: str) -> Any:
    with contextlib.suppress(ValueError):  # which would quote a part of the value in the chain
        parts = urlsplit(value)
        _ = parts.port  # raises on a port that is no number
        return parts
    raise ConfigError(f"{name} is not a URL")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")
