"""The ASGI shell: a pure ASGI middleware around the flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

import anyio

from .client import AsyncCMClient, UnusedAsyncCMClient
from .engine import AuthEngine
from .errors import ConfigError, UnavailableError
from .events import log
from .http import Answer, Request, must_not_be_cached

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from .config import CMAuthConfig
    from .flow import Flow
    from .http import Headers
    from .options import CMAuthOptions
    from .session import Session

_RawHeaders = list[tuple[bytes, bytes]]
_NO_STATE: dict[str, Any] = {}

_WATCH = 30.0  # seconds between looks at the session of an open WebSocket
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
        exchange.begin(self._flow, session, scope["state"], send)
        try:
            await self.app(scope, receive, exchange.send)
        except Exception as error:
            answer = None if exchange.started else await self._flow.answer_to(exchange, error)
            if answer is None:
                raise
            if not exchange.answered:
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
        if outcome is not None:
            watch = _Watch(self._flow, outcome, receive, send)
            receive, send = watch.receive, watch.send
        await self.app(scope, receive, send)

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
                # Some servers put the mount into the path, as the specification says; some do
                # not. To the letter what Starlette routes, or an exempt path might be another.
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
        # Litestar routes what comes after the mount's path, wherever in the path that is.
        is_stripped = self.path != self._scope["path"]
        return self.root_path in self.path and not is_stripped

    @property
    def query(self) -> str:
        query: bytes = self._scope.get("query_string", b"")
        return query.decode("latin-1")

    @property
    def address(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        lines = [value for key, value in self._scope["headers"] if key == wanted]
        return b", ".join(lines).decode("latin-1") if lines else None


class _Exchange(ASGIRequest):
    """A request, and the application's response to it on its way out."""

    __slots__ = ("_flow", "_send", "_session", "_state", "answered", "started")

    def begin(self, flow: Flow, session: Session | None, state: dict[str, Any], send: Send) -> None:
        """Let the application answer."""
        self._state = state
        self.started = False
        self.answered = False  # by us, in place of the application
        self._flow = flow
        self._session = session
        self._send = send

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the application on, unless an answer of ours took its place."""
        if self.answered:
            return _nothing()
        if message["type"] == "http.response.start":
            session = self._session
            if message["status"] == 500 or (session is not None and session.is_touched):
                return self._start(message)
            if session is not None:
                message = self._private(message)
            self.started = True
        return self._send(message)

    async def _start(self, message: Message) -> None:
        answer = await self._before_start(message)
        if answer is None:
            self.started = True
            await self._send(message if self._session is None else self._private(message))
        else:
            self.answered = True
            await _send(answer, self._send, head=self.method == "HEAD")

    async def _before_start(self, message: Message) -> Answer | None:
        session = self._session
        if message["status"] == 500:
            # The framework may have caught our error on its way and made a 500 of it.
            trouble = self._state.get("cm_trouble")
            if trouble is None and session is not None:
                trouble = session.trouble
            answer = await self._flow.answer_to(self, trouble)
            if answer is not None:
                return answer
        if session is None:
            return None
        try:
            await self._flow.save(session)
        except UnavailableError as error:
            return await self._flow.unavailable(self, error)
        return None

    def _private(self, message: Message) -> Message:
        # A new message: an application may send its own to many users, as response caches do.
        headers = _private(message.get("headers", ()), self.set_cookies)
        return {**message, "headers": headers}


async def _nothing() -> None:
    """Take what the application sends after an answer of ours."""


def _private(headers: Iterable[tuple[bytes, bytes]], ours: Headers) -> _RawHeaders:
    """Say that a response is one user's own, and add our headers."""
    result, own, vary = list(headers), [], None
    for header in result:
        if header[0] == b"cache-control":
            own.append(header[1].decode("latin-1"))
        elif header[0] == b"vary" and vary is None:
            vary = header
    if not own:
        result.append(_NO_STORE)
    elif must_not_be_cached(own, ours):
        result = [header for header in result if header[0] != b"cache-control"]
        result.append(_NO_STORE)
    if vary is None:
        result.append(_VARY)
    elif b"cookie" not in vary[1].lower():
        result[result.index(vary)] = (b"vary", vary[1] + b", Cookie")
    if ours:
        result += [(name.lower().encode(), value.encode("latin-1")) for name, value in ours]
    return result


class _Watch:
    """Closes a WebSocket within a minute after its session was logged out elsewhere."""

    def __init__(self, flow: Flow, session: Session, receive: Receive, send: Send) -> None:
        self._flow = flow
        self._session = session
        self._receive = receive
        self._send = send
        self._looked_at = anyio.current_time()
        self._closed = False

    async def receive(self) -> Message:
        while not self._closed:
            with anyio.move_on_after(_WATCH):
                message = await self._receive()
                await self._look()
                return message
            await self._look()
        return {"type": "websocket.disconnect", "code": _LOGGED_OUT}

    async def send(self, message: Message) -> None:
        await self._look()
        if not self._closed:
            await self._send(message)

    async def _look(self) -> None:
        now = anyio.current_time()
        if self._closed or now - self._looked_at < _WATCH - 1:
            return
        self._looked_at = now
        try:
            alive = await self._flow.is_alive(self._session)
        except UnavailableError:
            return
        if not alive:
            self._closed = True
            await self._send({"type": "websocket.close", "code": _LOGGED_OUT})


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
