"""Check the connection to the server, the API key, the redirect URI and the clock."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Coroutine, Iterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.config import LOOPBACK, CMAuthConfig
from cm_auth_middleware.display import is_certain, shown_url
from cm_auth_middleware.engine import make_oauth_client
from cm_auth_middleware.errors import OAuthError, OperatorError, UnavailableError
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.runtime.threads import ThreadRuntime
from cm_auth_middleware.sessions.cookie import needs_https
from cm_auth_middleware.tokens.oauth import OAuthClient
from cm_auth_middleware.tokens.provider import find_provider

T = TypeVar("T")

SKEW = 30  # seconds that a clock may be off without a warning
_BELONG_TOGETHER = "Do base_url and provider belong together, and has base_url no path?"
TOO_MUCH_SKEW = 300  # seconds that the middleware tolerates between two servers of one site


def check_redirect_uri(config: CMAuthConfig) -> Iterator[Finding]:
    """Check the redirect URI, and the options of cookies that depend on it."""
    uri = config.redirect_uri
    if uri is None:
        hosts = set(config.allowed_hosts) - set(LOOPBACK)
        if not hosts:
            yield Finding(
                WARNING,
                "redirect_uri",
                "is not set, and allowed_hosts are loopback names: logins work on localhost only",
                f"Set CM_AUTH_REDIRECT_URI=https://your.host{config.prefix}/callback",
            )
        else:
            yield Finding(
                OK, "redirect_uri", f"comes from the request, for {', '.join(sorted(hosts))}"
            )
        return
    parts = urlsplit(uri)
    if parts.netloc == urlsplit(config.base_url).netloc:
        yield Finding(
            ERROR,
            "redirect_uri",
            f"points at {find_provider(config.provider).name} itself",
            "It has to be the address of your application, to which browsers come back.",
        )
    elif not _resolves(parts.hostname or ""):
        host = parts.hostname if is_certain(uri) else "its host"
        yield Finding(WARNING, "redirect_uri", f"this machine does not know {host}")
    else:
        yield Finding(OK, "redirect_uri", shown_url(uri))
    if parts.scheme == "https" and config.cookie_secure is False:
        yield Finding(WARNING, "cookie_secure", "is off although the site is https", "Drop it.")
    if parts.scheme == "http" and config.cookie_secure and parts.hostname != "localhost":
        yield Finding(
            ERROR,
            "cookie_secure",
            "is on, but redirect_uri is http: browsers drop the session cookie",
            "Serve the site by https.",
        )
    name = config.cookie_name or ""
    if parts.scheme == "http" and needs_https(name) and not config.cookie_secure:
        yield Finding(
            ERROR,
            "cookie_name",
            f"is {name}, but redirect_uri is http: browsers refuse the session cookie",
            "Serve the site by https, or give a plain name: on https it gets __Host- by itself.",
        )
    if parts.scheme == "https" and name.startswith("__Secure-"):
        yield Finding(
            WARNING,
            "cookie_name",
            f"is {name}: a neighbouring host may set a cookie of this name",
            "Give a plain name: on https it gets __Host- by itself.",
        )


def check(config: CMAuthConfig) -> Iterator[Finding]:
    """Check the server, and the application if its redirect URI is known."""
    runtime = ThreadRuntime(config.timeout, config.base_url)
    headers = {"Accept": "application/json"}
    provider = find_provider(config.provider)
    url = provider.probe_url(config.base_url)
    shown = shown_url(config.base_url)
    try:
        answer = _ask(runtime.call("GET", url or config.base_url, headers=headers))
    except OSError as error:
        yield Finding(ERROR, "base_url", f"{shown}: {error}")
        return
    if url is None and answer.status_code < 500:  # the key and the login page say more, below
        yield Finding(OK, "base_url", f"{shown} answers")
    elif answer.status_code == 401:
        yield Finding(OK, "base_url", f"{shown} answers as {provider.name} does")
    else:
        yield Finding(
            ERROR,
            "base_url",
            f"{shown} answered {answer.status_code}"
            + (f" where {provider.name} says 401" if url is not None else ""),
            f"Is it the address of {provider.name}, without a path, and is it up?",
        )
        return
    yield from _check_clock(answer.headers.get("Date"), provider.name)
    oauth = make_oauth_client(config, runtime)
    yield from _check_key(config, oauth)
    if config.redirect_uri is not None:
        yield from _check_authorize(config.redirect_uri, oauth, runtime, provider.name)
        yield from _check_callback(config.redirect_uri, runtime)


def _check_key(config: CMAuthConfig, oauth: OAuthClient) -> Iterator[Finding]:
    """Try to exchange a code that cannot exist: the server checks the API key first."""
    name = find_provider(config.provider).name
    uri = config.redirect_uri or "http://localhost/auth/callback"
    try:
        run_sync(oauth.exchange("check0", uri, "0" * 43))
    except OperatorError as error:
        yield Finding(
            ERROR,
            "client_id",
            f"{name} refuses the API key ({error.error})",
            f"Check client_id and client_secret against the key that {name} gave you; or is it a "
            "key of the other platform (provider)?",
        )
    except UnavailableError as error:
        said = f"the API key could not be tried: {error}"
        if error.status == 404:
            yield Finding(ERROR, "client_id", said, _BELONG_TOGETHER)
        else:
            yield Finding(WARNING, "client_id", said)
    except OAuthError:
        yield Finding(OK, "client_id", f"{name} accepts the API key")


def _check_authorize(
    uri: str, oauth: OAuthClient, runtime: ThreadRuntime, name: str
) -> Iterator[Finding]:
    """Request the page that a browser sees at a login."""
    url = oauth.authorization_url(uri, "check", "0" * 43)
    try:
        answer = _ask(runtime.call("GET", url, headers={"Accept": "text/html"}))
    except OSError as error:
        yield Finding(WARNING, "redirect_uri", f"the login page could not be tried: {error}")
        return
    if answer.status_code >= 400:
        advice = f"Register exactly {shown_url(uri)} with the API key."
        yield Finding(
            ERROR,
            "redirect_uri",
            f"{name}'s login page answers {answer.status_code} to this client_id and redirect_uri",
            f"{_BELONG_TOGETHER} {advice}" if answer.status_code == 404 else advice,
        )


def _check_callback(uri: str, runtime: ThreadRuntime) -> Iterator[Finding]:
    """Check that the middleware answers at the redirect URI."""
    try:
        answer = _ask(runtime.call("GET", uri, headers={"Accept": "application/problem+json"}))
    except OSError as error:
        yield Finding(
            OK,
            "application",
            f"nothing answers at redirect_uri, as before the start of the application: {error}",
        )
        return
    kind = answer.headers.get("Content-Type", "")
    if answer.status_code == 400 and kind.startswith("application/problem+json"):
        yield Finding(OK, "application", "the middleware answers at redirect_uri")
    else:
        yield Finding(
            WARNING,
            "application",
            f"redirect_uri answers {answer.status_code}, not as the middleware does",
            "Does the proxy pass the path on unchanged, and is prefix the same in the application?",
        )


def _check_clock(date: str | None, name: str) -> Iterator[Finding]:
    try:
        server_time = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        yield Finding(WARNING, "clock", f"{name} did not say what time it is")
        return
    off = round(abs(time.time() - server_time))
    level = OK if off < SKEW else WARNING if off < TOO_MUCH_SKEW else ERROR
    word = "agrees with" if off < SKEW else f"is {off} seconds off"
    advice = "" if level == OK else "Synchronise it (NTP): logins and sessions expire by it."
    yield Finding(level, "clock", f"{word} {name}'s", advice)


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _ask(call: Coroutine[Any, Any, T]) -> T:
    """Make a call; raise an `OSError` with a reason that helps a person."""
    try:
        return run_sync(call)
    except (httpx2.HTTPError, httpx2.InvalidURL, UnavailableError) as error:
        why = reason(error)
    raise OSError(why)


def reason(error: BaseException) -> str:
    """Return a phrase that says why a call failed, without the URL."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or cause}"
        if isinstance(cause, socket.gaierror):
            return "this machine does not know the name (DNS)"
        if isinstance(cause, ConnectionRefusedError):
            return "the connection was refused: nothing listens there"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.InvalidURL):  # its text quotes a piece of the URL
        return "the host is not a valid name"
    if isinstance(error, UnavailableError | httpx2.TimeoutException):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"
