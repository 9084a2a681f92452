"""What differs between event loops and threads: the I/O that the one flow is written against.

Both classes have the same methods. Those of `ThreadPorts` are ``async def`` too, but block and
never suspend, so that `run_sync` can drive the flow to its end without an event loop.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .config import CMAuthConfig, seconds
from .driver import run_elsewhere, run_sync, running_loop
from .errors import UnavailableError
from .events import log
from .flights import AsyncFlights, Flight, ThreadFlights, Work
from .surroundings import SURROUNDINGS
from .transports import (
    AsyncBounded,
    AsyncPools,
    Bounded,
    Watchdog,
    async_pool,
    keep_tokens_out_of_logs,
    pool,
    tls_context,
)

if TYPE_CHECKING:
    import ssl

    import httpx2

T = TypeVar("T")


class Repetition:
    """Work that is repeated until it is stopped.

    Attributes:
        stopper: stops it: a cancel scope on an event loop, an event between threads.
        is_over: True when it has ended.
    """

    def __init__(self, stopper: Any) -> None:
        self.stopper = stopper
        self.is_over = False


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
        keep_tokens_out_of_logs()
        self._tls: ssl.SSLContext | None = None
        self._pools: weakref.WeakKeyDictionary[Any, tuple[int, AsyncPools]]
        self._pools = weakref.WeakKeyDictionary()
        self._repetitions: weakref.WeakKeyDictionary[Any, set[Repetition]]
        self._repetitions = weakref.WeakKeyDictionary()
        self._flights = AsyncFlights()
        self.single_flight, self.start_flight = self._flights.single_flight, self._flights.start

    def transport(self) -> httpx2.AsyncBaseTransport:
        """The ready clients' connection pool."""
        return self._given or SURROUNDINGS.transport(self._base_url) or self._open().clients

    def _one_call(self) -> AsyncBounded:
        """The transport of a call of our own: no number of clients leaves it without one."""
        standing_in = self._given or SURROUNDINGS.transport(self._base_url)
        return AsyncBounded(standing_in or self._open().own)

    def _open(self) -> AsyncPools:
        """The pools of this event loop in this process: a socket outlives neither."""
        loop = running_loop()
        pid, found = self._pools.get(loop, (0, None))
        if found is None or pid != os.getpid():
            self._tls = self._tls or tls_context()
            found = AsyncPools(async_pool(self._tls), async_pool(self._tls))
            self._pools[loop] = (os.getpid(), found)
        return found

    async def api_call(self, method: str, url: str, headers: dict[str, str]) -> httpx2.Response:
        """Send a request of our own to the API, for `timeout` seconds in total."""
        import httpx2

        async def call() -> httpx2.Response:
            async with httpx2.AsyncClient(
                transport=self._one_call(), timeout=self.timeout
            ) as client:
                return await client.request(method, url, headers=headers)

        return await self._bounded(call)

    async def oauth_call(self, send: Callable[[Any], Any], **options: Any) -> Any:
        """Send a message through Authlib's client, for `timeout` seconds in total."""
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        async def call() -> Any:
            async with AsyncOAuth2Client(
                transport=self._one_call(), timeout=self.timeout, **options
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

    async def beside(self, tick: Work, every: float, work: Work) -> Any:
        """Run `work`, and `tick` every so many seconds until it ends."""

        async def ticking() -> None:
            while True:
                await anyio.sleep(every)
                await tick()

        flight = Flight(None)  # keeps an error of `work` out of the task group's wrapping
        async with anyio.create_task_group() as group:
            group.start_soon(ticking)
            await flight.run(work)
            group.cancel_scope.cancel()
        return flight.outcome()

    def repeat(self, every: float, work: Callable[[], Awaitable[bool]]) -> Repetition:
        """Run `work` every so many seconds, beside everything else on this event loop.

        It goes on until `work` returns False, or `close` is called. Nothing waits for it.
        """
        repetitions = self._repetitions.setdefault(running_loop(), set())
        repetition = Repetition(anyio.CancelScope())

        async def run() -> None:
            try:
                with repetition.stopper:
                    await anyio.sleep(every)
                    while await work():  # noqa: ASYNC110 - what is looked for tells nobody
                        await anyio.sleep(every)
            finally:
                repetition.is_over = True
                repetitions.discard(repetition)

        repetitions.add(repetition)
        self._flights.spawn(run)
        return repetition

    async def close(self) -> None:
        """Let refreshes under way come home, then close the pools of this loop."""
        loop = running_loop()
        for repetition in list(self._repetitions.get(loop, ())):
            repetition.stopper.cancel()
        await self._flights.land()
        _, found = self._pools.pop(loop, (0, ()))
        for each in found:
            await each.aclose()


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
        keep_tokens_out_of_logs()
        self._tls: ssl.SSLContext | None = None
        self._after_fork()
        _forget_at_fork(self)

    def _after_fork(self) -> None:
        """Start anew: a fork shares the parent's sockets, and its locks may be held for ever."""
        self._lock = threading.Lock()
        self._pool: httpx2.BaseTransport | None = None
        self._repetitions: set[Repetition] = set()
        self._flights = ThreadFlights()
        self.single_flight, self.start_flight = self._flights.single_flight, self._flights.start

    def transport(self) -> httpx2.BaseTransport:
        """The ready clients' connection pool, for all threads of this process."""
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
        return run_elsewhere(_waiting(result)) if inspect.isawaitable(result) else result

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

    def repeat(self, every: float, work: Callable[[], Awaitable[bool]]) -> Repetition:
        """As in `AsyncPorts`, in a thread that ends with the process."""
        repetition, repetitions = Repetition(threading.Event()), self._repetitions

        async def step() -> bool:
            return await work()

        def run() -> None:
            try:
                while not repetition.stopper.wait(every) and run_sync(step()):
                    pass
            finally:
                repetition.is_over = True
                repetitions.discard(repetition)

        self._repetitions.add(repetition)
        threading.Thread(target=run, name="cm_auth watch", daemon=True).start()
        return repetition

    async def close(self) -> None:
        """Let refreshes under way come home, then close the pool."""
        for repetition in list(self._repetitions):
            repetition.stopper.set()
        await self._flights.land()
        found, self._pool = self._pool, None
        if found is not None:
            found.close()


Ports = AsyncPorts | ThreadPorts


async def _waiting(awaitable: Awaitable[T]) -> T:
    return await awaitable


def _forget_at_fork(ports: ThreadPorts) -> None:
    if not hasattr(os, "register_at_fork"):  # pragma: no cover - Windows cannot fork
        return
    reference = weakref.ref(ports)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive._after_fork()

    os.register_at_fork(after_in_child=forget)
