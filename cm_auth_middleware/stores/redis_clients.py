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
from typing import Any, TypeVar

import anyio.to_thread
from redis import exceptions

from ..errors import StoreError
from ..runtime.run_sync import run_sync, running_loop
from .redis_target import Target

Call = Callable[[Any], Any]  # a client -> an answer, or something to await for it

_THREADS = 40  # threads that may wait for Redis at once under trio
_QUEUE = 5.0  # seconds that a request waits for one of the connections
_RENEW_EVERY = 0.5  # seconds, at least, between two new clients for a server that is no primary
_ERRORS = (exceptions.RedisError, exceptions.RedisClusterException, OSError, EOFError)
# Connection errors after which a second try is useless.
_FINAL = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.MaxConnectionsError,
)
# The answers of a server that is no primary, or accepts no writes now. It gives them instead of
# running the command (`processCommand` in redis/src/server.c), so any command may be repeated.
_REFUSALS = (
    exceptions.ReadOnlyError,
    exceptions.BusyLoadingError,
    exceptions.MasterDownError,
)
# Redis 6 and older put the error of a command in a script into a sentence:
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

# uvloop raises this if a connection was closed just before a write; redis-py passes it on.
_UVLOOP_CLOSED = "the handler is closed"

_inherited: list[Any] = []  # clients of the parent process; closing them would disturb it

T = TypeVar("T")


class _Link:
    """A client, others to close with it, and slots that bound how many calls use it at a time.

    Attributes:
        users: one object for each call that is using the client.
        is_over: True if no further call may use it; its last call closes it.
        renewed_at: when it replaced another link, by the monotonic clock.
        renewing: a lock that is held while another link is made to replace this one. A fork cannot
            leave it locked, because a link is used in one process.
    """

    def __init__(
        self, clients: tuple[Any, ...], slots: Any, renewed_at: float = float("-inf")
    ) -> None:
        self.client = clients[0]
        self.clients = clients
        self.slots = slots
        self.users: set[object] = set()
        self.is_over = False
        self.renewed_at = renewed_at
        self.renewing = threading.Lock()

    async def close(self) -> None:
        """Close the connections, and ignore those that are broken."""
        for client in self.clients:
            close = client.aclose if hasattr(client, "aclose") else client.close
            with suppress(*_ERRORS, RuntimeError):
                await outcome(close())


class _Clients(ABC):
    """Runs calls, and replaces a client whose server is no primary.

    An open connection stays with its server, even if the host name leads to another one by now. So
    when a server says that it accepts no writes, a new client replaces the old one: it looks the
    name up again, or asks the sentinels or the cluster. Calls under way keep the old client, and
    the last of them closes it.
    """

    _package: str

    def __init__(self, target: Target) -> None:
        self._target = target

    @abstractmethod
    def _registry(self) -> tuple[MutableMapping[Any, _Link], Any]:
        """Return the links of this process and the key of the one to use here."""

    @abstractmethod
    def _slots(self) -> Any:
        """Make slots: a semaphore on event loops, a queue of tokens between threads."""

    @abstractmethod
    def _abandon(self, link: _Link) -> None:
        """Close a link that no call uses any more, without waiting for the servers."""

    @abstractmethod
    async def run(self, call: Call, again: Call | None) -> Any:
        """Run `call` with a client, and `again` if the connection breaks.

        If the server is no primary, the call is repeated with a client that has looked for the
        primary again.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections made here; those in use are closed after their call."""

    def _link(self) -> _Link:
        links, key = self._registry()
        link = links.get(key)
        if link is None:
            # Without a lock, which a fork could leave locked: of two threads, one client stays.
            link = links.setdefault(key, _Link(self._connect(), self._slots()))
        return link

    def _renew(self, link: _Link) -> _Link | None:
        """Replace a link and return the new one; None if the last replacement was just now."""
        with link.renewing:
            links, key = self._registry()
            if links.get(key) is not link:  # another call did it, or the store was closed
                return self._link()
            now = time.monotonic()
            if now < link.renewed_at + _RENEW_EVERY:  # during an outage, not at each request
                return None
            links[key] = successor = _Link(self._connect(), link.slots, now)
        self._retire(link)
        return successor

    def _connect(self) -> tuple[Any, ...]:
        try:
            return self._target.clients(self._package)
        except _ERRORS as error:
            failure = StoreError(f"{self._target} {_sentence(error)}")
        raise failure

    async def _attempt(self, link: _Link, call: Call, again: Call | None) -> Any:
        """Run a call with the client of a link; see `run`."""
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
                # Not raised in a clause above: it would be chained to an error that may quote keys.
                if is_refused:
                    successor = None if is_renewed else self._renew(link)
                    if successor is None:
                        raise failure
                    self._leave(link, user)
                    link, is_renewed = successor, True
                    link.users.add(user)
                elif is_broken and again is not None:
                    call, again = again, None
                else:
                    raise failure
        finally:
            self._leave(link, user)

    def _retire(self, link: _Link | None) -> None:
        """Let no further call use a link; close it when the last one has left it."""
        if link is not None:
            link.is_over = True
            self._leave(link, None)

    def _leave(self, link: _Link, user: object) -> None:
        link.users.discard(user)
        if link.is_over and not link.users:
            self._abandon(link)


class BlockingClients(_Clients):
    """The client of this process for threads."""

    _package = "redis"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._links: dict[int, _Link] = {}

    async def run(self, call: Call, again: Call | None) -> Any:
        link = self._link()
        try:
            link.slots.get(timeout=_QUEUE)
        except Empty:
            raise _queued(self._target) from None
        try:
            return await self._attempt(link, call, again)
        finally:
            link.slots.put(None)

    async def close(self) -> None:
        self._retire(self._links.pop(os.getpid(), None))

    def _registry(self) -> tuple[dict[int, _Link], int]:
        return self._links, os.getpid()

    def _slots(self) -> SimpleQueue[None]:
        # A queue of tokens: threading.Semaphore, being Python, costs a tenth of a GET.
        gate: SimpleQueue[None] = SimpleQueue()
        for _ in range(self._target.connections):
            gate.put(None)
        return gate

    def _abandon(self, link: _Link) -> None:
        run_sync(link.close())


class AsyncClients(_Clients):
    """The clients of this process for event loops: asyncio's own, threads under trio."""

    _package = "redis.asyncio"

    def __init__(self, target: Target, blocking: BlockingClients) -> None:
        super().__init__(target)
        self._blocking = blocking
        self._pid = os.getpid()
        self._links: weakref.WeakKeyDictionary[Any, _Link] = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]
        self._threads = weakref.WeakKeyDictionary()
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self, call: Call, again: Call | None) -> Any:
        if not isinstance(running_loop(), asyncio.AbstractEventLoop):
            return await self._in_a_thread(lambda: run_sync(self._blocking.run(call, again)))
        link = self._link()
        if link.slots.locked():
            try:
                async with asyncio.timeout(_QUEUE):
                    await link.slots.acquire()
            except TimeoutError:
                raise _queued(self._target) from None
        else:
            await link.slots.acquire()
        try:
            return await self._attempt(link, call, again)
        finally:
            link.slots.release()

    async def close(self) -> None:
        loop = running_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            await self._in_a_thread(lambda: run_sync(self._blocking.close()))
            return
        if os.getpid() == self._pid:
            self._retire(self._links.pop(loop, None))
        closing = [task for task in list(self._closing) if task.get_loop() is loop]
        await asyncio.gather(*closing, return_exceptions=True)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        # Not one of anyio's shared threads: routes that wait for this result may use all of them.
        limiter = self._threads.setdefault(running_loop(), anyio.CapacityLimiter(_THREADS))
        return await anyio.to_thread.run_sync(work, limiter=limiter)

    def _registry(self) -> tuple[MutableMapping[Any, _Link], Any]:
        if os.getpid() != self._pid:
            _inherited.append((self._links, self._closing))
            self._links = weakref.WeakKeyDictionary()
            self._closing = set()
            self._pid = os.getpid()
        return self._links, asyncio.get_running_loop()

    def _connect(self) -> tuple[Any, ...]:
        for other in [other for other in self._links if other.is_closed()]:
            del self._links[other]  # its client refers to the loop, so it would stay for ever
        return super()._connect()

    def _slots(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self._target.connections)

    def _abandon(self, link: _Link) -> None:
        # In a task: a server that is down would keep the request waiting, and a request that is
        # cancelled would leave connections open.
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def outcome(answer: Any) -> Any:
    """Return the answer of redis-py, which has to be awaited if it is from `redis.asyncio`."""
    return await answer if hasattr(answer, "__await__") else answer


def _is_refusal(error: Exception) -> bool:
    """True if the server says that it is no primary, or accepts no writes now."""
    if isinstance(error, _REFUSALS):
        return True
    if isinstance(error, exceptions.ConnectionError):
        # redis-py turns READONLY from a server that a sentinel named into this error.
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
    """Return the system's reason, such as "Connection refused"; empty if there is none."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error.verify_message
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return ""


def _queued(target: Target) -> StoreError:
    return StoreError(f"{target} is too slow: requests wait for a connection")
