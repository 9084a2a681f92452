"""A reverse proxy to a part of the API, for single-page front ends: no token in the browser.

    app.mount("/api/cm", CMProxy(allow=["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*"]))

The client of the request adds the session's bearer token on the server, and renews it on a 401.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from http.client import responses
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import anyio
import httpx2
from starlette.responses import StreamingResponse

from .asgi import ASGIRequest
from .asgi import _send as send_asgi_response
from .errors import CMAuthError, ConfigError, SessionExpiredError
from .web.asking import opens_document
from .web.request import Request
from .web.response import problem
from .wsgi import WSGIRequest
from .wsgi import _send as send_wsgi_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send

    from .client import AsyncCMClient, CMClient
    from .web.origin import Origins

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# Without "%": the path is judged in the form in which it is sent. Without ";": Spring cuts path
# parameters off before it routes.
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@-]+")
_QUERY = re.compile(r"[!\"$-\[\]-~]*")  # printable, without # and the backslash
_LENGTH = re.compile(r"[0-9]{1,18}")  # RFC 9110 §8.6; int() also accepts "+1", "1_0" and "١"
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r"\"[^\"\\\x00-\x1f\x7f]*\""
_MEDIA_TYPE = re.compile(  # RFC 9110 §8.3.1, without a second one after a comma
    rf"{_WORD}/{_WORD}(?:[ \t]*+;[ \t]*+(?:{_WORD}=(?:{_WORD}|{_QUOTED}))?+)*+"
)
# Spring reads parameters such as _method and access_token from bodies of these types.
_FORM = re.compile(r"form-urlencoded|multipart", re.IGNORECASE)
# The headers that are relayed, each way. All others are dropped: cookies, Authorization, those for
# one hop only (RFC 9110 §7.6.1), and any that a browser or a proxy in between adds.
_ASKED = (
    "accept", "accept-encoding", "accept-language", "content-encoding", "content-language",
    "content-length", "content-type", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "range",
)  # fmt: skip
_ANSWERED = (
    "accept-ranges", "content-disposition", "content-encoding", "content-language",
    "content-length", "content-range", "content-type", "etag", "last-modified", "retry-after",
)  # fmt: skip
# Parameters that Spring reads: a bearer token (RFC 6750 §2.3), and a method that replaces the
# request's.
_FORBIDDEN = frozenset({"access_token", "_method"})
_GUARDS = [
    # Without it, HTML from the API that is opened as a page runs as a page of the application.
    ("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_CHUNK = 65_536  # bytes that are read at once from a WSGI request's body


class _Relay:
    """Judges requests for both proxies."""

    def __init__(self, *, allow: Iterable[str]) -> None:
        rules = (allow,) if isinstance(allow, str) else tuple(allow)
        if not rules:
            raise ConfigError("allow is empty: give rules such as 'GET /rest/v2.4/cameras'")
        self._rules = [_rule(rule) for rule in rules]

    def judge(self, request: Request, origins: Origins) -> str:
        """Return the path and query of the request to the API, or raise `_RefusedError`."""
        # A person may open a picture from a mail: whoever linked to it cannot read it.
        if not opens_document(request) and origins.refuse(request, including_reads=True):
            raise _RefusedError(403, "Cross-site request refused")
        path, query = request.path, request.query
        segments = path.split("/")[1:]
        if not path.startswith("/") or not all(map(_is_plain, segments)):
            detail = "It could be read in two ways."
            raise _RefusedError(400, "This path is not relayed", detail=detail)
        names = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if not _QUERY.fullmatch(query) or names & _FORBIDDEN:
            raise _RefusedError(400, "This query is not relayed")
        methods = {method for method, pattern in self._rules if pattern.fullmatch(path)}
        if not methods or any(map(_is_about_tokens, segments)):
            detail = "No rule of allow names it."
            raise _RefusedError(404, "This path is not relayed", detail=detail)
        if "GET" in methods:
            methods.add("HEAD")
        if request.method not in methods:
            allowed = ", ".join(sorted(methods))
            raise _RefusedError(405, "This method is not relayed", ("Allow", allowed))
        return f"{path}?{query}" if query else path

    def judge_length(self, request: Request) -> int | None:
        """Return the length that the request states for its body; None if it states no length."""
        length = request.header("content-length") or ""
        coding = request.header("transfer-encoding") or ""
        if coding and (length or coding.strip(" \t").lower() != "chunked"):  # RFC 9112 §6.1
            detail = "Its end is ambiguous."
            raise _RefusedError(400, "This body is not relayed", detail=detail)
        if length and not _LENGTH.fullmatch(length):
            detail = "Its length is not a number."
            raise _RefusedError(400, "This body is not relayed", detail=detail)
        return int(length) if length else None

    def judge_kind(self, request: Request) -> None:
        """Refuse a body that is a form, or that a server may take for one."""
        kind = (request.header("content-type") or "").strip(" \t")
        if kind and (not _MEDIA_TYPE.fullmatch(kind) or _FORM.search(kind)):
            detail = "Forms, and types that may be taken for one, are not: send JSON."
            raise _RefusedError(415, "This kind of body is not relayed", detail=detail)


class CMProxy(_Relay):
    """An ASGI app that relays requests to CameraManager's API for the user who is logged in.

    Mount it in an app behind `CMAuthMiddleware`. Bodies are streamed both ways. After the end of
    the session, the response is the middleware's usual one; if the API cannot be reached, it is
    502 or 504 with ``application/problem+json``. Requests of other sites are refused, also GET.
    Redirects, paths under ``tokens`` and the bodies of forms are not relayed. If a body breaks off,
    the API never gets the whole of it, and a client that is still there gets 400.

    Args:
        allow: the requests that are relayed, each a method and a path. ``*`` stands for one
            segment, at the end for a subtree. GET includes HEAD.

    Raises:
        ConfigError: a rule is wrong; the message names it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay one request."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # policy (RFC 6455 §7.4.1)
            return
        request = ASGIRequest(scope)
        cm = _ready_client(scope.get("state", {}), "cm")
        engine = scope["state"]["cm_auth"]
        try:
            target = self.judge(request, engine.async_services.gate.origins)
            length = self.judge_length(request)
            body = await _body(request, receive, length, scope.get("http_version", ""))
            if body is not None:
                self.judge_kind(request)
            try:
                answer = await cm.send(_outgoing(cm, request, target, body), stream=True)
            except httpx2.HTTPError as error:
                raise _unreachable(error) from None
            try:
                response = StreamingResponse(answer.aiter_raw(), answer.status_code)
                response.raw_headers = [
                    (name.lower().encode(), value.encode("latin-1"))
                    for name, value in _relayed_headers(answer)
                ]
                await response(scope, receive, send)
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()
        except _RefusedError as refused:
            await send_asgi_response(refused.response, send, head=request.method == "HEAD")
        except _HungUpError:
            return


class CMWSGIProxy(_Relay):
    """The same for WSGI; see `CMProxy`.

    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/api/cm": CMWSGIProxy(allow=[…])})
    CMAuth(app, …)
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Relay one request."""
        request = WSGIRequest(environ)
        cm = _ready_client(environ, "cm_auth.client")
        engine = environ["cm_auth.engine"]
        try:
            target = self.judge(request, engine.thread_services.gate.origins)
            length = self.judge_length(request)
            body = _wsgi_body(request, environ, length)
            if body is not None:
                if length is None and not _tells_the_end(environ):
                    raise _RefusedError(411, "Length required")
                self.judge_kind(request)
            try:
                answer = cm.send(_outgoing(cm, request, target, body), stream=True)
            except httpx2.HTTPError as error:
                raise _unreachable(error) from None
            try:
                headers = _relayed_headers(answer)
            except _RefusedError:
                answer.close()
                raise
        except _RefusedError as refused:
            return send_wsgi_response(refused.response, request, start_response)
        status = answer.status_code
        start_response(f"{status} {responses.get(status, 'Unknown')}", headers)
        return _StreamedBody(answer)


class _HungUpError(Exception):
    """The browser disconnected before its request had arrived."""


class _RefusedError(Exception):
    """A request, or the API's answer to it, is not relayed; the browser gets `response` instead."""

    def __init__(self, status: int, title: str, *headers: tuple[str, str], **members: str) -> None:
        super().__init__(title)
        self.response = problem(status, title, *headers, **members)


def _broken() -> _RefusedError:
    """Return the error for a body that is shorter than announced, or could not be read."""
    return _RefusedError(400, "The body broke off", detail="Nothing was done with it.")


class _StreamedBody:
    """The body of a relayed response, which the server closes whether it was read or not."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self._parts = answer.iter_raw()

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self._answer.close()


async def _body(
    request: Request, receive: Receive, length: int | None, version: str
) -> AsyncIterator[bytes] | None:
    parts = _arriving(receive, length)
    if _has_body(request):
        return parts
    if not _says_no_lengths(version):
        return None
    first = await anext(parts, b"")
    return _resumed(first, parts) if first else None


def _wsgi_body(
    request: Request, environ: WSGIEnvironment, length: int | None
) -> Iterator[bytes] | None:
    parts = _incoming(environ["wsgi.input"], length)
    if _has_body(request):
        return parts
    version = environ.get("SERVER_PROTOCOL", "")
    if not (_says_no_lengths(version) and environ.get("wsgi.input_terminated")):
        return None
    first = next(parts, b"")
    return chain([first], parts) if first else None


def _tells_the_end(environ: WSGIEnvironment) -> bool:
    """True if the server reports when a body without a length breaks off."""
    # PEP 3333 only knows lengths; granian reports both as ended.
    is_told = environ.get("wsgi.input_terminated", False)
    return bool(is_told) and environ.get("SERVER_SOFTWARE") != "Granian"


async def _arriving(receive: Receive, length: int | None) -> AsyncIterator[bytes]:
    arrived, is_more = 0, True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUpError
        part, is_more = message.get("body", b""), message.get("more_body", False)
        arrived += len(part)
        if length is not None and (arrived > length or (arrived < length and not is_more)):
            raise _broken()  # before the last part, so that the API gets no whole body
        if part:
            yield part


async def _resumed(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def _incoming(stream: Any, length: int | None) -> Iterator[bytes]:
    left, read = length, stream.read
    if left is None and isinstance(stream, io.RawIOBase):
        # werkzeug's development server shortens the buffer that it fills when a chunk breaks off,
        # and Python's own read() then fills the rest with whatever is in memory. A BufferedReader
        # gives it a buffer that cannot be shortened, which raises an error.
        read = io.BufferedReader(stream).read1
    while left is None or left > 0:
        try:
            part = read(_CHUNK if left is None else min(_CHUNK, left))
        except Exception:
            # Each server raises other errors here, and may report the end after one.
            raise _broken() from None
        if not part:
            if left is None:
                return
            raise _broken()
        left = None if left is None else left - len(part)
        yield part


def _ready_client(state: Any, name: str) -> Any:
    if name not in state:
        raise CMAuthError("there is no client here: mount the proxy behind the middleware")
    if state[name] is None:
        raise SessionExpiredError("no user is logged in")
    return state[name]


def _says_no_lengths(version: str) -> bool:
    """True for HTTP/2 and HTTP/3, where a body needs neither of the headers of HTTP/1.1."""
    return version.removeprefix("HTTP/")[:1] in ("2", "3")


def _has_body(request: Request) -> bool:
    return bool(request.header("content-length") or request.header("transfer-encoding"))


def _outgoing(
    cm: AsyncCMClient | CMClient, request: Request, target: str, body: Any
) -> httpx2.Request:
    dropped = _named_in_connection(request.header("connection"))
    headers = {b"accept": b"*/*", b"accept-encoding": b"identity"}
    for name in _ASKED:
        value = request.header(name)
        if value is not None and name not in dropped:
            headers[name.encode()] = value.encode("latin-1")
    return cm.build_request(request.method, target, headers=headers, content=body)


def _relayed_headers(answer: httpx2.Response) -> list[tuple[str, str]]:
    """Return the headers that the browser gets; raise `_RefusedError` if it gets no answer."""
    if answer.status_code == 401:  # even with the newest token: not the user's fault
        raise _RefusedError(502, "CameraManager refused the access token", detail="Try again.")
    if answer.is_redirect and answer.status_code != 304:
        detail = "Redirects are not relayed."
        raise _RefusedError(502, "CameraManager answered with a redirect", detail=detail)
    answer.headers.encoding = "latin-1"  # byte for byte, as ASGI and WSGI require
    dropped = _named_in_connection(answer.headers.get("connection"))
    headers = [
        (name.title(), answer.headers[name])
        for name in _ANSWERED
        if name in answer.headers and name not in dropped
    ]
    if "content-type" not in answer.headers and answer.status_code not in (204, 304):
        headers.append(("Content-Type", "application/octet-stream"))
    cache = answer.headers.get("cache-control")
    if cache is not None:  # without it the middleware adds no-store
        words = [word.strip() for word in cache.split(",")]
        kept = [w for w in words if w.lower().partition("=")[0] not in ("public", "s-maxage")]
        headers.append(("Cache-Control", ", ".join(dict.fromkeys(["private", *kept]))))
    return [*headers, *_GUARDS]


def _unreachable(error: httpx2.HTTPError) -> _RefusedError:
    if isinstance(error, httpx2.TimeoutException):
        return _RefusedError(504, "CameraManager did not answer in time")
    return _RefusedError(502, "CameraManager cannot be reached")


def _named_in_connection(value: str | None) -> set[str]:
    return {name.strip().lower() for name in (value or "").split(",")}


def _is_plain(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != ""


def _is_about_tokens(segment: str) -> bool:
    return segment.lower().partition(".")[0] == "tokens"  # Spring may route "tokens.json" alike


def _rule(text: str) -> tuple[str, re.Pattern[str]]:
    method, _, path = text.partition(" ")
    segments = path.split("/")[1:]
    if (
        method not in _METHODS
        or not path.startswith("/")
        or not all(map(_is_plain, segments))
        or any("*" in segment and segment != "*" for segment in segments)
    ):
        raise ConfigError(
            f"allow has the rule {text!r}: it has to be a method and a path, such as "
            "'GET /rest/v2.4/cameras/*'; * stands for a whole segment"
        )
    parts = ["[^/]+" if segment == "*" else re.escape(segment) for segment in segments]
    if segments[-1] == "*":
        parts[-1] = ".+"
    return method, re.compile("/" + "/".join(parts))
