"""Call an ASGI app from synchronous code in the same process: requests, streams, lifespan."""

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

    Unlike `httpx2.ASGITransport`, it passes on each part of a response as soon as the app sends
    it, and applies the read timeout.

    Args:
        app: the application.
        loop: the event loop that the application runs in.
        raise_app_exceptions: raise the application's exceptions, instead of answering 500.
    """

    def __init__(self, app: _App, loop: LoopThread, *, raise_app_exceptions: bool = True) -> None:
        self._app = app
        self._loop = loop
        self._raises = raise_app_exceptions
        self.state: dict[str, Any] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request, and return when its response has begun."""
        exchange = _Exchange(self._app, _scope(request, self.state), request.read())
        try:
            done = self._loop.start(exchange.run)
        except RuntimeError as error:  # the loop has just been closed: a test's thread goes on
            raise httpx2.ConnectError("the application is shut down") from error
        body = _Body(self._loop, exchange, done, _read_timeout(request), self._raises)
        status, headers = body.start()
        return httpx2.Response(status, headers=headers, stream=body)


class Lifespan:
    """Starts an ASGI app and shuts it down, by ASGI's lifespan protocol."""

    def __init__(self, app: _App, loop: LoopThread) -> None:
        self._app = app
        self._loop = loop
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._task: Future[None] | None = None
        self.state: dict[str, Any] = {}

    def start(self) -> None:
        """Run the application's start-up, if it has one.

        Raises:
            RuntimeError: the start-up failed, or took more than 30 seconds.
        """
        self._leave = self._loop.call(anyio.Event)
        self._task = self._loop.start(self._run)
        self._expect("startup")

    def stop(self) -> None:
        """Run the application's shut-down, if its start-up succeeded.

        Raises:
            RuntimeError: the shut-down failed, or took more than 30 seconds.
        """
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
            # At the start, this means that the app has no lifespan; so only `stop` reports it.
            self._answers.put({"type": "lifespan.shutdown.failed", "message": repr(error)})
        finally:
            self._answers.put(None)


class _Exchange:
    """One request, which runs in the event loop, and a queue that brings back its response."""

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
            self.answers.put(error)  # the error or None; both mean that nothing follows

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
    """The body of a response, read from the queue part by part."""

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
            self._exchange.answers.put(None)  # so that reading the body ends at once
            return 500, []
        return message["status"], list(message.get("headers", []))

    def __iter__(self) -> Iterator[bytes]:
        while (message := self._next()) is not None:
            if message["type"] == "http.response.body" and message.get("body"):
                yield message["body"]

    def close(self) -> None:
        """Disconnect; an application that has not finished is cancelled, as by a server."""
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
