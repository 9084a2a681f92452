"""What differs between asyncio, trio and threads: the I/O that the one flow is written against."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import anyio
import httpx2

from .config import CMAuthConfig, seconds
from .errors import UnavailableError

T = TypeVar("T")

MAX_BODY = 1_000_000  # bytes of an answer to a call of our own; a token answer has 300


class AsyncPorts:
    """The ports of the ASGI side, for asyncio and trio.

    Args:
        config: for `timeout`, the seconds that one call to CameraManager may take in total.
        transport: used instead of a connection pool of our own (tests, a private CA).
        clock: epoch seconds.
    """

    def __init__(
        self,
        config: CMAuthConfig,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.timeout = seconds(config.timeout)
        self._given = transport
        self._tls: ssl.SSLContext | None = None
        self._pools: weakref.WeakKeyDictionary[Any, tuple[int, httpx2.AsyncBaseTransport]]
        self._pools = weakref.WeakKeyDictionary()
        self._flights: dict[tuple[int, str], _Flight] = {}
        self._tasks: set[Any] = set()

    def transport(self) -> httpx2.AsyncBaseTransport:
        """The connection pool of this event loop in this process: a socket outlives neither."""
        if self._given is not None:
            return self._given
        loop = _loop()
        pid, pool = self._pools.get(loop, (0, None))
        if pool is None or pid != os.getpid():
            if self._tls is None:
                self._tls = httpx2.create_ssl_context()  # 20 ms: once, not for every loop
            pool = httpx2.AsyncHTTPTransport(verify=self._tls)
            self._pools[loop] = (os.getpid(), pool)
        return pool

    def bounded_transport(self) -> httpx2.AsyncBaseTransport:
        """The same pool for calls of our own: their answers are small or refused."""
        return _Bounded(self.transport())

    async def call(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await a call to CameraManager, for `timeout` seconds in total (not per read)."""
        try:
            with anyio.fail_after(self.timeout):
                return await function()
        except TimeoutError:
            raise UnavailableError("CameraManager did not answer in time") from None

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)

    async def call_hook(self, hook: Callable[..., Any], argument: Any) -> Any:
        """Call an application's function, sync or async."""
        result = hook(argument)
        return await result if inspect.isawaitable(result) else result

    async def single_flight(
        self, key: str, function: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Any:
        """Run `function` once for all who ask for `key` meanwhile, and give each its outcome.

        It runs beside the request: a client that hangs up cannot cancel a refresh halfway, when
        the new token exists at CameraManager and nowhere else.
        """
        return await self.start_flight(key, function).outcome()

    def start_flight(self, key: str, function: Callable[[], Coroutine[Any, Any, Any]]) -> _Flight:
        """Start `function` for `key` unless it is under way; do not wait."""
        slot = (id(_loop()), key)
        flight = self._flights.get(slot)
        if flight is None:
            flight = self._flights[slot] = _Flight(function, lambda: self._flights.pop(slot, None))
            self._spawn(flight.run)
        return flight

    def _spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = _loop()
        if isinstance(loop, asyncio.AbstractEventLoop):
            task = loop.create_task(function())
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
        else:
            _trio().lowlevel.spawn_system_task(function)

    async def close(self) -> None:
        """Let refreshes under way come home, then close the pool of this loop."""
        loop = _loop()
        for (loop_id, _), flight in list(self._flights.items()):
            if loop_id == id(loop):
                await flight.done.wait()
        entry = self._pools.pop(loop, None)
        if entry is not None:
            await entry[1].aclose()


class _Flight:
    """One run of something that several wait for."""

    def __init__(
        self, function: Callable[[], Coroutine[Any, Any, Any]], landed: Callable[[], Any]
    ) -> None:
        self._function = function
        self._landed = landed
        self._result: Any = None
        self._error: Exception | None = None
        self.done = anyio.Event()

    async def run(self) -> None:
        try:
            self._result = await self._function()
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = UnavailableError("the server is shutting down")
            raise
        finally:
            self._landed()
            self.done.set()

    async def outcome(self) -> Any:
        await self.done.wait()
        if self._error is not None:
            # A fresh traceback for every waiter; one exception object shared by hundreds grows.
            raise _again(self._error) from None
        return self._result


def _again(error: Exception) -> Exception:
    twin = error.__class__.__new__(error.__class__, *error.args)
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin


def _loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return _trio().lowlevel.current_trio_token()


def _trio() -> Any:
    return importlib.import_module("trio")  # only where the server runs on it


class _Bounded(httpx2.AsyncBaseTransport):
    """Refuses answers that are large, or compressed (which hides how large they are)."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["Accept-Encoding"] = "identity"
        response = await self._transport.handle_async_request(request)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            await response.aclose()
            raise UnavailableError("CameraManager compressed an answer unasked")
        assert isinstance(response.stream, httpx2.AsyncByteStream)  # noqa: S101 - for the type
        response.stream = _BoundedStream(response.stream)
        return response

    async def aclose(self) -> None:
        """The pool is shared; it outlives each client."""


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for chunk in self._stream:
            total += len(chunk)
            if total > MAX_BODY:
                raise UnavailableError("CameraManager's answer is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
