"""The ASGI side: a pure ASGI middleware around the gate."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, Unpack, cast

import anyio

from .auth import connections
from .config import log_unknown_variables
from .engine import AuthEngine, asgi_states
from .errors import ConfigError, SessionExpiredError
from .events import log
from .sessions.user import CMUser
from .web import unread_body
from .web.request import Request
from .web.response import Response, must_not_be_cached, varies_by_cookie

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .auth.gate import Gate
    from .client import AsyncCMClient
    from .config import CMAuthConfig, CMAuthOptions
    from .engine import Services
    from .runtime.event_loops import EventLoopRuntime
    from .sessions.session import Session
    from .web.response import Headers

T = TypeVar("T")
_RawHeaders = list[tuple[bytes, bytes]]

_NO_STORE = (b"cache-control", b"no-store")
_VARY = (b"vary", b"Cookie")
_MERGED = frozenset({b"cache-control", b"vary"})  # headers that an application may have set, too
# Close codes of WebSockets: 4000 + 401 or 403, in the range for applications (RFC 6455 §7.4.2); and
# "Try Again Later", of IANA's registry.
_LOGGED_OUT, _FORBIDDEN, _TRY_LATER = 4401, 4403, 1013


class CMState(TypedDict):
    """The contents of ``request.state``, for ``Request[CMState]``."""

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
        *,
        config: CMAuthConfig | None = None,
        engine: AuthEngine | None = None,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self.app = app
        self._fault: str | None = None  # the reason why the application cannot start
        log_unknown_variables()  # before an error that one of them may be the reason of
        try:
            self.engine = AuthEngine.resolve(engine, config, options)
            self._services = self.engine.async_services
        except ConfigError as error:
            log("config_error", reason=error)
            if not _is_made_for_lifespan():
                raise
            # The server would take an error for an application that has no lifespan, and go on.
            self._fault = str(error)
            return
        self._services.warn_of_store()
        self._gate = self._services.gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection. Refuse an unknown type of scope, and never pass it through."""
        if self._fault is not None:
            await _fail(self._fault, scope, receive, send)
        if scope["type"] != "http":
            await self._other(scope, receive, send)
            return
        exchange = _Exchange(scope, self._gate, receive, send)
        session: Session | None = None
        if exchange.cookie_line or not self._gate.is_exempt(exchange):
            outcome = await self._gate.handle(exchange)
            if isinstance(outcome, Response):
                self._services.note_outer((scope.get("state") or {}).get("cm_session"))
                await exchange.refuse(outcome)
                return
            session = outcome
            exchange.session = session  # type: ignore[assignment]
        scope = self._own_scope(scope, session)
        exchange.state = scope["state"]
        response = mounted = watched = None
        if "flask" in sys.modules:
            # Timers of this request keep its context, even cancelled ones, and all that is in it.
            holder = [exchange.state]
            mounted = asgi_states.set(holder)
        if session is not None:
            receive = exchange.receive
            watched = self._services.connections.here()
            watched.add(exchange)
        try:
            await self.app(scope, receive, exchange.send)
        except asyncio.CancelledError:
            if exchange.interrupted is None:
                raise
            exchange.interrupted.uncancel()  # the handler has ended: go on
        except Exception as error:
            if not exchange.started:
                known = None if exchange.is_replaced else session  # the audit log has it then
                response = await self._gate.response_to(exchange, error, known)
            if response is None and not (exchange.ended and _is_about_the_end(error)):
                raise
        finally:
            if mounted is not None:
                asgi_states.reset(mounted)
                holder.clear()
            if watched is not None and session is not None:
                watched.discard(exchange)
                session.is_closed = True
                if session.data_was_read:
                    await _finish(session, self._gate)
        if exchange.waits is not None and exchange.ended and not exchange.started:
            async with exchange.waits.responding:  # a server takes this return for the end
                if response is None and not exchange.is_replaced:
                    response = await self._gate.session_over(exchange)
        if response is not None and not exchange.is_replaced:
            await exchange.respond(response)

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
                runtime.note_lifespan(is_open=False)
                await self.engine.close()  # before the server hears of it and stops the loop
            await send(message)

        runtime = cast("EventLoopRuntime", self._services.runtime)
        runtime.note_lifespan(is_open=True)
        self._services.start_beside()
        await self.app(scope, receive, closing_send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome = await self._gate.handle(ASGIRequest(scope))
        if isinstance(outcome, Response):
            self._services.note_outer((scope.get("state") or {}).get("cm_session"))
            await receive()  # websocket.connect
            await _deny(outcome, scope, send)
            return
        scope = self._own_scope(scope, outcome)
        if outcome is None:
            await _WebSocket(self._services, receive, send).run(self.app, scope)
        else:
            await _OwnedWebSocket(self._services, outcome, receive, send).run(self.app, scope)

    def _own_scope(self, scope: Scope, session: Session | None) -> dict[str, Any]:
        """Return a scope of this request's own, with its session, client and user.

        A server may give one ``state`` to all requests of a connection, and a proxy may put
        several users on one connection.
        """
        state = dict(scope.get("state") or ())
        state["cm_auth"] = self.engine
        state["cm_session"] = session
        state["cm"] = None if session is None else self._services.client_of(session)
        own = dict(scope)
        own["state"] = state
        user = own.get("user")
        if user is None or isinstance(user, CMUser):  # or another middleware's, which stays
            own["user"] = own["auth"] = CMUser(session, self._services.included_scopes)
        return own


def _is_made_for_lifespan() -> bool:
    """Return True if Starlette makes the middleware now, when a server starts its lifespan.

    `add_middleware` of Starlette and FastAPI only notes the class. Who makes it earlier, in a
    module, gets the error there.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "build_middleware_stack":
        frame = frame.f_back
    caller = frame and frame.f_back
    scope = caller.f_locals.get("scope") if caller else None
    return scope is not None and bool(scope["type"] == "lifespan")


async def _fail(reason: str, scope: Scope, receive: Receive, send: Send) -> NoReturn:
    """Let the server end the start, and refuse requests where it goes on nevertheless."""
    if scope["type"] == "lifespan":
        await receive()  # lifespan.startup
        message = f"cm_auth_middleware cannot start: {reason}"
        await send({"type": "lifespan.startup.failed", "message": message})
    raise ConfigError(reason)


class ASGIRequest(Request):
    """A request of an ASGI server, or the handshake of a WebSocket."""

    __slots__ = ("_headers_by_name", "_scope", "is_ambiguous")

    _headers_by_name: dict[bytes, bytes]

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.method = scope.get("method", "GET")
        self.is_websocket = scope["type"] == "websocket"
        path: str = scope["path"]
        root_path: str = scope.get("root_path", "")
        is_ambiguous = False
        if root_path:
            if path.startswith(root_path) and path[len(root_path) :][:1] in ("", "/"):
                # To the letter what Starlette routes, or an exempt path might be another. A
                # path without the mount is served as it stands, but never exempt.
                path = path[len(root_path) :]
            else:
                # The specification has the mount in the path. Where it is not, a proxy or server
                # took it off, or the request never was for this mount, and frameworks differ in
                # what they route: Litestar what comes after the mount's path, wherever that is.
                is_ambiguous = root_path != "/"
            root_path = root_path.rstrip("/")
        self.is_ambiguous = is_ambiguous  # type: ignore[misc]  # no property: it is set here
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
    def is_http_1(self) -> bool:
        """True if the connection has one request at a time. HTTP/2 and HTTP/3 close a stream."""
        return str(self._scope.get("http_version", "")).startswith("1")

    @property
    def raw_path(self) -> str:
        return self.routed_raw.decode("latin-1")

    @property
    def query(self) -> str:
        query: bytes = self._scope.get("query_string", b"")
        return query.decode("latin-1")

    @property
    def peer(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def header(self, name: str) -> str | None:
        try:
            headers = self._headers_by_name
        except AttributeError:  # most requests ask for none
            self._headers_by_name = headers = {}
            for key, line in self._scope["headers"]:
                headers[key] = headers[key] + b", " + line if key in headers else line
        value = headers.get(name.encode())
        return None if value is None else value.decode("latin-1")


class _GoneError(OSError):
    """The error that ``send`` raises after the client has left (ASGI, "Disconnected Client")."""


class _Waits:
    """The waits of a connection for its server, which are cancelled when its session has ended.

    They are cancelled at no other time, so no message is lost while the session lives. The
    connection refers to them, and they not to it: what refers to itself stays in memory until the
    garbage collector finds it, which then holds all requests up.
    """

    __slots__ = (
        "_make_scope", "_next_look", "_scopes", "ended", "ended_at", "is_told", "responding",
    )  # fmt: skip

    def __init__(self, session: Session, gate: Gate) -> None:
        self.ended = False
        self.ended_at = 0.0
        self.is_told = False  # True once the browser was told
        self._scopes: set[anyio.CancelScope] = set()
        self._make_scope: type[anyio.CancelScope] = anyio.CancelScope
        self._next_look = connections.NextLook(session, gate)
        self.responding = anyio.Lock()  # held by the watch, or at the end of the handler

    def end(self) -> None:
        """Cancel all waits."""
        if not self.ended:
            self.ended, self.ended_at = True, time.monotonic()
        for scope in list(self._scopes):
            scope.cancel()

    async def wait(self, connection: connections.Connection, step: Callable[[], Awaitable[T]]) -> T:
        """Wait for the server.

        Args:
            connection: the one whose waits these are.

        Raises:
            _GoneError: the session has ended, now or before.
        """
        if self._next_look.is_due and not self.ended and await self._next_look.finds_end():
            await connection.end()
        if not self.ended:
            scope = self._make_scope()
            # anyio itself finds out at each scope what runs the loop, which takes longer than all
            # the rest.
            self._make_scope = type(scope)
            with scope:
                self._scopes.add(scope)
                try:
                    return await step()
                finally:
                    self._scopes.discard(scope)
        raise _GoneError("the session of this connection has ended")


class _Exchange(ASGIRequest):
    """A request, and the application's response to it on its way out."""

    __slots__ = (
        "_gate", "_has_received", "_headers", "_receive", "_send", "_task", "interrupted", "is_old",
        "is_replaced", "session", "started", "state", "waits",
    )  # fmt: skip

    session: Session  # None for a visitor; only an exchange with a session is watched
    state: dict[str, Any]  # the application's

    def __init__(self, scope: Scope, gate: Gate, receive: Receive, send: Send) -> None:
        ASGIRequest.__init__(self, scope)
        self._gate = gate
        self._receive = receive
        self._send = send
        self.session = None  # type: ignore[assignment]
        self.started = self._has_received = False
        self.is_replaced = False  # True if the client got a response of this middleware
        self.waits: _Waits | None = None  # of an exchange that lasts
        self.is_old = False
        self._task: asyncio.Task[Any] | None = None  # that sends or receives for the handler
        self.interrupted: asyncio.Task[Any] | None = None  # the same, once it was cancelled

    # -- what the application is given --------------------------------------------------------

    def receive(self) -> Awaitable[Message]:
        """Pass on a message of the server: most requests ask for one, with the whole body."""
        if not (self._has_received or self.waits):
            self._has_received = True
            return self._receive()
        return self._receive_watched()

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the application on, unless another response took its place."""
        if self.is_replaced:
            return _ignore()
        if message["type"] == "http.response.start":
            session = self.session
            if message["status"] == 500:
                return self._start(message)
            if session is not None:
                if self.waits is not None or self._gate.needs_check(session):
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
        is_failure, error = message["status"] == 500, self.state.get("cm_error")
        response = await self._gate.before_response(
            self, self.session, is_failure, error, self.ended
        )
        if self.is_replaced:
            return  # the watch has responded meanwhile
        if response is not None:
            await self.respond(response)
            return
        self.started = True
        if self.session is not None:
            self._headers = _private(message.get("headers", ()), self.set_cookies)
            message = {**message, "headers": self._headers}
        await self._send(message)

    async def refuse(self, response: Response) -> None:
        """Send a response of this middleware to a request that the application does not get."""
        response = self._gate.origins.share(self, response)
        await send_and_read_on(response, self, self._receive, self._send)

    async def respond(self, response: Response) -> None:
        """Send a response of this middleware in place of the application's."""
        self.is_replaced = True
        response = self._gate.origins.share(self, response)
        await _send(response, self._send, head=self.method == "HEAD")

    # -- an exchange that lasts: a stream, an upload, a long poll -------------------------------

    def _watch(self) -> _Waits:
        if self.waits is None:
            self.waits = _Waits(self.session, self._gate)
        return self.waits

    def _watch_mine(self) -> _Waits:
        if self._task is None:
            with suppress(RuntimeError):  # on trio
                self._task = asyncio.current_task()
        return self._watch()

    async def _receive_watched(self) -> Message:
        try:
            return await self._watch_mine().wait(self, self._receive)
        except _GoneError:
            return {"type": "http.disconnect"}

    async def _send_watched(self, message: Message) -> None:
        await self._watch_mine().wait(self, lambda: self._send(message))

    async def end(self) -> None:
        """End an exchange whose session has ended: see `connections`.

        The handler learns it, and when it returns the server breaks the response off: half of a
        recording must not look whole. If the handler has not returned when this is called again,
        its response is ended for it. Server-sent events are whole at any time: they end at once.
        """
        waits = self._watch()
        # Two may look at once; a handler has a while to return.
        patience = connections.LOOK_EVERY / 2
        was_ended = waits.ended and time.monotonic() > waits.ended_at + patience
        waits.end()
        if waits.is_told or (was_ended and await self._respond_instead(waits)) or not self.started:
            return
        headers = {name.lower(): value for name, value in self._headers}
        is_whole = headers.get(b"content-type", b"").startswith(b"text/event-stream")
        if was_ended and b"content-length" in headers:
            # A server may take an early end for the end of everything, and the client waits.
            waits.is_told = True
            if self._task is not None:
                self.interrupted = self._task
                self._task.cancel()
        elif is_whole or was_ended:
            waits.is_told = True
            with suppress(Exception):
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _respond_instead(self, waits: _Waits) -> bool:
        """Send a response for a handler that has not begun its own."""
        async with waits.responding:
            if self.started or self.is_replaced:
                return False
            response = await self._gate.session_over(self)
            if response is None or self.started or self.is_replaced:
                return False
            waits.is_told = True
            with suppress(Exception):  # its client left
                await self.respond(response)
        return True

    @property
    def ended(self) -> bool:
        """True if the session ended while the exchange went on."""
        return self.waits is not None and self.waits.ended


class _WebSocket:
    """A WebSocket, on an exempt path perhaps a visitor's."""

    def __init__(self, services: Services, receive: Receive, send: Send) -> None:
        self._gate = services.gate
        self._receive = receive
        self._send = send
        self._is_connected = self._is_accepted = self._is_closed = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application serve it."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as error:
            if not await self._tell(error, scope):
                raise

    async def receive(self) -> Message:
        """Pass on a message of the browser."""
        message = await self._receive()
        self._is_connected = True
        if message["type"] == "websocket.disconnect":
            self._is_closed = True
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message of the application."""
        await self._send(message)
        if message["type"] == "websocket.accept":
            self._is_accepted = True
        elif message["type"] in ("websocket.close", "websocket.http.response.start"):
            self._is_closed = True

    async def _tell(self, error: Exception, scope: Scope) -> bool:
        """Tell the browser of an error of this package; return False for any other."""
        session = scope["state"]["cm_session"]  # None for a visitor
        response = await self._gate.response_to(ASGIRequest(scope), error, session)
        if response is None:
            return False
        if not self._is_closed:
            with suppress(Exception):  # the browser left
                if self._is_accepted:
                    await self._send({"type": "websocket.close", "code": _close_code(response)})
                else:
                    if not self._is_connected:
                        await self._receive()
                    await _deny(response, scope, self._send)
        return True


class _OwnedWebSocket(_WebSocket):
    """A WebSocket with a session; a message of the browser counts as a use of it."""

    def __init__(self, services: Services, session: Session, receive: Receive, send: Send) -> None:
        super().__init__(services, receive, send)
        self.session = session
        self.is_old = False
        self._waits = _Waits(session, services.gate)
        self._open = services.connections.here()
        self._open.add(self)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let the application serve it."""
        try:
            await super().run(app, scope)
        except Exception as error:
            if not (self._waits.ended and _is_about_the_end(error)):
                raise
        finally:
            self._open.discard(self)
            await _finish(self.session, self._gate)

    async def receive(self) -> Message:
        """Pass on a message of the browser."""
        try:
            message = await self._waits.wait(self, lambda: _WebSocket.receive(self))
        except _GoneError:
            return {"type": "websocket.disconnect", "code": _LOGGED_OUT, "reason": "logged out"}
        if message["type"] == "websocket.receive":
            await self._gate.note_use(self.session)
        return message

    async def send(self, message: Message) -> None:
        """Pass on a message of the application, which does not count as a use of the session."""
        if self.session.data_was_read:
            await self._gate.save_late(self.session)
        await self._waits.wait(self, lambda: _WebSocket.send(self, message))

    async def end(self) -> None:
        """Close a WebSocket whose session has ended: see `connections`."""
        if self._waits.ended:
            return
        self._waits.ended = self._is_closed = True
        try:
            # Before the handler learns it: some servers close by themselves when it returns.
            with suppress(Exception):  # it closed just now
                await self._send({"type": "websocket.close", "code": _LOGGED_OUT})
        finally:
            self._waits.end()


async def _finish(session: Session, gate: Gate) -> None:
    """Save the changes of a session by a background task, a streamed body or a WebSocket."""
    with anyio.CancelScope(shield=True):
        await gate.save_late(session)
    session.close()


def _is_about_the_end(error: BaseException) -> bool:
    """Return True if a handler raised this because its session has ended."""
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
    """Ignore what the application sends after another response took the place of its own."""


def _private(headers: Iterable[tuple[bytes, bytes]], added: Headers) -> _RawHeaders:
    """Mark a response as private to one user, and add the headers of this middleware."""
    headers = headers if isinstance(headers, list) else list(headers)
    for name, _ in headers:
        if name.lower() in _MERGED:  # which ASGI wants, and not every application keeps to
            return _merged(headers, added)
    return [*headers, _NO_STORE, _VARY, *_raw(added)] if added else [*headers, _NO_STORE, _VARY]


def _merged(headers: _RawHeaders, added: Headers) -> _RawHeaders:
    """Do the same where the application set one of these headers itself."""
    result, own, varied = list(headers), [], []
    for header in result:
        name = header[0].lower()
        if name == b"cache-control":
            own.append(header[1].decode("latin-1"))
        elif name == b"vary":
            varied.append(header)
    if not own:
        result.append(_NO_STORE)
    elif must_not_be_cached(own, added):
        result = [header for header in result if header[0].lower() != b"cache-control"]
        result.append(_NO_STORE)
    if not varied:
        result.append(_VARY)
    elif not varies_by_cookie([value.decode("latin-1") for _, value in varied]):
        result[result.index(varied[0])] = (b"vary", varied[0][1] + b", Cookie")
    return result + _raw(added)


def _raw(headers: Headers) -> _RawHeaders:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]


async def _send(response: Response, send: Send, *, head: bool, is_whole: bool = True) -> None:
    headers = [*_raw(response.headers), (b"content-length", b"%d" % len(response.body))]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    body = {"type": "http.response.body", "body": b"" if head else response.body}
    await send(body if is_whole else {**body, "more_body": True})


async def send_and_read_on(
    response: Response, request: ASGIRequest, receive: Receive, send: Send
) -> None:
    """Send a response, and read the rest of the request's body before it ends: `unread_body`."""
    is_head = request.method == "HEAD"
    if not request.is_http_1 or not unread_body.is_expected(request):
        await _send(response, send, head=is_head)
        return
    await _send(response, send, head=is_head, is_whole=False)
    with anyio.move_on_after(unread_body.PATIENCE):
        await _read_on(receive)
    with suppress(OSError):  # the client has left
        await send({"type": "http.response.body", "body": b""})


async def _read_on(receive: Receive) -> None:
    left = unread_body.MOST_BYTES
    while left > 0:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body"):
            return
        left -= len(message.get("body", b""))


async def _deny(response: Response, scope: Scope, send: Send) -> None:
    """Refuse a WebSocket before it is accepted (the ASGI denial response extension)."""
    if "websocket.http.response" not in cast("dict[str, Any]", scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": _close_code(response)})
        return
    headers = _raw(response.headers)
    start = {"type": "websocket.http.response.start", "status": response.status, "headers": headers}
    await send(start)
    await send({"type": "websocket.http.response.body", "body": response.body})


def _close_code(response: Response) -> int:
    return {403: _FORBIDDEN, 503: _TRY_LATER}.get(response.status, _LOGGED_OUT)
