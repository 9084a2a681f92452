"""Reach an ASGI app from synchronous code, in process: requests, streamed answers, lifespan."""

from __future__ import annotations

import queue
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import anyio
import httpx2

from cm_auth_middleware.testing.loop import LoopThread

_LIFESPAN_TIMEOUT = 30.0  # seconds that an application may take to start, and to stop
_App = Callable[..., Coroutine[Any, Any, None]]


class ASGIBridge(httpx2.BaseTransport):
    """A transport for `httpx2.Client` that calls an ASGI app, which runs in `loop`.

    Unlike `httpx2.ASGITransport`, it hands on an answer's parts as they come, and obeys the read
    timeout.

    Args:
        app: the application.
        loop: where it runs.
        raise_app_exceptions: raise what the application raises, rather than see its 500.
    """

    def __init__(self, app: _App, loop: LoopThread, *, raise_app_exceptions: bool = True) -> None:
        self._app = app
        self._loop = loop
        self._raises = raise_app_exceptions
        self.state: dict[str, Any] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; return when the answer has begun."""
        exchange = _Exchange(self._app, _scope(request, self.state), request.read())
        done = self._loop.start(exchange.run)
        body = _Body(self._loop, exchange, done, _read_timeout(request), self._raises)
        status, headers = body.start()
        return httpx2.Response(status, headers=headers, stream=body)


class Lifespan:
    """The lifespan of an ASGI app (ASGI's lifespan protocol), entered and left by hand."""

    def __init__(self, app: _App, loop: LoopThread) -> None:
        self._app = app
        self._loop = loop
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._task: Future[None] | None = None
        self.state: dict[str, Any] = {}

    def start(self) -> None:
        """Run the application's start-up, if it has one.

        Raises:
            RuntimeError: the application refused to start.
        """
        self._leave = self._loop.call(anyio.Event)
        self._task = self._loop.start(self._run)
        self._expect("startup")

    def stop(self) -> None:
        """Run the application's shut-down."""
        if self._task is not None and not self._task.done():
            self._loop.call(self._leave.set)
            self._expect("shutdown")

    def _expect(self, phase: str) -> None:
        try:
            message = self._answers.get(timeout=_LIFESPAN_TIMEOUT)
        except queue.Empty:
            raise RuntimeError(f"the application's {phase} takes too long") from None
        if message is not None and message["type"] == f"lifespan.{phase}.failed":
            raise RuntimeError(f"the application's {phase} failed: {message.get('message', '')}")

    async def _run(self) -> None:
        begun = False

        async def receive() -> dict[str, str]:
            nonlocal begun
            if not begun:
                begun = True
                return {"type": "lifespan.startup"}
            await self._leave.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Any) -> None:
            self._answers.put(message)

        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": self.state}
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            # The protocol's way to say that there is no lifespan; after a failure, known by now.
            self._answers.put({"type": "lifespan.shutdown.failed", "message": repr(error)})
        finally:
            self._answers.put(None)


class _Exchange:
    """One request in the loop, and the queue through which its answer leaves it."""

    def __init__(self, app: _App, scope: dict[str, Any], body: bytes) -> None:
        self._app = app
        self._scope = scope
        self._request: list[bytes] = [body]
        self._over: anyio.Event | None = None
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def run(self) -> None:
        self._over = anyio.Event()
        error: Exception | None = None
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as raised:
            error = raised
        finally:
            self.answers.put(error)  # an error, or None: the end in any case

    async def _receive(self) -> dict[str, Any]:
        if self._request:
            return {"type": "http.request", "body": self._request.pop(), "more_body": False}
        assert self._over is not None  # noqa: S101 - for the type
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        assert self._over is not None  # noqa: S101 - for the type
        if message["type"] == "http.response.body":
            if self._scope["method"] == "HEAD":
                message = {**message, "body": b""}
            if not message.get("more_body", False):
                self._over.set()
        self.answers.put(message)


class _Body(httpx2.SyncByteStream):
    """An answer on its way to the caller."""

    def __init__(
        self,
        loop: LoopThread,
        exchange: _Exchange,
        done: Future[None],
        timeout: float | None,
        raises: bool,
    ) -> None:
        self._loop = loop
        self._exchange = exchange
        self._done = done
        self._timeout = timeout
        self._raises = raises

    def start(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        message = self._next()
        if message is None:
            self._exchange.answers.put(None)  # for who reads the body
            return 500, []
        return message["status"], list(message.get("headers", []))

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._next()) is not None:
            if message["type"] == "http.response.body" and message.get("body"):
                yield message["body"]

    def close(self) -> None:
        """Hang up: an application that has not finished is cancelled, as on a server."""
        if not self._done.done():
            self._done.cancel()

    def _next(self) -> Any:
        try:
            message = self._exchange.answers.get(timeout=self._timeout)
        except queue.Empty:
            self.close()
            raise httpx2.ReadTimeout("the application did not answer in time") from None
        if isinstance(message, Exception):
            if self._raises:
                raise message
            return None
        return message


def _scope(request: httpx2.Request, state: dict[str, Any]) -> dict[str, Any]:
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "server": (url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)),
        "client": ("127.0.0.1", 50_000),
        "root_path": "",
        "state": dict(state),
    }


def _read_timeout(request: httpx2.Request) -> float | None:
    seconds: float | None = request.extensions.get("timeout", {}).get("read")
    return seconds
