"""The ASGI shell: a pure ASGI middleware around the flow."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, cast

import anyio

from . import connections
from .client import AsyncCMClient, UnusedAsyncCMClient
from .engine import AuthEngine
from .errors import ConfigError, SessionExpiredError, UnavailableError
from .events import log
from .http import Answer, Request, must_not_be_cached
from .vault import STALE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .config import CMAuthConfig
    from .engine import Side
    from .http import Headers
    from .options import CMAuthOptions
    from .session import Session

T = TypeVar("T")
_RawHeaders = list[tuple[bytes, bytes]]
_NO_STATE: dict[str, Any] = {}

_NO_STORE = (b"cache-control", b"no-store")
_VARY = (b"vary", b"Cookie")
_LOGGED_OUT = 4401  # close code: 4000 + 401, in the range for applications (RFC 6455 §7.4.2)


class CMState(TypedDict):
    """What ``request.state`` holds, for ``Request[CMState]``."""

    cm: AsyncCMClient
    cm_session: Session
    cm_auth: AuthEngine


class CMAuthMiddleware:
    """Puts an ASGI app behind a CameraManager login.

    Args:
        app: the application.
        config: options in one object; keywords override them.
        engine: an engine made elsewhere, instead of options.
        options: see `CMAuthConfig`; what is missing is read from ``CM_AUTH_<OPTION>``.

    Raises:
        ConfigError: an option is missing or wrong; the message names it.
    """

    def __init__(
        self,
        app: ASGIApp,
        /,
        *,
        config: CMAuthConfig | None = None,
        engine: AuthEngine | None = None,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self.app = app
        try:
            self.engine = AuthEngine.resolve(engine, config, options)
        except ConfigError as error:
            # Starlette builds middleware when the server sends the lifespan, and a server that
            # is not told --lifespan on takes an error there for an app that has no lifespan.
            log("config_error", reason=error)
            raise
        self._side = self.engine.async_side
        self._side.warn_of_store()
        self._flow = self._side.flow

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection. A scope type that is unknown is refused, never passed through."""
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        exchange = _Exchange(scope)
        if not exchange.cookie_line and self._flow.is_exempt(exchange):
            session = None
        else:
            outcome = await self._flow.handle(exchange)
            if isinstance(outcome, Answer):
                await _send(outcome, send, head=exchange.method == "HEAD")
                return
            session = outcome
        scope = self._own_scope(scope, session)
        exchange.begin(self._side, scope["state"], send)
        answer, watched = None, None
        if session is not None:
            receive = exchange.watch_over(session, receive)
            watched = self._side.connections.add(exchange)
        try:
            await self.app(scope, receive, exchange.send)
        except asyncio.CancelledError:
            if not exchange.is_interrupted:
                raise
            exchange.forget_interrupt()
        except Exception as error:
            answer = None if exchange.started else await self._flow.answer_to(exchange, error)
            if answer is None and not (exchange.ended and _is_about_the_end(error)):
                raise
        finally:
            if watched is not None and session is not None:
                watched.discard(exchange)
                session.is_closed = True
                if exchange.waits is not None or session.is_touched:
                    await exchange.finish()
        if exchange.waits is not None and exchange.ended and not exchange.started:
            async with exchange.waits.answering:  # a server takes our return for the end
                if answer is None and not exchange.answered:
                    answer = await self._flow.session_over(exchange)
        if answer is not None and not exchange.answered:
            await _send(answer, send, head=exchange.method == "HEAD")

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            raise RuntimeError(f"unknown ASGI scope type {scope['type']!r}")

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def closing_send(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self.engine.close()  # before the server hears of it and stops the loop
            await send(message)

        self._side.warm_up()
        await self.app(scope, receive, closing_send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = await self._flow.handle(ASGIRequest(scope))
        if isinstance(outcome, Answer):
            await _deny(outcome, scope, receive, send)
            return
        scope = self._own_scope(scope, outcome)
        if outcome is None:
            await self.app(scope, receive, send)
        else:
            await _WebSocket(self._side, outcome, receive, send).run(self.app, scope)

    def _own_scope(self, scope: Scope, session: Session | None) -> Scope:
        """Return a scope of this request's own, with what the application finds in its state.

        A server may give one ``state`` to all requests of a connection, and a proxy may put
        several users on one connection.
        """
        state = {
            **(scope.get("state") or _NO_STATE),
            "cm_auth": self.engine,
            "cm_session": session,
            "cm": None if session is None else UnusedAsyncCMClient(self._side, session),
        }
        return {**scope, "state": state}


class ASGIRequest(Request):
    """A request of an ASGI server, or the handshake of a WebSocket."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.method = scope.get("method", "GET")
        self.is_websocket = scope["type"] == "websocket"
        path: str = scope["path"]
        root_path: str = scope.get("root_path", "")
        if root_path:
            if path.startswith(root_path) and path[len(root_path) :][:1] in ("", "/"):
                # To the letter what Starlette routes, or an exempt path might be another. A
                # path without the mount is served as it stands, but never exempt.
                path = path[len(root_path) :]
            root_path = root_path.rstrip("/")
        self.path = path
        self.routed_raw = scope.get("raw_path") or b""
        self.root_path = root_path
        line = b""
        for name, value in scope["headers"]:
            if name == b"cookie":  # HTTP/2 may send several lines (RFC 9113 §8.2.3)
                line = line + b"; " + value if line else value
        self.cookie_line = line.decode("latin-1") if line else ""
        self.set_cookies = []

    @property
    def is_secure(self) -> bool:
        return self._scope.get("scheme") in ("https", "wss")

    @property
    def raw_path(self) -> str:
        return self.routed_raw.decode("latin-1")

    @property
    def is_ambiguous(self) -> bool:
        # The specification has the mount in the path. Where it is not, a proxy or server took it
        # off, or the request never was for this mount, and frameworks differ in what they route:
        # Litestar what comes after the mount's path, wherever in the path that is.
        is_cut = self.path != self._scope["path"]
        return not is_cut and self._scope.get("root_path", "") not in ("", "/")

    @property
    def query(self) -> str:
        query: bytes = self._scope.get("query_string", b"")
        return query.decode("latin-1")

    @property
    def peer(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        lines = [value for key, value in self._scope["headers"] if key == wanted]
        return b", ".join(lines).decode("latin-1") if lines else None


class _GoneError(OSError):
    """What a server raises by ``send`` after its client has left (ASGI, "Disconnected Client")."""


class _Waits:
    """What a connection is waiting for, to be cut short when its session has ended.

    Nothing is ever cancelled but at that end, so no message is lost while the session lives.
    """

    __slots__ = (
        "_again_at",
        "_clock",
        "_connection",
        "_is_alive",
        "_look_at",
        "_scopes",
        "answering",
        "ended",
        "ended_at",
        "is_told",
    )

    def __init__(self, connection: connections.Connection, side: Side) -> None:
        self.ended = False
        self.ended_at = 0.0
        self.is_told = False  # the browser
        self._scopes: set[anyio.CancelScope] = set()
        self._connection = connection
        self._is_alive = side.flow.is_alive
        self._clock = side.clock
        self._again_at = 0.0
        self._look_at = time.monotonic() + connections.LOOK_EVERY
        self.answering = anyio.Lock()  # by the watch, or by the end of the handler

    def end(self) -> None:
        """Wake up all who wait."""
        if not self.ended:
            self.ended, self.ended_at = True, time.monotonic()
        for scope in list(self._scopes):
            scope.cancel()

    async def wait(self, answer: Callable[[], Awaitable[T]]) -> T:
        """Wait for the server.

        Raises:
            _GoneError: the session has ended, now or before.
        """
        now = time.monotonic()
        is_stale = self._clock() >= self._connection.session.checked_at + STALE
        if now >= self._look_at or (is_stale and now >= self._again_at):
            await self._look()
        if not self.ended:
            with anyio.CancelScope() as scope:
                self._scopes.add(scope)
                try:
                    return await answer()
                finally:
                    self._scopes.discard(scope)
        raise _GoneError("the session of this connection has ended")

    async def _look(self) -> None:
        """See whether the session is still there: a busy event loop may keep the watch waiting."""
        self._look_at = time.monotonic() + connections.LOOK_EVERY
        self._again_at = time.monotonic() + 1  # while the store cannot be asked
        with suppress(UnavailableError):  # which ends nothing
            if not self.ended and not await self._is_alive(self._connection.session):
                self._connection.session.ended = True
                await self._connection.end()


def _this_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # trio
        return None


class _Exchange(ASGIRequest):
    """A request, and the application's response to it on its way out."""

    __slots__ = (
        "_has_received", "_headers", "_receive", "_send", "_side", "_state", "_task", "answered",
        "is_interrupted", "is_old", "session", "started", "waits",
    )  # fmt: skip

    session: Session

    def begin(self, side: Side, state: dict[str, Any], send: Send) -> None:
        """Let the application answer a visitor."""
        self.started = self.answered = False  # answered by us, in place of the application
        self.session = None  # type: ignore[assignment]  # only one with a session is watched
        self.waits: _Waits | None = None  # of an exchange that lasts
        self._side = side
        self._state = state
        self._send = send

    def watch_over(self, session: Session, receive: Receive) -> Receive:
        """Let it end with its session; return what the application receives by."""
        self.session = session
        self.is_old = self.is_interrupted = self._has_received = False
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None  # that sends or receives for the handler
        return self.receive

    # -- what the application is given --------------------------------------------------------

    def receive(self) -> Awaitable[Message]:
        """Pass on a message of the server: most requests ask for one, with the whole body."""
        if not (self._has_received or self.waits):
            self._has_received = True
            return self._receive()
        return self._receive_watched()

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the application on, unless an answer of ours took its place."""
        if self.answered:
            return _ignore()
        if message["type"] == "http.response.start":
            session = self.session
            if message["status"] == 500:
                return self._start(message)
            if session is not None:
                is_stale = self._side.clock() >= session.checked_at + STALE
                if is_stale or session.is_touched or self.ended:
                    return self._start(message)
                # A new message: an application may send its own to many users, as caches do.
                self._headers = _private(message.get("headers", ()), self.set_cookies)
                message = {**message, "headers": self._headers}
            self.started = True
        elif self.session is not None and (
            self.is_old or self.waits is not None or message.get("more_body")
        ):
            return self._send_watched(message)
        return self._send(message)

    # -- at the start ------------------------------------------------------------------------

    async def _start(self, message: Message) -> None:
        if self.ended:  # or a server might send the start, wait for the body, and say 500
            answer = await self._side.flow.session_over(self)
        else:
            answer = await self._side.flow.before_response(
                self, self.session, message["status"] == 500, self._state.get("cm_trouble")
            )
        if self.answered:
            return  # by the watch, meanwhile
        if answer is not None:
            self.answered = True
            await _send(answer, self._send, head=self.method == "HEAD")
            return
        self.started = True
        if self.session is not None:
            self._headers = _private(message.get("headers", ()), self.set_cookies)
            message = {**message, "headers": self._headers}
        await self._send(message)

    # -- an exchange that lasts: a stream, an upload, a long poll -------------------------------

    def _watch(self) -> _Waits:
        if self.waits is None:
            self.waits = _Waits(self, self._side)
        return self.waits

    def _watch_mine(self) -> _Waits:
        if self._task is None:
            self._task = _this_task()
        return self._watch()

    async def _receive_watched(self) -> Message:
        try:
            return await self._watch_mine().wait(self._receive)
        except _GoneError:
            return {"type": "http.disconnect"}

    async def _send_watched(self, message: Message) -> None:
        await self._watch_mine().wait(lambda: self._send(message))

    async def end(self) -> None:
        """End an exchange whose session has ended: see `connections`.

        Its handler learns it, and the server breaks the response off when the handler returns, so
        that no half of a recording looks whole. One that has not returned when this is called
        again is ended for it. Server-sent events are whole at any time.
        """
        waits = self._watch()
        # Two may look at once; a handler has a while to return.
        patience = connections.LOOK_EVERY / 2
        was_ended = waits.ended and time.monotonic() > waits.ended_at + patience
        waits.end()
        if waits.is_told or (was_ended and await self._answer_instead(waits)) or not self.started:
            return
        headers = {name.lower(): value for name, value in self._headers}
        is_whole = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if was_ended and b"content-length" in headers:
            # A server may take an early end for the end of everything, and the client waits.
            waits.is_told = True
            self._interrupt()
        elif is_whole or was_ended:
            waits.is_told = True
            with suppress(Exception):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer_instead(self, waits: _Waits) -> bool:
        """Answer for a handler that has not begun to: it is not who asks any more."""
        async with waits.answering:
            if self.started or self.answered:
                return False
            answer = await self._side.flow.session_over(self)
            if answer is None or self.started or self.answered:
                return False
            waits.is_told = self.answered = True
            with suppress(Exception):  # its client left
                await _send(answer, self._send, head=self.method == "HEAD")
        return True

    def _interrupt(self) -> None:
        """Cancel a handler that does nothing: the server breaks the response off then."""
        if self._task is not None:
            self.is_interrupted = True
            self._task.cancel()

    def forget_interrupt(self) -> None:
        """Go on as if nothing had been cancelled: the handler has ended."""
        if self._task is not None:
            self._task.uncancel()

    async def finish(self) -> None:
        """Save what a background task, or a streamed body, put into the session."""
        with anyio.CancelScope(shield=True):
            await self._side.flow.save_late(self.session)
        self.session.close()

    @property
    def ended(self) -> bool:
        """True if the session ended while the exchange went on."""
        return self.waits is not None and self.waits.ended


class _WebSocket:
    """A WebSocket of a session: messages of the browser are a use of it."""

    def __init__(self, side: Side, session: Session, receive: Receive, send: Send) -> None:
        self.session = session
        self.is_old = False
        self._flow = side.flow
        self._receive = receive
        self._send = send
        self._waits = _Waits(self, side)
        self._open = side.connections.add(self)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application serve it."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if not (self._waits.ended and _is_about_the_end(error)):
                raise
        finally:
            self._open.discard(self)
            with anyio.CancelScope(shield=True):
                await self._flow.save_late(self.session)
            self.session.close()

    async def receive(self) -> Message:
        """Pass on a message of the browser."""
        try:
            message = await self._waits.wait(self._receive)
        except _GoneError:
            return {"type": "websocket.disconnect", "code": _LOGGED_OUT, "reason": "logged out"}
        if message["type"] == "websocket.receive":
            await self._flow.note_use(self.session)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message of the application; what the server pushes is no use."""
        if self.session.is_touched:
            await self._flow.save_late(self.session)
        await self._waits.wait(lambda: self._send(message))

    async def end(self) -> None:
        """Close a WebSocket whose session has ended: see `connections`."""
        if self._waits.ended:
            return
        self._waits.ended = True
        try:
            # Before the handler learns it: some servers close by themselves when it returns.
            with suppress(Exception):  # it closed just now
                await self._send({"type": "websocket.close", "code": _LOGGED_OUT})
        finally:
            self._waits.end()


def _is_about_the_end(error: BaseException) -> bool:
    """Return True for what a handler raises because its session, and so its client, is gone."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            return all(map(_is_about_the_end, seen.exceptions))
        # Frameworks have exceptions of their own for it: ClientDisconnect, WebSocketDisconnect.
        if (
            isinstance(seen, _GoneError | SessionExpiredError)
            or "Disconnect" in type(seen).__name__
        ):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


async def _ignore() -> None:
    """Take what the application sends after an answer of ours."""


def _private(headers: Iterable[tuple[bytes, bytes]], ours: Headers) -> _RawHeaders:
    """Say that a response is one user's own, and add our headers."""
    result, own, vary = list(headers), [], None
    for header in result:
        name = header[0].lower()  # which ASGI wants, and not every application keeps to
        if name == b"cache-control":
            own.append(header[1].decode("latin-1"))
        elif name == b"vary" and vary is None:
            vary = header
    if not own:
        result.append(_NO_STORE)
    elif must_not_be_cached(own, ours):
        result = [header for header in result if header[0].lower() != b"cache-control"]
        result.append(_NO_STORE)
    if vary is None:
        result.append(_VARY)
    elif b"cookie" not in vary[1].lower():
        result[result.index(vary)] = (b"vary", vary[1] + b", Cookie")
    if ours:
        result += [(name.lower().encode(), value.encode("latin-1")) for name, value in ours]
    return result


async def _send(answer: Answer, send: Send, *, head: bool) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


async def _deny(answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket before it is accepted (the ASGI denial response extension)."""
    await receive()  # websocket.connect
    if "websocket.http.response" not in cast("dict[str, Any]", scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _LOGGED_OUT})
        return
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
    start = {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": answer.body})
