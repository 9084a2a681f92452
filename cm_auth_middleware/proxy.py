"""A reverse proxy to a part of the API, for single-page front ends: no token in the browser.

    app.mount("/api/cm", CMProxy(allow=["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*"]))

The session's bearer is added on the server, and renewed on a 401, by the ready client.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import anyio
import httpx2
from starlette.responses import StreamingResponse

from .asgi import ASGIRequest
from .asgi import _send as send_answer
from .errors import CMAuthError, ConfigError, SessionExpiredError
from .http import Answer, Request, problem
from .wsgi import WSGIRequest
from .wsgi import _send as start_answer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Receive, Scope, Send

    from .client import AsyncCMClient, CMClient

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# Without "%": what is judged is what is sent, never another form of it. Without ";": Spring cuts
# path parameters off before it routes.
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@-]+")
_QUERY = re.compile(r"[!\"$-\[\]-~]*")  # printable, without # and the backslash
# What passes, each way. Everything else stays behind: cookies, Authorization, what is for one hop
# only (RFC 9110 §7.6.1), and whatever a browser or a proxy in between adds.
_ASKED = (
    "accept", "accept-encoding", "accept-language", "content-encoding", "content-language",
    "content-length", "content-type", "if-match", "if-modified-since", "if-none-match", "if-range",
    "if-unmodified-since", "range",
)  # fmt: skip
_ANSWERED = (
    "accept-ranges", "content-disposition", "content-encoding", "content-language",
    "content-length", "content-range", "content-type", "etag", "last-modified", "retry-after",
)  # fmt: skip
# What Spring would read: a bearer token (RFC 6750 §2.3), and another method than the one judged.
_FORBIDDEN = frozenset({"access_token", "_method"})
_GUARDS = [
    # HTML from the API, opened as a page, would run as one of ours without this.
    ("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
_CHUNK = 65_536  # bytes that are read of a WSGI request's body at once


class _Relay:
    """What both proxies do alike: judge a request, and choose the headers that pass."""

    def __init__(self, *, allow: Iterable[str]) -> None:
        rules = (allow,) if isinstance(allow, str) else tuple(allow)
        if not rules:
            raise ConfigError("allow is empty: give rules such as 'GET /rest/v2.4/cameras'")
        self._rules = [_rule(rule) for rule in rules]

    def judge(self, request: Request, own_origin: str) -> Answer | str:
        """Return the path and query to ask the API for, or the refusal."""
        if request.comes_from_elsewhere(own_origin):
            return problem(403, "Cross-site request refused")
        path, query = request.path, request.query
        segments = path.split("/")[1:]
        if not path.startswith("/") or not all(map(_is_plain, segments)):
            return problem(400, "This path is not relayed", detail="It could be read in two ways.")
        if not _QUERY.fullmatch(query) or not _FORBIDDEN.isdisjoint(_names(query)):
            return problem(400, "This query is not relayed")
        methods = {method for method, pattern in self._rules if pattern.fullmatch(path)}
        if not methods or any(map(_is_about_tokens, segments)):
            return problem(404, "This path is not relayed", detail="No rule of allow names it.")
        if "GET" in methods:
            methods.add("HEAD")
        if request.method not in methods:
            allowed = ", ".join(sorted(methods))
            return problem(405, "This method is not relayed", ("Allow", allowed))
        return f"{path}?{query}" if query else path


class CMProxy(_Relay):
    """An ASGI app that relays requests to CameraManager's API for the user who is logged in.

    Mount it in an app behind `CMAuthMiddleware`. Bodies are streamed both ways. A session that
    is over gets the middleware's usual answer, an API that cannot be reached 502 or 504 with
    ``application/problem+json``. Requests of other sites are refused, GET too. Redirects are not
    relayed, nor is anything under ``tokens``.

    Args:
        allow: what may be asked for: a method and a path each. ``*`` stands for one segment, at
            the end for a subtree. GET includes HEAD.

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
        is_head = request.method == "HEAD"
        cm = _ready_client(scope.get("state", {}), "cm")
        engine = scope["state"]["cm_auth"]
        target = self.judge(request, engine.async_side.flow.own_origin)
        if isinstance(target, Answer):
            await send_answer(target, send, head=is_head)
            return
        body = _arriving(receive) if _has_body(request) else None
        try:
            answer = await cm.send(_outgoing(cm, request, target, body), stream=True)
        except httpx2.HTTPError as error:
            await send_answer(_unreachable(error), send, head=is_head)
            return
        except _HungUpError:
            return
        try:
            refusal = _refusal(answer)
            if refusal is not None:
                await send_answer(refusal, send, head=is_head)
                return
            response = StreamingResponse(answer.aiter_raw(), answer.status_code)
            response.raw_headers = [
                (name.lower().encode(), value.encode("latin-1")) for name, value in _passing(answer)
            ]
            await response(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await answer.aclose()


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
        target = self.judge(request, engine.thread_side.flow.own_origin)
        if isinstance(target, Answer):
            return start_answer(target, request, start_response)
        if request.header("transfer-encoding") and not environ.get("wsgi.input_terminated"):
            # Nobody would say where the body ends (PEP 3333 knows lengths only).
            return start_answer(problem(411, "Length required"), request, start_response)
        body = _incoming(environ) if _has_body(request) else None
        try:
            answer = cm.send(_outgoing(cm, request, target, body), stream=True)
        except httpx2.HTTPError as error:
            return start_answer(_unreachable(error), request, start_response)
        refusal = _refusal(answer)
        if refusal is not None:
            answer.close()
            return start_answer(refusal, request, start_response)
        start_response(_status_line(answer.status_code), _passing(answer))
        return _Leaving(answer)


class _HungUpError(Exception):
    """The browser left before its request had arrived."""


class _Leaving:
    """The body of an answer on its way out; a server closes it, whether it was read or not."""

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self._parts = answer.iter_raw()

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self._answer.close()


async def _arriving(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _HungUpError
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


def _incoming(environ: WSGIEnvironment) -> Iterator[bytes]:
    stream, length = environ["wsgi.input"], environ.get("CONTENT_LENGTH")
    left = int(length) if length else None
    while left is None or left > 0:
        part = stream.read(_CHUNK if left is None else min(_CHUNK, left))
        if not part:
            return
        left = None if left is None else left - len(part)
        yield part


def _ready_client(state: Any, name: str) -> Any:
    if name not in state:
        raise CMAuthError("no client here: the proxy has to be mounted behind the middleware")
    if state[name] is None:
        raise SessionExpiredError("nobody is logged in")
    return state[name]


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


def _passing(answer: httpx2.Response) -> list[tuple[str, str]]:
    answer.headers.encoding = "latin-1"  # byte for byte, as ASGI and WSGI want them
    dropped = _named_in_connection(answer.headers.get("connection"))
    headers = [
        (name.title(), answer.headers[name])
        for name in _ANSWERED
        if name in answer.headers and name not in dropped
    ]
    if "content-type" not in answer.headers and answer.status_code not in (204, 304):
        headers.append(("Content-Type", "application/octet-stream"))
    cache = answer.headers.get("cache-control")
    if cache is not None:  # without it the middleware says no-store
        words = [word.strip() for word in cache.split(",")]
        kept = [w for w in words if w.lower().partition("=")[0] not in ("public", "s-maxage")]
        headers.append(("Cache-Control", ", ".join(dict.fromkeys(["private", *kept]))))
    return [*headers, *_GUARDS]


def _refusal(answer: httpx2.Response) -> Answer | None:
    if answer.status_code == 401:  # that of the very newest token: not the user's fault
        return problem(502, "CameraManager refused the access token", detail="Try again.")
    if answer.is_redirect and answer.status_code != 304:
        return problem(502, "CameraManager answered with a redirect", detail="None is relayed.")
    return None


def _unreachable(error: httpx2.HTTPError) -> Answer:
    if isinstance(error, httpx2.TimeoutException):
        return problem(504, "CameraManager did not answer in time")
    return problem(502, "CameraManager cannot be reached")


def _named_in_connection(value: str | None) -> set[str]:
    return {name.strip().lower() for name in (value or "").split(",")}


def _is_plain(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != ""


def _is_about_tokens(segment: str) -> bool:
    return segment.lower().partition(".")[0] == "tokens"  # Spring may route "tokens.json" alike


def _names(query: str) -> list[str]:
    return [name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)]


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


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"
