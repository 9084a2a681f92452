"""The runtime of the ASGI side: it awaits, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import UnavailableError
from .base import MOST_LATE, Call, Connections, Repetition, Runtime, Work
from .running_loop import running_loop

if TYPE_CHECKING:
    import httpx2

# Work that need not wait has ended before its task is scheduled.
_AT_ONCE = {"eager_start": True} if sys.version_info >= (3, 12) else {}


class EventLoopRuntime(Runtime):
    """The runtime for event loops; each loop has connections of its own."""

    single_flight: SingleFlight
    is_async = True
    exchanges_at_once = 16

    def _start(self) -> None:
        self.single_flight = SingleFlight()
        self._late = 0  # pieces of work that were cancelled, and have not ended
        self._pools: weakref.WeakKeyDictionary[Any, _Pools] = weakref.WeakKeyDictionary()
        self._repetitions: weakref.WeakKeyDictionary[Any, set[Repetition]]
        self._repetitions = weakref.WeakKeyDictionary()
        self._lasting: weakref.WeakSet[Any] = weakref.WeakSet()

    def note_lifespan(self, *, is_open: bool) -> None:
        """Note that the server runs its lifespan on this event loop, which lasts until its end."""
        if is_open:
            self._lasting.add(running_loop())
        else:
            self._lasting.discard(running_loop())

    def _outlives_requests(self) -> bool:
        # A loop may be made for one request (`asyncio.run`, a test client), or run only during
        # requests (Mangum).
        return running_loop() in self._lasting

    def load_sockets(self) -> None:
        if self._given_transport() is None:
            anyio.run(_use_sockets)  # 1.5 MB, and 20 ms for which the server's loop would stop

    def transport(self) -> Any:
        return self._given_transport() or self._own_pools().clients

    def _own_pools(self) -> _Pools:
        """Return the pools of this event loop in this process: a socket is of no use in another."""
        loop = running_loop()
        pools = self._pools.get(loop)
        if pools is None or pools.pid != os.getpid():
            for ended in [loop for loop in self._pools if getattr(loop, "is_closed", bool)()]:
                del self._pools[ended]  # its connections refer to it, so it would never be freed
            pools = _Pools(os.getpid(), *(_pool(self._tls()) for _ in range(3)))
            self._pools[loop] = pools
            pools.close_at_the_end()
        return pools

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        content: bytes | None = None,
        connections: Connections = "calls",
    ) -> httpx2.Response:
        from . import http  # when first needed

        transport: httpx2.AsyncBaseTransport
        transport = self._given_transport() or getattr(self._own_pools(), connections)
        request = http.own_request(method, url, headers, content, self.timeout)
        try:
            with anyio.fail_after(self.timeout):
                async with aclosing(await transport.handle_async_request(request)) as response:
                    http.bound(response)
                    await response.aread()
        except TimeoutError:
            raise UnavailableError("the server did not answer in time") from None
        return response

    async def discard(self, response: httpx2.Response) -> None:
        if response.is_stream_consumed or response.is_closed:
            return  # an event hook of the client has read it
        import httpx2

        from . import http

        stream: Any = response.stream
        rest = http.Discarded(response)
        # Its end is of no interest, and neither is an error on the way there.
        with (
            suppress(Exception),
            anyio.move_on_after(self.timeout),
            http.reading(response, http.MAX_DISCARDED),
        ):
            async with aclosing(aiter(stream)) as parts:
                while rest.is_short and (part := await anext(parts, None)) is not None:
                    rest.count(part)
        with anyio.CancelScope(shield=True):
            await stream.aclose()
        response.stream = httpx2.ByteStream(b"")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def within(self, seconds: float, work: Work) -> Any:
        # Apart from the request, for not all work ends when it is cancelled: a thread does not.
        if self._late >= MOST_LATE:
            raise UnavailableError("others have not been answered yet")
        call, scope = Call(anyio.Event()), anyio.CancelScope()

        async def run() -> None:
            try:
                with scope:
                    await call.run(work)
            finally:
                self._late -= scope.cancel_called
                call.done.set()

        self.single_flight.spawn(run, **_AT_ONCE)
        try:
            if not call.done.is_set():
                with anyio.move_on_after(seconds):
                    await call.done.wait()
            if call.done.is_set():
                return call.outcome()
        finally:
            if not call.done.is_set():
                self._late += 1
                scope.cancel()
        raise UnavailableError("no answer came in time")

    @asynccontextmanager
    async def heartbeat(self, tick: Work, every: float) -> AsyncIterator[None]:
        async def ticking() -> None:
            while True:
                await anyio.sleep(every)
                await tick()

        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(ticking)
            try:
                yield
            except Exception as error:
                failure = error  # raised below: the task group would wrap it
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def repeat(self, every: float, work: Callable[[], Awaitable[bool]]) -> Repetition:
        loop = running_loop()
        repetitions = self._repetitions.setdefault(loop, set())
        if isinstance(loop, asyncio.AbstractEventLoop):
            timed = _TimedRepetition(loop, self.single_flight, every, work, repetitions)
            timed.start()
            return timed
        repetition = Repetition(anyio.CancelScope())

        async def run() -> None:
            try:
                with repetition.stopper:
                    await anyio.sleep(every)
                    while await work():  # noqa: ASYNC110 - no event says when to look again
                        await anyio.sleep(every)
            finally:
                repetition.has_ended = True
                repetitions.discard(repetition)

        repetitions.add(repetition)
        self.single_flight.spawn(run)
        return repetition

    async def call_user_function(self, function: Callable[[Any], Any], argument: Any) -> Any:
        result = function(argument)
        return await result if inspect.isawaitable(result) else result

    async def close(self) -> None:
        """Wait for refreshes under way on this event loop, then close its connections."""
        loop = running_loop()
        for repetition in list(self._repetitions.get(loop, ())):
            repetition.stopper.cancel()
        await self.single_flight.wait_all()
        pools = self._pools.pop(loop, None)
        if pools is not None:
            await pools.aclose()


class _TimedRepetition(Repetition):
    """Work that a timer of asyncio repeats: between its turns no task is left.

    A loop that was made for one request is closed with whatever is on it. A timer that is dropped
    with it does no harm, but a task would, and asyncio would complain of it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        single_flight: SingleFlight,
        every: float,
        work: Callable[[], Awaitable[bool]],
        running: set[Repetition],
    ) -> None:
        super().__init__(self)
        self._loop = loop
        self._spawn = single_flight.spawn
        self._every = every
        self._work = work
        self._running = running
        self._timer: asyncio.TimerHandle | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def is_over(self) -> bool:
        return self.has_ended or self._loop.is_closed()

    def start(self) -> None:
        self._running.add(self)
        self._wait()

    def cancel(self) -> None:
        """Stop the work."""
        self._end()
        if self._timer is not None:
            self._timer.cancel()
        if self._scope is not None:
            self._scope.cancel()

    def _wait(self) -> None:
        # In a context of its own: that of the request would keep its client alive, and a token.
        self._timer = self._loop.call_later(self._every, self._spawn, self._turn, context=Context())

    async def _turn(self) -> None:
        goes_on = False
        try:
            with anyio.CancelScope() as self._scope:
                goes_on = await self._work()
        finally:
            self._scope = None
            if goes_on and not self.has_ended:
                self._wait()
            else:
                self._end()

    def _end(self) -> None:
        self.has_ended = True
        self._running.discard(self)


class SingleFlight:
    """Runs work once for each key on an event loop; see `base.SingleFlight`.

    The work is not part of the request that started it: a client that hangs up cannot cancel a
    refresh halfway, when the new token exists at CameraManager and nowhere else.
    """

    def __init__(self) -> None:
        self._calls: weakref.WeakKeyDictionary[Any, dict[str, Call]] = weakref.WeakKeyDictionary()
        self._tasks: set[Any] = set()

    async def do(self, key: str, work: Work) -> Any:
        call = self._join(key, work)
        await call.done.wait()
        return call.outcome()

    do_impatiently = do  # a request that waits keeps no thread

    async def do_apart(self, key: str, work: Work, *, asks: Sequence[str] = ()) -> Any:  # noqa: ARG002
        return await self.do(key, work)

    def start(self, key: str, work: Work) -> None:
        self._join(key, work)

    async def wait_all(self) -> None:
        for call in list(self._calls.get(running_loop(), {}).values()):
            await call.done.wait()

    def _join(self, key: str, work: Work) -> Call:
        """Return the call under way for `key`; start it if there is none."""
        calls = self._calls.setdefault(running_loop(), {})
        call = calls.get(key)
        if call is None:
            call = calls[key] = Call(anyio.Event())
            self.spawn(partial(self._run, calls, key, work))
        return call

    async def _run(self, calls: dict[str, Call], key: str, work: Work) -> None:
        call = calls[key]
        try:
            await call.run(work)
        finally:
            del calls[key]
            call.done.set()

    def spawn(self, function: Work, **options: Any) -> None:
        """Run a function in the background, on this event loop.

        Args:
            options: of `asyncio.Task`.
        """
        loop = running_loop()
        if isinstance(loop, asyncio.AbstractEventLoop):
            task = asyncio.Task(function(), loop=loop, **options)
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
        else:
            import trio  # only where the server runs on it

            trio.lowlevel.spawn_system_task(function)


class _Pools:
    """The connections of one event loop: the ready clients', and those of the middleware's calls.

    A client that waits for a new token may keep its connection meanwhile, and the call for that
    token must not wait until one is free. Nor must it wait for visitors' logins.
    """

    def __init__(
        self,
        pid: int,
        clients: httpx2.AsyncBaseTransport,
        calls: httpx2.AsyncBaseTransport,
        logins: httpx2.AsyncBaseTransport,
    ) -> None:
        self.pid = pid
        self.clients = clients
        self.calls = calls
        self.logins = logins
        self._ending: AsyncGenerator[None, None]

    def close_at_the_end(self) -> None:
        """Close them when the event loop ends: it ends its asynchronous generators (PEP 525)."""
        self._ending = self._close_later()
        with suppress(StopIteration):  # it waits for nothing before its first result
            self._ending.__anext__().send(None)

    async def _close_later(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            for pool in (self.clients, self.calls, self.logins):
                await pool.aclose()

    async def aclose(self) -> None:
        """Close all of them now."""
        await self._ending.aclose()


async def _use_sockets() -> None:
    """Load anyio's part for asyncio, and those of its functions that httpcore2 uses."""
    _ = anyio.Lock(), anyio.Event(), anyio.Semaphore(1), anyio.connect_tcp


def _pool(tls: Any) -> httpx2.AsyncBaseTransport:
    import httpx2  # when first needed

    from . import http

    return httpx2.AsyncHTTPTransport(verify=tls, limits=http.LIMITS)
