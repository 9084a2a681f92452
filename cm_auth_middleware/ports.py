"""What differs between event loops and threads: the I/O that the one flow is written against.

Both classes have the same methods. Those of `ThreadPorts` are ``async def`` too, but block and
never suspend, so that `run_sync` can drive the flow to its end without an event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .config import CMAuthConfig, seconds
from .errors import UnavailableError
from .events import log
from .surroundings import SURROUNDINGS
from .transports import AsyncBounded, Bounded, Watchdog, async_pool, pool, tls_context

if TYPE_CHECKING:
    import ssl

    import httpx2

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, Any]]


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose ports block, to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a port of the WSGI side suspended; does a store's blocking() block?")


class _Hooks:
    """The application's functions."""

    async def ask(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call an application's function, sync or async."""
        raise NotImplementedError

    async def call_hook(self, name: str, hook: Callable[[Any], Any] | None, argument: Any) -> None:
        """Call a hook, if there is one; what it raises is logged, for the deed is done."""
        if hook is not None:
            try:
                await self.ask(hook, argument)
            except Exception:
                log("hook_failed", exc_info=True, hook=name)


class AsyncPorts(_Hooks):
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
        self.elapsed = time.monotonic  # for waiting: nobody can set it
        self.timeout = seconds(config.timeout)
        self._base_url = config.base_url
        self._given = transport
        self._tls: ssl.SSLContext | None = None
        self._pools: weakref.WeakKeyDictionary[Any, tuple[int, httpx2.AsyncBaseTransport]]
        self._pools = weakref.WeakKeyDictionary()
        self._flights: weakref.WeakKeyDictionary[Any, dict[str, _Flight]]
        self._flights = weakref.WeakKeyDictionary()
        self._tasks: set[Any] = set()

    def transport(self) -> httpx2.AsyncBaseTransport:
        """The connection pool of this event loop in this process: a socket outlives neither."""
        standing_in = self._given or SURROUNDINGS.transport(self._base_url)
        if standing_in is not None:
            return standing_in
        loop = _loop()
        pid, found = self._pools.get(loop, (0, None))
        if found is None or pid != os.getpid():
            self._tls = self._tls or tls_context()
            found = async_pool(self._tls)
            self._pools[loop] = (os.getpid(), found)
        return found

    async def api_call(self, method: str, url: str, headers: dict[str, str]) -> httpx2.Response:
        """Send a request of our own to the API, for `timeout` seconds in total."""
        import httpx2

        async def call() -> httpx2.Response:
            transport = AsyncBounded(self.transport())
            async with httpx2.AsyncClient(transport=transport, timeout=self.timeout) as client:
                return await client.request(method, url, headers=headers)

        return await self._bounded(call)

    async def oauth_call(self, send: Callable[[Any], Any], **options: Any) -> Any:
        """Send a message through Authlib's client, for `timeout` seconds in total."""
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        async def call() -> Any:
            transport = AsyncBounded(self.transport())
            async with AsyncOAuth2Client(
                transport=transport, timeout=self.timeout, **options
            ) as client:
                return await send(client)

        return await self._bounded(call)

    async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with anyio.fail_after(self.timeout):
                return await call()
        except TimeoutError:
            raise UnavailableError("CameraManager did not answer in time") from None

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)

    async def ask(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call an application's function, sync or async."""
        result = function(argument)
        return await result if inspect.isawaitable(result) else result

    async def single_flight(self, key: str, work: Work) -> Any:
        """Run `work` once for all who ask for `key` meanwhile, and give each its outcome.

        It runs beside the request: a client that hangs up cannot cancel a refresh halfway, when
        the new token exists at CameraManager and nowhere else.
        """
        flight = self._start(key, work)
        await flight.done.wait()
        return flight.outcome()

    def start_flight(self, key: str, work: Work) -> None:
        """Start `work` for `key` unless it is under way; do not wait, nor report its errors."""
        self._start(key, work)

    def _start(self, key: str, work: Work) -> _Flight:
        flights = self._flights.setdefault(_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = _Flight(anyio.Event())

            async def run(flight: _Flight = flight) -> None:
                try:
                    await flight.run(work)
                finally:
                    del flights[key]
                    flight.done.set()

            self._spawn(run)
        return flight

    def _spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = _loop()
        if isinstance(loop, asyncio.AbstractEventLoop):
            task = loop.create_task(function())
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
        else:
            _trio().lowlevel.spawn_system_task(function)

    async def beside(self, tick: Work, every: float, work: Work) -> Any:
        """Run `work`, and `tick` every so many seconds until it ends."""

        async def ticking() -> None:
            while True:
                await anyio.sleep(every)
                await tick()

        flight = _Flight(None)  # keeps an error of `work` out of the task group's wrapping
        async with anyio.create_task_group() as group:
            group.start_soon(ticking)
            await flight.run(work)
            group.cancel_scope.cancel()
        return flight.outcome()

    async def close(self) -> None:
        """Let refreshes under way come home, then close the pool of this loop."""
        loop = _loop()
        for flight in list(self._flights.get(loop, {}).values()):
            await flight.done.wait()
        entry = self._pools.pop(loop, None)
        if entry is not None:
            await entry[1].aclose()


class ThreadPorts(_Hooks):
    """The ports of the WSGI side: they block, and never suspend. See `AsyncPorts`."""

    def __init__(
        self,
        config: CMAuthConfig,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.clock = clock
        self.elapsed = time.monotonic  # for waiting: nobody can set it
        self.timeout = seconds(config.timeout)
        self._base_url = config.base_url
        self._given = transport
        self._tls: ssl.SSLContext | None = None
        self._after_fork()
        _forget_at_fork(self)

    def _after_fork(self) -> None:
        """Start anew: a fork shares the parent's sockets, and its locks may be held for ever."""
        self._lock = threading.Lock()
        self._pool: httpx2.BaseTransport | None = None
        self._flights: dict[str, _Flight] = {}

    def transport(self) -> httpx2.BaseTransport:
        """The connection pool of this process, for all its threads."""
        standing_in = self._given or SURROUNDINGS.transport(self._base_url)
        if standing_in is not None:
            return standing_in
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    self._tls = self._tls or tls_context()
                    self._pool = pool(self._tls)
        return self._pool

    async def api_call(self, method: str, url: str, headers: dict[str, str]) -> httpx2.Response:
        """As in `AsyncPorts`."""
        import httpx2

        with (
            self._one_call() as transport,
            httpx2.Client(transport=transport, timeout=self.timeout) as client,
        ):
            return client.request(method, url, headers=headers)

    async def oauth_call(self, send: Callable[[Any], Any], **options: Any) -> Any:
        """As in `AsyncPorts`."""
        from authlib.integrations.httpx_client import OAuth2Client

        with (
            self._one_call() as transport,
            OAuth2Client(transport=transport, timeout=self.timeout, **options) as client,
        ):
            return send(client)

    @contextmanager
    def _one_call(self) -> Iterator[Bounded]:
        """A connection of its own, which the watchdog may cut without harm to anybody else."""
        standing_in = self._given or SURROUNDINGS.transport(self._base_url)
        self._tls = self._tls or tls_context()
        own = standing_in or pool(self._tls)
        try:
            with Watchdog(self.timeout) as dog:
                yield Bounded(own, dog)
        finally:
            if own is not standing_in:
                own.close()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)  # noqa: ASYNC251 - blocks on purpose: there is no event loop here

    async def ask(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """As in `AsyncPorts`; a function that is async runs in an event loop of its own."""
        result = function(argument)
        return _run_elsewhere(result) if inspect.iscoroutine(result) else result

    async def single_flight(self, key: str, work: Work) -> Any:
        """As in `AsyncPorts`; the first who asks does the work, the others wait for it."""
        flight, is_mine = self._board(key)
        if is_mine:
            await self._fly(key, flight, work)
        else:
            flight.done.wait()
        return flight.outcome()

    def start_flight(self, key: str, work: Work) -> None:
        """As in `AsyncPorts`; in a thread that the interpreter waits for when it ends."""
        flight, is_mine = self._board(key)
        if is_mine:
            thread = threading.Thread(
                target=lambda: run_sync(self._fly(key, flight, work)), name="cm_auth refresh"
            )
            thread.start()

    def _board(self, key: str) -> tuple[_Flight, bool]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight(threading.Event())
            return flight, True

    async def _fly(self, key: str, flight: _Flight, work: Work) -> None:
        try:
            await flight.run(work)
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()

    async def beside(self, tick: Work, every: float, work: Work) -> Any:
        """As in `AsyncPorts`."""
        over = threading.Event()

        def ticking() -> None:
            while not over.wait(every):
                run_sync(tick())

        thread = threading.Thread(target=ticking, name="cm_auth lease", daemon=True)
        thread.start()
        try:
            return await work()
        finally:
            over.set()
            thread.join()

    async def close(self) -> None:
        """Let refreshes under way come home, then close the pool."""
        for flight in list(self._flights.values()):
            flight.done.wait()
        found, self._pool = self._pool, None
        if found is not None:
            found.close()


Ports = AsyncPorts | ThreadPorts


class _Flight:
    """One run of something that several wait for."""

    def __init__(self, done: Any) -> None:
        self.done = done
        self._result: Any = None
        self._error: Exception | None = None

    async def run(self, work: Work) -> None:
        try:
            self._result = await work()
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = UnavailableError("the server is shutting down")
            raise

    def outcome(self) -> Any:
        if self._error is not None:
            # A fresh traceback for every waiter; one exception object shared by hundreds grows.
            raise _again(self._error) from None
        return self._result


def _again(error: Exception) -> Exception:
    twin = error.__class__.__new__(error.__class__, *error.args)
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin


def has_event_loop() -> bool:
    """Whether this code runs under asyncio or trio."""
    return _find_loop() is not None


def _loop() -> Any:
    loop = _find_loop()
    if loop is None:
        raise RuntimeError("the ASGI side needs a running event loop")
    return loop


def _find_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    import sys

    if "trio" not in sys.modules:
        return None
    try:
        return _trio().lowlevel.current_trio_token()
    except RuntimeError:
        return None


def _trio() -> Any:
    return importlib.import_module("trio")  # only where the server runs on it


def _run_elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own: this one may have an event loop already."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def _forget_at_fork(ports: ThreadPorts) -> None:
    if not hasattr(os, "register_at_fork"):  # pragma: no cover - Windows cannot fork
        return
    reference = weakref.ref(ports)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive._after_fork()

    os.register_at_fork(after_in_child=forget)
