"""A reverse proxy to a part of the API, for single-page front ends: no token in the browser.

    app.mount("/api/cm", CMProxy(allow=["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*"]))

The client of the request adds the session's bearer token on the server, and renews it on a 401.
What of it is kept for some seconds, and for whom, says `proxy_cache`.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import threading
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from http.client import responses
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import anyio
import httpx2
from starlette.responses import StreamingResponse

from .asgi import ASGIRequest, send_and_read_on
from .asgi import _send as send_asgi_response
from .errors import CMAuthError, ConfigError, SessionExpiredError
from .proxy_cache import MOST_KEPT, Answer, ProxyCache
from .runtime.after_fork import after_fork
from .runtime.run_sync import run_sync
from .web.asking import opens_document
from .web.conditional import choose
from .web.request import Request
from .web.response import Response, problem
from .wsgi import WSGIRequest
from .wsgi import _send as send_wsgi_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from starlette.types import Message, Receive, Scope, Send

    from .client import AsyncCMClient, CMClient
    from .engine import Services
    from .proxy_cache import Given
    from .runtime.base import Runtime
    from .sessions.session import Session

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
_ANSWERED = {
    name: name.title()
    for name in (
        "accept-ranges", "content-disposition", "content-encoding", "content-language",
        "content-length", "content-range", "content-type", "etag", "last-modified", "retry-after",
    )
}  # fmt: skip
# Parameters that Spring reads: a bearer token (RFC 6750 §2.3), and a method that replaces the
# request's.
_FORBIDDEN = frozenset({"access_token", "_method"})
_GUARDS = [
    # Without it, HTML from the API that is opened as a page runs as a page of the application.
    ("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
]
# A range that the client accepts anything in, of any rank but none (RFC 9110 §12.5.1).
_ANYTHING = re.compile(
    r"(?:^|,)[ \t]*\*/\*[ \t]*(?:;[ \t]*q=(?!0(?:\.0*)?[ \t]*(?:,|$))[0-9.]+[ \t]*)?(?:,|$)"
)
_STREAMS = 32  # of one session at a time: a person's browser opens a few
_PICTURE = 60.0  # seconds until the next picture of a stream; a preview has one in 16 at least
_SHORT = 1_000_000  # bytes of a body for which it is not worth looking if its browser leaves
_QUICK = 1.0  # seconds until it is
_USED_WHOLE = ("image/", "application/json")
_HELD, _HELD_FOR = 262_144, 0.05  # bytes and seconds that parts of such a body wait for the next
_CHUNK = 65_536  # bytes that are read at once from a WSGI request's body


class _Relay:
    """Judges and counts requests for both proxies."""

    def __init__(
        self,
        *,
        allow: Iterable[str],
        streams_per_session: int = _STREAMS,
        cache: Mapping[str, float] | None = None,
        media: Iterable[str] = (),
    ) -> None:
        rules = (allow,) if isinstance(allow, str) else tuple(allow)
        if not rules:
            raise ConfigError("allow is empty: give rules such as 'GET /rest/v2.4/cameras'")
        self._rules = [_rule(rule) for rule in rules]
        streams = (media,) if isinstance(media, str) else tuple(media)
        self._media = [
            (method, re.compile(f"/[^/]+{pattern.pattern}"))
            for method, pattern in (_rule(rule, "media") for rule in streams)
        ]
        if streams_per_session < 1:
            raise ConfigError("streams_per_session is too small: give 1 or more")
        self._streams_per_session = streams_per_session
        self._kept = [self._kept_path(*item) for item in (cache or {}).items()]
        self._caches: weakref.WeakKeyDictionary[Services, ProxyCache] = weakref.WeakKeyDictionary()
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Count anew: what the parent process relays is not this one's."""
        # A body that no server closed leaves when Python drops it: perhaps here, in this thread.
        self._lock = threading.RLock()
        self._under_way: dict[str, set[object]] = {}  # the requests of each session that has any

    def enter(self, session: Session) -> Callable[[], None]:
        """Count a request until the function that is returned is called, or refuse it."""
        key, under_way, lock, request = session.record_id, self._under_way, self._lock, object()

        def leave() -> None:
            with lock:
                own.discard(request)
                if not own and under_way.get(key) is own:
                    del under_way[key]

        with lock:
            own = under_way.get(key, set())
            if len(own) >= self._streams_per_session:
                detail = f"This session has {len(own)} under way in this process."
                again = ("Retry-After", "1")
                raise _RefusedError(429, "Too many requests at once", again, detail=detail)
            own.add(request)
            under_way[key] = own
        return leave

    def judge_origin(self, request: Request, services: Services, session: Session) -> None:
        """Raise `_RefusedError` if the page of another site sent a request, a GET included."""
        # A person may open a picture from a mail: whoever linked to it cannot read it.
        if not opens_document(request) and services.gate.origins.refuse(
            request, including_reads=True
        ):
            services.sessions.audit("request_denied", session, request.address, reason="cross_site")
            raise _RefusedError(403, "Cross-site request refused")

    def judge(self, request: Request) -> str:
        """Return the path and query of the request to the API, or raise `_RefusedError`."""
        path, query = request.path, request.query
        segments = path.split("/")[1:]
        if not path.startswith("/") or not all(map(_is_plain, segments)):
            detail = "It could be read in two ways."
            raise _RefusedError(400, "This path is not relayed", detail=detail)
        names = {name.lower() for name, _ in parse_qsl(query, keep_blank_values=True)}
        if not _QUERY.fullmatch(query) or names & _FORBIDDEN:
            raise _RefusedError(400, "This query is not relayed")
        methods = {method for method, pattern in self._rules if pattern.fullmatch(path)}
        if not methods:
            methods = {method for method, pattern in self._media if pattern.fullmatch(path)}
        if not methods or any(map(_is_about_tokens, segments)):
            detail = "No rule of allow names it."
            raise _RefusedError(404, "This path is not relayed", detail=detail)
        if "GET" in methods:
            methods.add("HEAD")
        if request.method not in methods:
            allowed = ", ".join(sorted(methods))
            raise _RefusedError(405, "This method is not relayed", ("Allow", allowed))
        return f"{path}?{query}" if query else path

    def outgoing(
        self, cm: AsyncCMClient | CMClient, request: Request, target: str, body: Any
    ) -> tuple[httpx2.Request, Any]:
        """Return the request to the API, or to a host with media, and what gives it the token."""
        if self._is_for_api(request.path):
            return _outgoing(cm, request, _url(cm, target), body), cm.auth
        host, _, rest = target[1:].partition("/")
        url = cm._cm[0].media_url(host, f"/{rest}")
        if url is None:
            detail = "This host is not the server's."
            raise _RefusedError(404, "This path is not relayed", detail=detail)
        media = _outgoing(cm, request, url, body)
        media.extensions["timeout"] = {**cm.timeout.as_dict(), "read": _PICTURE}
        return media, cm.media_auth

    def _is_for_api(self, path: str) -> bool:
        """Return True if a path that is relayed is one of the API, and not of a host with media."""
        return not self._media or any(pattern.fullmatch(path) for _, pattern in self._rules)

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

    # -- what is kept ----------------------------------------------------------------------

    def _kept_path(self, rule: str, seconds: float) -> tuple[re.Pattern[str], float]:
        """Return one rule of `cache`, or raise `ConfigError`."""
        text = rule if isinstance(rule, str) and " " in rule else f"GET {rule}"
        method, pattern = _rule(text, "cache")
        sample = text.partition(" ")[2].replace("*", "x")
        reads = [found for kind, found in self._rules if kind == "GET"]
        if method != "GET" or not any(
            found.fullmatch(sample) or found.pattern == pattern.pattern for found in reads
        ):
            raise ConfigError(f"cache has the rule {rule!r}: no rule of allow for GET includes it")
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 < seconds < math.inf:
            raise ConfigError(f"cache has {seconds!r} for {rule!r}: give a number of seconds")
        return pattern, float(seconds)

    def seconds_kept(self, request: Request, body: object) -> float | None:
        """Return for how many seconds the answer to a request is kept; None if it is not."""
        if body is None and request.method in ("GET", "HEAD"):
            for pattern, seconds in self._kept:
                if pattern.fullmatch(request.path):
                    return seconds if self._is_for_api(request.path) else None
        return None

    def cache_of(self, services: Services) -> ProxyCache:
        """Return what is kept for the sessions of one side of an engine."""
        cache = self._caches.get(services)
        if cache is None:
            with self._lock:
                cache = self._caches.get(services)
                if cache is None:
                    longest = max(seconds for _, seconds in self._kept)
                    cache = ProxyCache(services.runtime, services.sessions, longest)
                    self._caches[services] = cache
        return cache


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
        streams_per_session: the requests that one session may have under way at a time in this
            process, until the last byte of their responses; those beyond it get 429. On a server
            with threads each keeps one: give half of their number at most, 2 for gunicorn's four.
        cache: by path, with ``*`` as in `allow`, the seconds that an answer to GET is kept in this
            process: ``{"/rest/v2.4/cameras/*/snapshot": 10}``. It is kept if its status is 200 and
            it has at most 4 MB, whatever Cache-Control says. All sessions of an account share
            pictures, and one call while it is under way; but a user is given only what
            CameraManager itself has answered to that user, too, in the last minute. Other answers
            than pictures are kept for one user.
        media: the requests that are relayed to hosts of the server which have pictures and videos,
            with the same rules: ``"GET /media/streams/preview/multipart"``. The front end puts the
            host in front of the path: ``/api/cm/<host>/media/streams/…``. Only hosts below the
            provider's `api_domains` get a request.

    Raises:
        ConfigError: a rule is wrong, or a number; the message names it.
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
        arrivals = _Arrivals(receive)
        receive = arrivals.receive
        try:
            self.judge_origin(request, engine.async_services, _session_of(cm))
            target = self.judge(request)
            length = self.judge_length(request)
            body = await _body(request, receive, length, scope.get("http_version", ""))
            if body is not None:
                self.judge_kind(request)
            seconds = self.seconds_kept(request, body)
            leave = self.enter(_session_of(cm))
            try:
                if seconds is not None:
                    cache = self.cache_of(engine.async_services)
                    accept = _accepted(request)
                    fetch = partial(_fetch, cm, target, accept, engine.async_services.runtime)
                    try:
                        given = await cache.ask(
                            _session_of(cm), f"{target}\n{accept}", seconds, fetch
                        )
                    except httpx2.HTTPError as error:
                        raise _unreachable(error) from None
                    if given is not None:
                        await _send_given(_respond(request, given), send)
                        return
                outgoing = self.outgoing(cm, request, target, body)
                await self._relay(cm, outgoing, (scope, receive, send))
            finally:
                leave()
        except _RefusedError as refused:
            if arrivals.are_over:
                await send_asgi_response(refused.response, send, head=request.method == "HEAD")
            else:
                await send_and_read_on(refused.response, request, receive, send)
        except _HungUpError:
            return

    async def _relay(
        self,
        cm: AsyncCMClient,
        outgoing: tuple[httpx2.Request, Any],
        to: tuple[Scope, Receive, Send],
    ) -> None:
        request, auth = outgoing
        try:
            answer = await cm.send(request, stream=True, auth=auth)
        except httpx2.HTTPError as error:
            raise _unreachable(error) from None
        try:
            headers = _raw(_relayed_headers(answer))
            length = _length_of(answer)
            if length is not None and length <= _SHORT:
                await _send_short(answer, headers, to)
            else:  # it also looks if the browser leaves
                response = StreamingResponse(_parts(answer), answer.status_code)
                response.raw_headers = headers
                await response(*to)
        finally:
            if not answer.is_closed:
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
        try:
            self.judge_origin(request, engine.thread_services, _session_of(cm))
            target = self.judge(request)
            length = self.judge_length(request)
            body = _wsgi_body(request, environ, length)
            if body is not None:
                if length is None and not _tells_the_end(environ):
                    raise _RefusedError(411, "Length required")
                self.judge_kind(request)
            seconds = self.seconds_kept(request, body)
            leave = self.enter(_session_of(cm))
            try:
                if seconds is not None:
                    cache = self.cache_of(engine.thread_services)
                    accept = _accepted(request)
                    runtime = engine.thread_services.runtime
                    fetch = partial(_fetch_blocking, cm, target, accept, runtime)
                    variant = f"{target}\n{accept}"
                    try:
                        given = run_sync(cache.ask(_session_of(cm), variant, seconds, fetch))
                    except httpx2.HTTPError as error:
                        raise _unreachable(error) from None
                    if given is not None:
                        leave()
                        kept = _respond(request, given)
                        start_response(_status_line(kept.status), kept.headers)
                        return [kept.body]
                answer, headers, parts = self._relay(cm, self.outgoing(cm, request, target, body))
            except BaseException:
                leave()
                raise
        except _RefusedError as refused:
            return send_wsgi_response(refused.response, request, start_response)
        relayed = _StreamedBody(answer, parts, leave)
        start_response(_status_line(answer.status_code), headers)
        return relayed

    def _relay(
        self, cm: CMClient, outgoing: tuple[httpx2.Request, Any]
    ) -> tuple[httpx2.Response, list[tuple[str, str]], Iterator[bytes]]:
        """Return the answer, the headers that the browser gets, and the body."""
        request, auth = outgoing
        try:
            answer = cm.send(request, stream=True, auth=auth)
            try:
                return answer, _relayed_headers(answer), _begun(answer)
            except BaseException:
                answer.close()
                raise
        except httpx2.HTTPError as error:
            raise _unreachable(error) from None


def _begun(answer: httpx2.Response) -> Iterator[bytes]:
    """Return the body; a picture that comes quickly was read by then, as for `_send_short`.

    Raises:
        httpx2.HTTPError: it broke off.
    """
    parts = answer.iter_raw()
    length = _length_of(answer)
    if length is None or length > _SHORT or not _is_used_whole(answer):
        return parts
    until = time.monotonic() + _HELD_FOR
    held: list[bytes] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= _HELD or time.monotonic() >= until:
            break
    return chain([b"".join(held)] if held else [], parts)


async def _send_short(
    answer: httpx2.Response, headers: list[tuple[bytes, bytes]], to: tuple[Scope, Receive, Send]
) -> None:
    """Send a body: to look if the browser leaves costs more, and is done if it takes long.

    A part of a picture is of no use: parts that come quickly are sent together.
    """
    send, parts = to[2], aiter(_parts(answer))
    start = {"type": "http.response.start", "status": answer.status_code, "headers": headers}
    now = time.monotonic()
    until, is_slow_at = now + (_HELD_FOR if _is_used_whole(answer) else 0.0), now + _QUICK
    held: list[bytes] = []
    size, is_begun = 0, False
    try:
        async for part in parts:
            held.append(part)
            size += len(part)
            now = time.monotonic()
            if size >= _HELD or now >= until:
                if not is_begun:
                    is_begun = True
                    await send(start)
                body = b"".join(held)
                held, size = [], 0
                await send({"type": "http.response.body", "body": body, "more_body": True})
                if now >= is_slow_at:
                    await _send_rest(parts, to)
                    return
    except httpx2.HTTPError as error:
        if is_begun:
            raise
        raise _unreachable(error) from None
    with suppress(Exception):  # the body is whole
        await answer.aclose()  # others may wait for the connection
    if not is_begun:
        await send(start)
    await send({"type": "http.response.body", "body": b"".join(held)})


async def _send_rest(parts: AsyncIterator[bytes], to: tuple[Scope, Receive, Send]) -> None:
    """Send the rest of a body whose beginning was sent, unless the browser leaves."""
    scope, receive, send = to

    async def rest() -> AsyncIterator[bytes]:
        while (part := await anext(parts, None)) is not None:  # "async for" would begin anew
            yield part

    async def send_on(message: Message) -> None:
        if message["type"] != "http.response.start":
            await send(message)

    await StreamingResponse(rest())(scope, receive, send_on)


def _is_used_whole(answer: httpx2.Response) -> bool:
    """Return True if a part of the body is of no use to a browser."""
    return answer.headers.get("content-type", "").startswith(_USED_WHOLE)


def _parts(answer: httpx2.Response) -> AsyncIterable[bytes]:
    """Return the body as it comes. `aiter_raw` does the same, with more steps for each part."""
    stream: Any = answer.stream
    return stream  # type: ignore[no-any-return]


def _raw(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


def _length_of(answer: httpx2.Response) -> int | None:
    """Return the length that an answer states for its body."""
    length = answer.headers.get("content-length", "")
    return int(length) if _LENGTH.fullmatch(length) else None


class _Arrivals:
    """Hands on the messages of a request.

    Attributes:
        are_over: True once all of the body was there.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.are_over = False

    async def receive(self) -> Message:
        """Receive the next one."""
        message = await self._receive()
        self.are_over = not message.get("more_body", False)
        return message


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
    """The body of a relayed response, which the server closes whether it was read or not.

    Args:
        leave: called once: when it is closed, or dropped by a server that does not close it.
    """

    def __init__(
        self, answer: httpx2.Response, parts: Iterator[bytes], leave: Callable[[], None]
    ) -> None:
        self._answer = answer
        self._parts = parts
        self._leave = weakref.finalize(self, leave)

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        try:
            self._answer.close()
        finally:
            self._leave()


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


def _session_of(cm: AsyncCMClient | CMClient) -> Session:
    return cm._cm[1]


def _says_no_lengths(version: str) -> bool:
    """True for HTTP/2 and HTTP/3, where a body needs neither of the headers of HTTP/1.1."""
    return version.removeprefix("HTTP/")[:1] in ("2", "3")


def _has_body(request: Request) -> bool:
    return bool(request.header("content-length") or request.header("transfer-encoding"))


def _outgoing(
    cm: AsyncCMClient | CMClient, request: Request, url: httpx2.URL, body: Any
) -> httpx2.Request:
    dropped = _named_in_connection(request.header("connection"))
    headers = {name.lower(): value for name, value in cm.headers.raw}
    headers |= {b"accept": b"*/*", b"accept-encoding": b"identity"}
    for name in _ASKED:
        value = request.header(name)
        if value is not None and name not in dropped:
            headers[name.encode()] = value.encode("latin-1")
    # The client would do the same, and take twice as long.
    return httpx2.Request(request.method, url, headers=headers, cookies=cm.cookies, content=body)


def _url(cm: AsyncCMClient | CMClient, target: str) -> httpx2.URL:
    """Return the URL of a path and query of the API. A front end asks for the same ones again."""
    return cm._cm[0].url_of(cm, target)


def _relayed_headers(answer: httpx2.Response) -> list[tuple[str, str]]:
    """Return the headers that the browser gets; raise `_RefusedError` if it gets no answer."""
    if answer.status_code == 401:  # even with the newest token: not the user's fault
        raise _RefusedError(502, "The API refused the access token", detail="Try again.")
    if answer.is_redirect and answer.status_code != 304:
        detail = "Redirects are not relayed."
        raise _RefusedError(502, "The API answered with a redirect", detail=detail)
    given: dict[str, str] = {}
    for raw_name, raw in answer.headers.raw:
        # Byte for byte, as ASGI and WSGI require.
        name, value = raw_name.decode("latin-1").lower(), raw.decode("latin-1")
        given[name] = f"{given[name]}, {value}" if name in given else value
    dropped = _named_in_connection(given.get("connection"))
    headers = [
        (title, given[name])
        for name, title in _ANSWERED.items()
        if name in given and name not in dropped
    ]
    if "content-type" not in given and answer.status_code not in (204, 304):
        headers.append(("Content-Type", "application/octet-stream"))
    cache = given.get("cache-control")
    if cache is not None:  # without it the middleware adds no-store
        words = [word.strip() for word in cache.split(",")]
        kept = [w for w in words if w.lower().partition("=")[0] not in ("public", "s-maxage")]
        headers.append(("Cache-Control", ", ".join(dict.fromkeys(["private", *kept]))))
    return [*headers, *_GUARDS]


# -- answers that are kept -------------------------------------------------------------------


def _accepted(request: Request) -> str:
    """Return the Accept header by which an answer is kept: each browser ranks pictures anew."""
    accept = (request.header("accept") or "*/*").strip(" \t")
    return "*/*" if _ANYTHING.search(accept) else accept


def _for_all(cm: AsyncCMClient | CMClient, target: str, accept: str) -> httpx2.Request:
    """Return a request whose headers, but for the token, are the same for all who share it.

    So Vary need not be looked at.
    """
    headers = {b"accept": accept.encode("latin-1"), b"accept-encoding": b"identity"}
    return cm.build_request("GET", _url(cm, target), headers=headers)


class _Whole:
    """Reads the body of an answer as a whole, if it can be given to all who wait for it.

    Attributes:
        is_wanted: True while it can.
    """

    def __init__(self, answer: httpx2.Response, runtime: Runtime) -> None:
        self._answer = answer
        self._runtime = runtime
        self._parts: list[bytes] = []
        self._size = 0
        self._until = runtime.monotonic() + runtime.timeout
        headers, status = answer.headers, answer.status_code
        self._varies = {word.strip().lower() for word in headers.get("vary", "").split(",")}
        is_empty = status in (204, 304)
        # A body that ends where the connection ends may have broken off (RFC 9112 §8).
        has_end = is_empty or "content-length" in headers or "transfer-encoding" in headers
        has_end = has_end or answer.http_version == "HTTP/2"
        has_end = has_end or "network_stream" not in answer.extensions
        # Not every browser can read another coding; the API was asked for none.
        is_plain = headers.get("content-encoding", "identity").strip().lower() == "identity"
        self._may_be_kept = has_end and is_plain
        # No viewer's own call would bring more from a server that is too busy.
        is_busy = status == 429 or status >= 500
        is_short = is_empty or (_length_of(answer) or 0) <= MOST_KEPT
        self.is_wanted = is_short and (is_busy or "*" not in self._varies)

    def add(self, part: bytes) -> bool:
        """Take a part; return False if there is no use in reading on.

        Raises:
            httpx2.ReadTimeout: it takes too long, and others may wait for it.
        """
        self._parts.append(part)
        self._size += len(part)
        self.is_wanted = self._size <= MOST_KEPT
        if self._runtime.monotonic() > self._until:
            raise httpx2.ReadTimeout("the body did not arrive in time")
        return self.is_wanted

    def result(self) -> Answer | None:
        """Return the answer with its body; None if each viewer has to ask for one.

        Raises:
            _RefusedError: it is one that is not relayed.
        """
        answer, now = self._answer, self._runtime.clock()
        headers = _relayed_headers(answer)
        if not self.is_wanted:
            return None
        body = b"".join(self._parts)
        # Also private="x", which is about one header only (RFC 9111 §5.2.2.7): to keep it for one
        # user is right as well.
        words = {
            word.partition("=")[0].strip().lower()
            for word in answer.headers.get("cache-control", "").split(",")
        }
        is_picture = answer.headers.get("content-type", "").strip().lower().startswith("image/")
        age = answer.headers.get("age", "").strip()
        own = ("Content-Length", "Accept-Ranges", "Etag", "Last-Modified")
        named = dict(headers)
        etag = named.get("Etag") or f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        return Answer(
            answer.status_code,
            [header for header in headers if header[0] not in own],
            body,
            is_for_all=is_picture
            and "private" not in words
            and "authorization" not in self._varies,
            may_be_kept=self._may_be_kept,
            age=int(age) if _LENGTH.fullmatch(age) else 0,
            came_at=now,
            etag=etag,
            last_modified=named.get("Last-Modified") or formatdate(now, usegmt=True),
        )


async def _fetch(cm: AsyncCMClient, target: str, accept: str, runtime: Runtime) -> Answer | None:
    answer = await cm.send(_for_all(cm, target, accept), stream=True)
    try:
        whole = _Whole(answer, runtime)
        if whole.is_wanted:
            async for part in answer.aiter_raw():
                if not whole.add(part):
                    break
        return whole.result()
    finally:
        with anyio.CancelScope(shield=True):
            await answer.aclose()


async def _fetch_blocking(
    cm: CMClient, target: str, accept: str, runtime: Runtime
) -> Answer | None:
    answer = cm.send(_for_all(cm, target, accept), stream=True)
    try:
        whole = _Whole(answer, runtime)
        if whole.is_wanted:
            for part in answer.iter_raw():
                if not whole.add(part):
                    break
        return whole.result()
    finally:
        answer.close()


def _respond(request: Request, given: Given) -> Response:
    """Return the response to a request, by its conditions and the range that it asks for."""
    answer, length = given.answer, len(given.answer.body)
    headers = list(answer.headers)
    if given.age is not None:
        headers.append(("Age", str(given.age)))
    if answer.status != 200:
        if answer.status not in (204, 304):  # RFC 9110 §8.6
            headers.append(("Content-Length", str(length)))
        return Response(answer.status, headers, b"" if request.method == "HEAD" else answer.body)
    headers += [("Etag", answer.etag), ("Last-Modified", answer.last_modified)]
    headers.append(("Accept-Ranges", "bytes"))
    status, start, stop = choose(request, answer.etag, answer.last_modified, length)
    if status == 304:
        about_the_body = ("Content-Type", "Content-Disposition", "Content-Language")
        return Response(304, [header for header in headers if header[0] not in about_the_body])
    if status == 206:
        headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{length}"))
    elif status == 416:
        raise _RefusedError(416, "No such range", ("Content-Range", f"bytes */{length}"))
    elif status == 412:
        raise _RefusedError(412, "It is another version by now")
    headers.append(("Content-Length", str(stop - start)))
    if request.method == "HEAD":
        return Response(status, headers)
    return Response(status, headers, answer.body if status == 200 else answer.body[start:stop])


async def _send_given(response: Response, send: Send) -> None:
    headers = _raw(response.headers)
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


def _status_line(status: int) -> str:
    return f"{status} {responses.get(status, 'Unknown')}"


def _unreachable(error: httpx2.HTTPError) -> _RefusedError:
    if isinstance(error, httpx2.TimeoutException):
        return _RefusedError(504, "The API did not answer in time")
    return _RefusedError(502, "The API cannot be reached")


def _named_in_connection(value: str | None) -> set[str]:
    return {name.strip().lower() for name in (value or "").split(",")}


def _is_plain(segment: str) -> bool:
    return _SEGMENT.fullmatch(segment) is not None and segment.strip(".") != ""


def _is_about_tokens(segment: str) -> bool:
    return segment.lower().partition(".")[0] == "tokens"  # Spring may route "tokens.json" alike


def _rule(text: str, option: str = "allow") -> tuple[str, re.Pattern[str]]:
    method, _, path = text.partition(" ")
    segments = path.split("/")[1:]
    if (
        method not in _METHODS
        or not path.startswith("/")
        or not all(map(_is_plain, segments))
        or any("*" in segment and segment != "*" for segment in segments)
    ):
        raise ConfigError(
            f"{option} has the rule {text!r}: it has to be a method and a path, such as "
            "'GET /rest/v2.4/cameras/*'; * stands for a whole segment"
        )
    parts = ["[^/]+" if segment == "*" else re.escape(segment) for segment in segments]
    if segments[-1] == "*":
        parts[-1] = ".+"
    return method, re.compile("/" + "/".join(parts))
