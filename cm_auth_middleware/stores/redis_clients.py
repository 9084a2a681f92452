"""redis-py clients: one for each event loop and one for threads, in each process."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import weakref
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import anyio.to_thread
from redis import exceptions

from ..errors import StoreError
from ..runtime.run_sync import running_loop
from .redis_target import Target

Call = Callable[[Any], Any]  # gets a client; returns a reply, or an awaitable of one

_THREADS = 40  # that wait for Redis at once under trio
_QUEUE = 5.0  # seconds that a request waits for one of the connections
_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)
# Connection errors after which a second try at once would fail, too.
_FINAL = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.BusyLoadingError,
    exceptions.MaxConnectionsError,
)
_UNREACHABLE = "cannot be reached"
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "refuses the user or the password"),
    (exceptions.AuthorizationError, "refuses the user or the password"),
    (exceptions.NoPermissionError, "does not permit the user what a store needs"),
    (exceptions.BusyLoadingError, "is still loading its data"),
    (exceptions.ReadOnlyError, "is a replica that cannot be written: name the primary"),
    (exceptions.OutOfMemoryError, "is out of memory: raise its maxmemory"),
    (exceptions.TimeoutError, "did not answer in time"),
    (TimeoutError, "did not answer in time"),
    (exceptions.ConnectionError, _UNREACHABLE),
    (exceptions.RedisClusterException, "cannot be reached as a cluster"),
    (OSError, _UNREACHABLE),
    (EOFError, _UNREACHABLE),
)

# The text of uvloop's RuntimeError, which redis-py passes on, for a connection that just closed.
_UVLOOP_CLOSED = "the handler is closed"

_inherited: list[Any] = []  # clients of a parent process; closing them would disturb it

G = TypeVar("G")
T = TypeVar("T")


class _Link(Generic[G]):
    """A client, others to close with it, and the gate that limits how many callers use it."""

    def __init__(self, clients: tuple[Any, ...], gate: G) -> None:
        self.client = clients[0]
        self.clients = clients
        self.gate = gate


class BlockingClients:
    """The client of this process for threads."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._links: dict[int, _Link[SimpleQueue[None]]] = {}

    async def run(self, call: Call, again: Call | None) -> Any:
        """Call with a client, and once more with `again` if the connection breaks."""
        link = self._link()
        try:
            link.gate.get(timeout=_QUEUE)
        except Empty:
            raise _queued(self._target) from None
        try:
            return await _attempt(self._target, link.client, call, again)
        finally:
            link.gate.put(None)

    async def close(self) -> None:
        """Close the connections of this process."""
        link = self._links.pop(os.getpid(), None)
        if link is not None:
            for client in link.clients:
                client.close()

    def _link(self) -> _Link[SimpleQueue[None]]:
        pid = os.getpid()
        link = self._links.get(pid)
        if link is None:
            clients = _connected(self._target)
            # A queue of tokens: threading.Semaphore, being Python, costs a tenth of a GET.
            gate: SimpleQueue[None] = SimpleQueue()
            for _ in range(self._target.connections):
                gate.put(None)
            # Without a lock, which a fork could leave locked: of two threads one client is kept.
            link = self._links.setdefault(pid, _Link(clients, gate))
        return link


class AsyncClients:
    """The clients of this process for event loops: asyncio's own, threads under trio."""

    def __init__(self, target: Target, blocking: BlockingClients) -> None:
        self._target = target
        self._blocking = blocking
        self._pid = os.getpid()
        self._links: weakref.WeakKeyDictionary[Any, _Link[asyncio.Semaphore]]
        self._links = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]
        self._threads = weakref.WeakKeyDictionary()

    async def run(self, call: Call, again: Call | None) -> Any:
        """Call with a client, and once more with `again` if the connection breaks."""
        loop = _asyncio_loop()
        if loop is None:
            blocking = self._blocking.run
            return await self._in_a_thread(lambda: _drive(blocking(call, again)))
        link = self._link(loop)
        if link.gate.locked():
            try:
                async with asyncio.timeout(_QUEUE):
                    await link.gate.acquire()
            except TimeoutError:
                raise _queued(self._target) from None
        else:
            await link.gate.acquire()
        try:
            return await _attempt(self._target, link.client, call, again)
        finally:
            link.gate.release()

    async def close(self) -> None:
        """Close the connections of this event loop."""
        loop = _asyncio_loop()
        if loop is None:
            await self._in_a_thread(lambda: _drive(self._blocking.close()))
            return
        link = self._links.pop(loop, None) if os.getpid() == self._pid else None
        if link is not None:
            for client in link.clients:
                await client.aclose()

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        # Threads of its own: routes that wait for this very reply may hold all the shared ones.
        limiter = self._threads.setdefault(running_loop(), anyio.CapacityLimiter(_THREADS))
        return await anyio.to_thread.run_sync(work, limiter=limiter)

    def _link(self, loop: asyncio.AbstractEventLoop) -> _Link[asyncio.Semaphore]:
        if os.getpid() != self._pid:
            _inherited.append(self._links)
            self._links = weakref.WeakKeyDictionary()
            self._pid = os.getpid()
        link = self._links.get(loop)
        if link is None:
            for other in [other for other in self._links if other.is_closed()]:
                del self._links[other]  # its client refers to the loop, so it would stay for ever
            link = _Link(
                self._target.clients("redis.asyncio"), asyncio.Semaphore(self._target.connections)
            )
            self._links[loop] = link
        return link


def _connected(target: Target) -> tuple[Any, ...]:
    """Make the clients for threads; those of a cluster connect now."""
    try:
        return target.clients("redis")
    except _ERRORS as error:
        sentence = _sentence(error)
    raise StoreError(f"{target} {sentence}")


async def outcome(answer: Any) -> Any:
    """Return the reply of redis-py, which comes now (`redis`) or when awaited (`redis.asyncio`)."""
    return await answer if hasattr(answer, "__await__") else answer


async def _attempt(target: Target, client: Any, call: Call, again: Call | None) -> Any:
    failure: StoreError | None = None
    for attempt in (call, again):
        if attempt is None:
            break
        try:
            answer = attempt(client)
            # As in `outcome`, one coroutine fewer: nearly all that a request asks passes here.
            return await answer if hasattr(answer, "__await__") else answer
        except _ERRORS as error:
            failure = StoreError(f"{target} {_sentence(error)}")
            if not isinstance(error, exceptions.ConnectionError) or isinstance(error, _FINAL):
                break
        except RuntimeError as error:
            if _UVLOOP_CLOSED not in str(error):
                raise
            failure = StoreError(f"{target} {_UNREACHABLE}")
    assert failure is not None  # noqa: S101 - for the type: `call` is no None
    raise failure  # outside of the except clause: redis-py's error may quote keys and values


def _sentence(error: Exception) -> str:
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            reason = _system_reason(error)
            return f"{sentence} ({reason})" if reason else sentence
    code = re.match(r"-?([A-Z]{2,16})\b", str(error))  # BUSY, MISCONF, CLUSTERDOWN …
    return f"refused a command ({code[1] if code else type(error).__name__})"


def _system_reason(error: BaseException | None) -> str:
    """Return the reason that the system gives: "Connection refused", "certificate has expired" …"""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return ""


def _queued(target: Target) -> StoreError:
    return StoreError(f"{target} is too slow: requests wait for a connection")


def _asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _drive(coroutine: Any) -> Any:
    """Run a coroutine of the blocking clients, which never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("a blocking client suspended")
