"""redis-py clients: one for each event loop and one for threads, in each process."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import anyio.to_thread
from redis import exceptions

from ..errors import StoreError
from ..runtime.run_sync import run_sync, running_loop
from .redis_target import Target

Call = Callable[[Any], Any]  # a client -> an answer, or something to await for it

_THREADS = 40  # that wait for Redis at once under trio
_QUEUE = 5.0  # seconds that a request waits for one of the connections
_RENEW_EVERY = 0.5  # seconds, at least, between two new clients for a server that is no primary
_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)
# Connection errors after which nothing is gained by asking again at once.
_FINAL = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.MaxConnectionsError,
)
# What a server answers that is no primary, or none that takes writes: instead of doing anything
# (`processCommand` in redis/src/server.c). So any command may be repeated.
_REFUSALS = (
    exceptions.ReadOnlyError,
    exceptions.BusyLoadingError,
    exceptions.MasterDownError,
)
# Redis 6 and older put the answer to a script's command, and ours write once, into a sentence:
# "ERR Error running script (call to f_…): @user_script:3: @user_script: 3: -READONLY You can't …".
_REFUSAL = re.compile(r"(?:^-?|: -)(READONLY|NOREPLICAS|LOADING|MASTERDOWN)\b")
_REPLICA = "is a replica that cannot be written: name the primary"
_UNREACHABLE = "cannot be reached"
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "refuses the user or the password"),
    (exceptions.AuthorizationError, "refuses the user or the password"),
    (exceptions.NoPermissionError, "does not permit the user what a store needs"),
    (exceptions.BusyLoadingError, "is still loading its data"),
    (exceptions.ReadOnlyError, _REPLICA),
    (exceptions.MasterDownError, "is a replica without its primary: name the primary"),
    (exceptions.OutOfMemoryError, "is out of memory: raise its maxmemory"),
    (exceptions.TimeoutError, "did not answer in time"),
    (TimeoutError, "did not answer in time"),
    (exceptions.ConnectionError, _UNREACHABLE),
    (exceptions.RedisClusterException, "cannot be reached as a cluster"),
    (OSError, _UNREACHABLE),
    (EOFError, _UNREACHABLE),
)
_CODES = {
    "READONLY": _REPLICA,
    "NOREPLICAS": "has fewer replicas than its min-replicas-to-write asks for",
}

# What uvloop raises, and redis-py hands on, where a connection closed just before a write to it.
_UVLOOP_CLOSED = "the handler is closed"

_inherited: list[Any] = []  # clients of a parent process, which closing would disturb

G = TypeVar("G")
T = TypeVar("T")


class _Link(Generic[G]):
    """A client, others to close with it, and the gate that bounds how many use it at a time.

    Attributes:
        users: one object for each call that is using the client.
        is_over: nobody else is to use it; who is the last to do so closes it.
        renewed_at: when it took the place of another, by the monotonic clock.
        renewing: is held while another is made for its place. Forks do not matter to it: a link is
            used in one process.
    """

    def __init__(
        self, clients: tuple[Any, ...], gate: G, renewed_at: float = float("-inf")
    ) -> None:
        self.client = clients[0]
        self.clients = clients
        self.gate = gate
        self.users: set[object] = set()
        self.is_over = False
        self.renewed_at = renewed_at
        self.renewing = threading.Lock()

    async def close(self) -> None:
        """Close the connections, as far as they can still be closed."""
        for client in self.clients:
            close = client.aclose if hasattr(client, "aclose") else client.close
            with suppress(*_ERRORS, RuntimeError):
                await outcome(close())


class _Clients(ABC, Generic[G]):
    """What both sides share: calls, and a new client where the old one's server is no primary.

    A connection stays with the server that it was made to when the name by which it was made leads
    to another one. So when a server says that it takes no writes, a new client takes the place of
    the one at hand: it looks the name up, or asks the sentinels or the cluster. Calls under way
    keep the old one and its connections, which the last of them closes.
    """

    _package: str

    def __init__(self, target: Target) -> None:
        self._target = target

    @abstractmethod
    def _places(self) -> tuple[MutableMapping[Any, _Link[G]], Any]:
        """Return the links of this process and the key of the one to use here."""

    @abstractmethod
    def _gate(self) -> G:
        """Make a gate."""

    @abstractmethod
    def _abandon(self, link: _Link[G]) -> None:
        """Close a link that has no user any more, without waiting for the servers."""

    def _link(self) -> _Link[G]:
        links, key = self._places()
        link = links.get(key)
        if link is None:
            # Without a lock, which a fork could leave locked: of two threads one client is kept.
            link = links.setdefault(key, _Link(self._connect(), self._gate()))
        return link

    def _renew(self, link: _Link[G]) -> _Link[G] | None:
        """Return the link that is in the place of `link`, or None if it is too early for one."""
        with link.renewing:
            links, key = self._places()
            if links.get(key) is not link:  # another call did it, or the store was closed
                return self._link()
            now = time.monotonic()
            if now < link.renewed_at + _RENEW_EVERY:  # as long as it lasts, not at each request
                return None
            links[key] = heir = _Link(self._connect(), link.gate, now)
        self._retire(link)
        return heir

    def _connect(self) -> tuple[Any, ...]:
        try:
            return self._target.clients(self._package)
        except _ERRORS as error:
            failure = StoreError(f"{self._target} {_sentence(error)}")
        raise failure

    async def _attempt(self, link: _Link[G], call: Call, again: Call | None) -> Any:
        """Call with the client; see `run`."""
        if link.is_over:  # since this call began to wait for its turn
            link = self._link()
        user = object()
        link.users.add(user)
        is_renewed = False
        try:
            while True:
                try:
                    answer = call(link.client)
                    # As in `outcome`, one coroutine fewer: nearly every request passes here.
                    return await answer if hasattr(answer, "__await__") else answer
                except _ERRORS as error:
                    failure = StoreError(f"{self._target} {_sentence(error)}")
                    is_refused = _is_refusal(error)
                    is_broken = isinstance(error, exceptions.ConnectionError)
                    is_broken = is_broken and not isinstance(error, _FINAL)
                except RuntimeError as error:
                    if _UVLOOP_CLOSED not in str(error):
                        raise
                    failure = StoreError(f"{self._target} {_UNREACHABLE}")
                    is_refused, is_broken = False, True
                # Out of the clauses above: what redis-py raised may quote keys and values.
                if is_refused:
                    heir = None if is_renewed else self._renew(link)
                    if heir is None:
                        raise failure
                    self._leave(link, user)
                    link, is_renewed = heir, True
                    link.users.add(user)
                elif is_broken and again is not None:
                    call, again = again, None
                else:
                    raise failure
        finally:
            self._leave(link, user)

    def _retire(self, link: _Link[G] | None) -> None:
        """Let no further call use a link; close it when the last one has left it."""
        if link is not None:
            link.is_over = True
            self._leave(link, None)

    def _leave(self, link: _Link[G], user: object) -> None:
        link.users.discard(user)
        if link.is_over and not link.users:
            self._abandon(link)


class BlockingClients(_Clients["SimpleQueue[None]"]):
    """The client of this process for threads."""

    _package = "redis"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._links: dict[int, _Link[SimpleQueue[None]]] = {}

    async def run(self, call: Call, again: Call | None) -> Any:
        """Call with a client, and once more with `again` if the connection breaks.

        If the server is no primary, the call is repeated with a client that looked for it anew.
        """
        link = self._link()
        try:
            link.gate.get(timeout=_QUEUE)
        except Empty:
            raise _queued(self._target) from None
        try:
            return await self._attempt(link, call, again)
        finally:
            link.gate.put(None)

    async def close(self) -> None:
        """Close the connections of this process; those in use, when they come back."""
        self._retire(self._links.pop(os.getpid(), None))

    def _places(self) -> tuple[dict[int, _Link[SimpleQueue[None]]], int]:
        return self._links, os.getpid()

    def _gate(self) -> SimpleQueue[None]:
        # A queue of tokens: threading.Semaphore, being Python, costs a tenth of a GET.
        gate: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._target.connections):
            gate.put(None)
        return gate

    def _abandon(self, link: _Link[SimpleQueue[None]]) -> None:
        run_sync(link.close())


class AsyncClients(_Clients[asyncio.Semaphore]):
    """The clients of this process for event loops: asyncio's own, threads under trio."""

    _package = "redis.asyncio"

    def __init__(self, target: Target, blocking: BlockingClients) -> None:
        super().__init__(target)
        self._blocking = blocking
        self._pid = os.getpid()
        self._links: weakref.WeakKeyDictionary[Any, _Link[asyncio.Semaphore]]
        self._links = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]
        self._threads = weakref.WeakKeyDictionary()
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, call: Call, again: Call | None) -> Any:
        """Call with a client, and once more with `again` if the connection breaks.

        If the server is no primary, the call is repeated with a client that looked for it anew.
        """
        if not isinstance(running_loop(), asyncio.AbstractEventLoop):
            return await self._in_a_thread(lambda: run_sync(self._blocking.run(call, again)))
        link = self._link()
        if link.gate.locked():
            try:
                async with asyncio.timeout(_QUEUE):
                    await link.gate.acquire()
            except TimeoutError:
                raise _queued(self._target) from None
        else:
            await link.gate.acquire()
        try:
            return await self._attempt(link, call, again)
        finally:
            link.gate.release()

    async def close(self) -> None:
        """Close the connections of this event loop; those in use, when they come back."""
        loop = running_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            await self._in_a_thread(lambda: run_sync(self._blocking.close()))
            return
        if os.getpid() == self._pid:
            self._retire(self._links.pop(loop, None))
        ours = [task for task in list(self._closing) if task.get_loop() is loop]
        await asyncio.gather(*ours, return_exceptions=True)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        # Not one of those that everybody shares: routes that wait for what this brings may have
        # taken them all.
        limiter = self._threads.setdefault(running_loop(), anyio.CapacityLimiter(_THREADS))
        return await anyio.to_thread.run_sync(work, limiter=limiter)

    def _places(self) -> tuple[MutableMapping[Any, _Link[asyncio.Semaphore]], Any]:
        if os.getpid() != self._pid:
            _inherited.append((self._links, self._closing))
            self._links = weakref.WeakKeyDictionary()
            self._closing = set()
            self._pid = os.getpid()
        return self._links, asyncio.get_running_loop()

    def _connect(self) -> tuple[Any, ...]:
        for other in [other for other in self._links if other.is_closed()]:
            del self._links[other]  # its client refers to it, so it would stay for ever
        return super()._connect()

    def _gate(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._target.connections)

    def _abandon(self, link: _Link[asyncio.Semaphore]) -> None:
        # In a task: a server that is gone would keep the request waiting, and a request that is
        # cancelled would leave connections open.
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def outcome(answer: Any) -> Any:
    """Return what redis-py answers, now (`redis`) or when awaited (`redis.asyncio`)."""
    return await answer if hasattr(answer, "__await__") else answer


def _is_refusal(error: Exception) -> bool:
    """True if the server says that it is no primary, or none that takes writes now."""
    if isinstance(error, _REFUSALS):
        return True
    if isinstance(error, exceptions.ConnectionError):
        # What redis-py makes of READONLY from a server that a sentinel named.
        return isinstance(error.__context__, exceptions.ReadOnlyError)
    return isinstance(error, exceptions.ResponseError) and bool(_REFUSAL.search(str(error)))


def _sentence(error: Exception) -> str:
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            reason = _system_reason(error)
            return f"{sentence} ({reason})" if reason else sentence
    code = _REFUSAL.search(str(error)) or re.match(r"-?([A-Z]{2,16})\b", str(error))
    if code and code[1] in _CODES:
        return _CODES[code[1]]
    # BUSY, MISCONF, CLUSTERDOWN …
    return f"refused a command ({code[1] if code else type(error).__name__})"


def _system_reason(error: BaseException | None) -> str:
    """Return what the system says: "Connection refused", "certificate has expired" …"""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return ""


def _queued(target: Target) -> StoreError:
    return StoreError(f"{target} is too slow: requests wait for a connection")
