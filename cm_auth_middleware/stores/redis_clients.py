"""redis-py clients: one for each event loop and one for threads, in each process."""

from __future__ import annotations

import asyncio
import enum
import os
import queue
import re
import ssl
import threading
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from pathlib import PurePath
from typing import Any, TypeVar

import anyio.to_thread
from redis import exceptions

from ..errors import StoreError
from ..runtime.after_fork import after_fork
from ..runtime.run_sync import run_sync
from ..runtime.running_loop import running_loop
from .circuit_breaker import SILENT, CircuitBreaker
from .redis_cluster import (
    AsyncCluster,
    BlockingCluster,
    SilentNodeError,
    close,
    is_silence,
)
from .redis_cluster import (
    outcome as outcome,
)
from .redis_sentinels import ASK_EVERY, SILENCE, FailoverError, Sentinels
from .redis_target import Target
from .redis_wait import AsyncWaiting, BlockingWaiting, Sender
from .turns import Turns

Call = Callable[[Any], Any]  # a client -> an answer, or something to await for it

_THREADS = 40  # threads that may wait for Redis at once under trio
_QUEUE = 5.0  # seconds that a request waits for one of the connections
_RENEW_EVERY = 0.5  # seconds, at least, between two new clients for a server that is no primary
_PAUSE = 0.1  # seconds before a call that the client could not make is repeated
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
# A cluster that is changing did not run the command, so any command may be repeated.
_UNSETTLED = (
    exceptions.RedisClusterException,
    exceptions.ClusterError,
    exceptions.TryAgainError,
    exceptions.AskError,
)
# Redis 6 and older put the error of a command in a script into a sentence:
# "ERR Error running script (call to f_…): @user_script:3: @user_script: 3: -READONLY You can't …".
_REFUSAL = re.compile(r"(?:^-?|: -)(READONLY|NOREPLICAS|LOADING|MASTERDOWN)\b")
_REPLICA = "is a replica that cannot be written: name the primary"
_UNREACHABLE = "cannot be reached"
_SENTENCES: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationError, "refuses the user or the password"),
    (exceptions.AuthorizationError, "refuses the user or the password"),
    (exceptions.BusyLoadingError, "is still loading its data"),
    (exceptions.ReadOnlyError, _REPLICA),
    (exceptions.MasterDownError, "is a replica without its primary: name the primary"),
    (FailoverError, "is getting another primary"),
    (exceptions.OutOfMemoryError, "is out of memory: raise its maxmemory"),
    (SilentNodeError, SILENT),
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

# The answers of a server that is of another kind than the URL says.
_OTHER_SERVERS = (
    (
        re.compile("cluster support disabled"),
        "is no cluster but one server: give redis:// instead of redis+cluster://",
    ),
    (
        re.compile("unknown command .?SENTINEL", re.IGNORECASE),
        "is no sentinel but a Redis: give the sentinels (port 26379), or redis:// for this server",
    ),
)

# uvloop raises this if a connection was closed just before a write; redis-py passes it on.
_UVLOOP_CLOSED = "the handler is closed"

# How the command is named whose right is missing, in an answer to a command or from a script.
_DENIED = re.compile(r"run the '([A-Za-z|]+)'")
# Redis 7.0 names the line of the script instead: "ERR The user executing the script can't run this
# command or subcommand script: 620cd2…, on @user_script:3."
_DENIED_LINE = re.compile(r"(?:script: |f_)([0-9a-f]{40}).*@user_script: ?(\d+)", re.DOTALL)
_DENIAL = re.compile(r"NOPERM|ACL failure|The user executing the script can't")
_DENIED_KEYS = re.compile(r"access (one of the keys|at least one of the keys|a key)")
_CALLED = re.compile(r"redis\.p?call\('(\w+)'")
_RIGHTS = "see Redis rights (ACL) in the documentation's Deployment"

scripts: dict[str, str] = {}
"""The scripts of the store by their SHA-1, so that an error can name the command it is about."""

_inherited: list[Any] = []  # clients of the parent process; closing them would disturb it

T = TypeVar("T")


class _After(enum.Enum):
    """What becomes of a call that failed."""

    FAIL = enum.auto()
    RENEW = enum.auto()  # the server did not run it, and is no primary: ask another one
    REPEAT = enum.auto()  # it was not run: repeat it
    AGAIN = enum.auto()  # the connection broke, and it may have been run
    SUSPECT = enum.auto()  # the client broke: it may have been run, and the connection is dubious


class _Link:
    """A client, and slots that bound how many calls use it at a time.

    Attributes:
        address: host and port that the sentinels named; None without sentinels.
        users: for each call that is using the client, since when, by the monotonic clock.
        is_over: True if no further call may use it; its last call closes it.
        renewed_at: when it replaced another link, by the monotonic clock.
        renewing: a lock that is held while another link is made to replace this one. A fork cannot
            leave it locked, because a link is used in one process.
    """

    def __init__(
        self,
        client: Any,
        address: tuple[str, int] | None,
        slots: Any,
        renewed_at: float = float("-inf"),
    ) -> None:
        self.client = client
        self.address = address
        self.slots = slots
        self.users: dict[object, float] = {}
        self.is_over = False
        self.renewed_at = renewed_at
        self.renewing = threading.Lock()

    def is_silent(self, now: float) -> bool:
        """True if a call has been waiting for the server for long."""
        return now > min(list(self.users.values()), default=now) + SILENCE


class _Shared:
    """What the clients for event loops and for threads of a process have in common."""

    def __init__(self, target: Target) -> None:
        self.breaker = CircuitBreaker()
        self.nodes: dict[str, CircuitBreaker] = {}
        self.sender = Sender(target.wait_replicas, target.wait_timeout)
        self.sentinels: Sentinels | None = None
        if target.kind == "sentinel":
            self.sentinels = Sentinels(target.sentinel_connections, target.service)


class _Clients(ABC):
    """Runs calls, and replaces a client whose server is no primary.

    An open connection stays with its server, even if the host name leads to another one by now. So
    when a server says that it accepts no writes, a new client replaces the old one: it looks the
    name up again, or asks the sentinels or the cluster. Calls under way keep the old client, and
    the last of them closes it.
    """

    _package: str
    _cluster: type[AsyncCluster | BlockingCluster]
    _waiting: type[AsyncWaiting | BlockingWaiting]

    def __init__(self, target: Target, shared: _Shared) -> None:
        self._target = target
        self._shared = shared
        self._breaker = shared.breaker
        self._sentinels = shared.sentinels

    @abstractmethod
    def _registry(self) -> tuple[MutableMapping[Any, _Link], Any]:
        """Return the links of this process and the key of the one to use here."""

    @abstractmethod
    def _slots(self) -> Any:
        """Make slots: turns on event loops, a queue of tokens between threads."""

    @abstractmethod
    def _abandon(self, link: _Link) -> None:
        """Close a link that no call uses any more, without waiting for the servers."""

    @abstractmethod
    async def _pause(self) -> None:
        """Wait for a moment."""

    @abstractmethod
    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        """Run work that blocks."""

    @abstractmethod
    async def run(self, call: Call, again: Call | None, *, can_wait: bool = False) -> Any:
        """Run `call` with a client, and `again` if the connection breaks.

        If the server did not run it, because it is no primary or because the cluster is changing,
        the call is repeated, with a client that has looked for the primary again.

        Args:
            can_wait: True to let other calls that wait for a connection go first, on event loops.

        Raises:
            StoreError: whatever fails in the client. If two calls in a row had no answer in time,
                at once, but for one call a second that tries the server.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections made here; those in use are closed after their call."""

    async def _find_link(self) -> _Link:
        """Return the link to use, of which calls wait for a slot."""
        if self._sentinels is not None and self._sentinels.address is None:
            await self._ask_sentinels(float("-inf"))
        return self._link()

    def _link(self) -> _Link:
        links, key = self._registry()
        link = links.get(key)
        if link is None:
            # Without a lock, which a fork could leave locked: of two threads, one client stays.
            link = links.setdefault(key, self._connect(self._slots()))
        return link

    def _renew(self, link: _Link, *, at_once: bool = False) -> _Link | None:
        """Replace a link and return the new one; None if the last replacement was just now."""
        with link.renewing:
            links, key = self._registry()
            if links.get(key) is not link:  # another call did it, or the store was closed
                return self._link()
            now = time.monotonic()
            if now < link.renewed_at + _RENEW_EVERY and not at_once:
                return None  # during an outage, not at each request
            links[key] = successor = self._connect(link.slots, now)
        self._retire(link)
        return successor

    def _connect(self, slots: Any, renewed_at: float = float("-inf")) -> _Link:
        """Make a link; it connects at its first call."""
        target, shared = self._target, self._shared
        address = self._sentinels.address if self._sentinels else None
        if target.kind == "cluster":
            client: Any = self._cluster(
                lambda host, port, **more: target.client(self._package, host, port, **more),
                target.nodes,
                shared.nodes,
                shared.sender.send,
            )
        else:
            client = target.client(self._package, *(address or ()))
            if target.wait_replicas:
                client = self._waiting(client, shared.sender)
        return _Link(client, address, slots, renewed_at)

    async def _ask_sentinels(self, since: float) -> None:
        """Learn the primary, unless that was done since then, by the monotonic clock.

        Raises:
            StoreError: none is known.
        """
        sentinels = self._sentinels
        if sentinels is None or sentinels.knows(since):
            return
        former = sentinels.address
        try:
            await self._in_a_thread(lambda: sentinels.ask(since))
        except Exception as error:
            failure = StoreError(f"{self._target} {_sentence(error)}")
        else:
            if sentinels.address != former:
                self._breaker.answered()  # it was another server that did not
            return
        raise failure

    async def _follow(self, sentinels: Sentinels, link: _Link, user: object) -> _Link:
        """Return the link to the primary of which the sentinels know, and use it."""
        now = time.monotonic()
        await self._ask_sentinels(now - (SILENCE if link.is_silent(now) else ASK_EVERY))
        while link.address != sentinels.address:
            link = self._change(link, self._renew(link, at_once=True) or link, user)
        return link

    def _change(self, link: _Link, successor: _Link, user: object) -> _Link:
        """Let a call use another link."""
        self._leave(link, user)
        successor.users[user] = time.monotonic()
        return successor

    async def _attempt(self, link: _Link, is_trial: bool, call: Call, again: Call | None) -> Any:
        """Run a call with the client of a link; see `run`."""
        if self._breaker.is_open and not is_trial:  # since this call began to wait for its turn
            # Those before it may all have waited for a server that is no longer the primary.
            await self._ask_sentinels(time.monotonic() - ASK_EVERY)
            if self._breaker.is_open:
                raise StoreError(f"{self._target} {SILENT}")
        if link.is_over:
            link = self._link()
        user = object()
        link.users[user] = time.monotonic()
        is_renewed = is_repeated = False
        try:
            while True:
                if self._sentinels is not None:
                    link = await self._follow(self._sentinels, link, user)
                link.users[user] = time.monotonic()
                try:
                    answer = call(link.client)
                    # As in `outcome`, one coroutine fewer: nearly every request passes here.
                    answer = await answer if hasattr(answer, "__await__") else answer
                except Exception as error:
                    failure = StoreError(f"{self._target} {_sentence(error)}")
                    after = self._judge(error, link)
                else:
                    if self._breaker.is_suspect:
                        self._breaker.answered()
                    if self._sentinels is None or await self._is_current(self._sentinels, link):
                        return answer
                    failure = StoreError(f"{self._target} has got another primary meanwhile")
                    after = _After.AGAIN
                # Not raised in the clause above: it would be chained to an error that may quote
                # keys.
                if after is _After.RENEW and not is_renewed:
                    is_renewed = True
                    await self._ask_sentinels(time.monotonic())
                    successor = self._renew(link)
                    if successor is None:
                        raise failure
                    link = self._change(link, successor, user)
                elif after is _After.REPEAT and not is_repeated:
                    is_repeated = True
                    await self._pause()
                elif after is _After.AGAIN and again is not None:
                    call, again = again, None
                    await self._ask_sentinels(time.monotonic())
                elif after is _After.SUSPECT:
                    # A connection may be left with an answer that nobody has read: close them all.
                    link = self._change(link, self._renew(link, at_once=True) or link, user)
                    if again is None:
                        raise failure
                    call, again = again, None
                    await self._pause()
                else:
                    raise failure
        finally:
            self._leave(link, user)

    async def _is_current(self, sentinels: Sentinels, link: _Link) -> bool:
        """True if the server that answered is still the primary; see redis_sentinels."""
        now = time.monotonic()
        if not link.is_silent(now):
            return True
        await self._ask_sentinels(now)
        return link.address == sentinels.address

    def _is_replaced(self, link: _Link) -> bool:
        sentinels = self._sentinels
        return link.is_over or (sentinels is not None and link.address != sentinels.address)

    def _judge(self, error: Exception, link: _Link) -> _After:
        """Decide what becomes of a call that failed, and tell the circuit breaker."""
        if self._target.kind == "cluster" and isinstance(error, _UNSETTLED):
            return _After.REPEAT
        if _is_refusal(error):
            self._breaker.answered()
            return _After.RENEW
        if not isinstance(error, _ERRORS):
            is_closed = isinstance(error, RuntimeError) and _UVLOOP_CLOSED in str(error)
            return _After.AGAIN if is_closed else _After.SUSPECT
        is_broken = isinstance(error, (exceptions.ConnectionError, OSError, EOFError))
        if isinstance(error, _FINAL) or not (is_broken or is_silence(error)):
            self._breaker.answered()
            return _After.FAIL
        if is_silence(error):
            # The nodes of a cluster have circuit breakers of their own. And a server whose place
            # another one has taken says nothing about that one.
            if self._target.kind != "cluster" and not self._is_replaced(link):
                # The next call asks the sentinels: do not wait a second for that.
                self._breaker.timed_out(try_at_once=self._sentinels is not None)
            return _After.FAIL
        is_repeatable = isinstance(error, exceptions.ConnectionError)
        return _After.AGAIN if is_repeatable else _After.FAIL

    def _retire(self, link: _Link | None) -> None:
        """Let no further call use a link; close it when the last one has left it."""
        if link is not None:
            link.is_over = True
            self._leave(link, None)

    def _leave(self, link: _Link, user: object) -> None:
        link.users.pop(user, None)
        if link.is_over and not link.users:
            self._abandon(link)


class BlockingClients(_Clients):
    """The client of this process for threads."""

    _package = "redis"
    _cluster = BlockingCluster
    _waiting = BlockingWaiting

    def __init__(self, target: Target) -> None:
        super().__init__(target, _Shared(target))
        self._links: dict[int, _Link] = {}

    async def run(self, call: Call, again: Call | None, *, can_wait: bool = False) -> Any:  # noqa: ARG002
        is_trial = self._breaker.enter(self._target, self._target.timeout)
        link = await self._find_link()
        try:
            link.slots.get(timeout=_QUEUE)
        except queue.Empty:
            raise _queued(self._target) from None
        try:
            return await self._attempt(link, is_trial, call, again)
        finally:
            link.slots.put(None)

    async def close(self) -> None:
        self._retire(self._links.pop(os.getpid(), None))
        if self._sentinels is not None:
            self._sentinels.close()

    async def _pause(self) -> None:
        time.sleep(_PAUSE)  # noqa: ASYNC251

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        return work()  # this is one

    def _registry(self) -> tuple[dict[int, _Link], int]:
        return self._links, os.getpid()

    def _slots(self) -> queue.SimpleQueue[None]:
        # A queue of tokens: threading.Semaphore, being Python, costs a tenth of a GET. Its class is
        # looked up now: gevent may have replaced it since this module was imported (--preload), and
        # the first one would block all greenlets of the process.
        gate: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._target.connections):
            gate.put(None)
        return gate

    def _abandon(self, link: _Link) -> None:
        run_sync(close(link.client))


class AsyncClients(_Clients):
    """The clients of this process for event loops: asyncio's own, threads under trio."""

    _package = "redis.asyncio"
    _cluster = AsyncCluster
    _waiting = AsyncWaiting

    def __init__(self, target: Target, blocking: BlockingClients) -> None:
        super().__init__(target, blocking._shared)
        self._blocking = blocking
        self._links: weakref.WeakKeyDictionary[Any, _Link] = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]
        self._threads = weakref.WeakKeyDictionary()
        self._closing: set[asyncio.Task[None]] = set()
        after_fork(self)

    def after_fork(self) -> None:
        """Start anew: the parent goes on with the connections."""
        _inherited.append((self._links, self._closing))
        self._links = weakref.WeakKeyDictionary()
        self._closing = set()

    async def run(self, call: Call, again: Call | None, *, can_wait: bool = False) -> Any:
        loop = running_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            return await self._in_a_thread(lambda: run_sync(self._blocking.run(call, again)))
        is_trial = self._breaker.enter(self._target)
        link = self._links.get(loop)
        if link is None or self._sentinels is not None:
            link = await self._find_link()
        if not link.slots.take():
            try:
                await link.slots.wait(_QUEUE, goes_first=not can_wait)
            except TimeoutError:
                raise _queued(self._target) from None
        try:
            return await self._attempt(link, is_trial, call, again)
        finally:
            link.slots.give_back()

    async def close(self) -> None:
        loop = running_loop()
        if not isinstance(loop, asyncio.AbstractEventLoop):
            await self._in_a_thread(lambda: run_sync(self._blocking.close()))
            return
        self._retire(self._links.pop(loop, None))
        closing = [task for task in list(self._closing) if task.get_loop() is loop]
        await asyncio.gather(*closing, return_exceptions=True)
        if self._sentinels is not None:
            await self._in_a_thread(self._sentinels.close)

    async def _pause(self) -> None:
        await asyncio.sleep(_PAUSE)

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        # Not one of anyio's shared threads: routes that wait for this result may use all of them.
        limiter = self._threads.setdefault(running_loop(), anyio.CapacityLimiter(_THREADS))
        return await anyio.to_thread.run_sync(work, limiter=limiter)

    def _registry(self) -> tuple[MutableMapping[Any, _Link], Any]:
        return self._links, asyncio.get_running_loop()

    def _connect(self, slots: Any, renewed_at: float = float("-inf")) -> _Link:
        for other in [other for other in self._links if other.is_closed()]:
            del self._links[other]  # its client refers to the loop, so it would stay for ever
        return super()._connect(slots, renewed_at)

    def _slots(self) -> Turns:
        return Turns(self._target.connections)

    def _abandon(self, link: _Link) -> None:
        # In a task: a server that is down would keep the request waiting, and a request that is
        # cancelled would leave connections open.
        task = asyncio.get_running_loop().create_task(close(link.client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _is_refusal(error: Exception) -> bool:
    """True if the server says that it is no primary, or accepts no writes now."""
    if isinstance(error, _REFUSALS):
        return True
    return isinstance(error, exceptions.ResponseError) and bool(_REFUSAL.search(str(error)))


def _sentence(error: Exception) -> str:
    if is_denial(error):
        return _denial(str(error))
    if isinstance(error, RuntimeError) and _UVLOOP_CLOSED in str(error):
        return _UNREACHABLE
    if not isinstance(error, _ERRORS):
        # Where it comes from, but not its text, which may quote a key.
        frames = traceback.extract_tb(error.__traceback__)
        place = f" in {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
        return f"cannot be used: the client failed ({type(error).__name__}{place})"
    for kind, sentence in _SENTENCES:
        if isinstance(error, kind):
            reason = _system_reason(error)
            return f"{sentence} ({reason})" if reason else sentence
    for words, sentence in _OTHER_SERVERS:
        if words.search(str(error)):
            return sentence
    code = _REFUSAL.search(str(error)) or re.match(r"-?([A-Z]{2,16})\b", str(error))
    if code and code[1] in _CODES:
        return _CODES[code[1]]
    # BUSY, MISCONF, CLUSTERDOWN …
    return f"refused a command ({code[1] if code else type(error).__name__})"


def is_denial(error: Exception) -> bool:
    """True if the server says that a right is missing, in a script or outside."""
    if isinstance(error, exceptions.NoPermissionError):
        return True
    return isinstance(error, exceptions.ResponseError) and bool(_DENIAL.search(str(error)))


def is_denial_of_keys(text: str) -> bool:
    """True if such an answer is about the keys, not about the command."""
    return bool(_DENIED_KEYS.search(text))


def denied_command(text: str) -> str:
    """Return the command that such an answer names, such as "cluster|slots"; or an empty string."""
    named = _DENIED.search(text)
    return named[1] if named else ""


def _denial(text: str) -> str:
    """Say which right is missing, by an answer that a user may not do something."""
    named, line = denied_command(text), _DENIED_LINE.search(text)
    commands = [named.upper().replace("|", " ")] if named else []
    if is_denial_of_keys(text):
        return f"does not permit the user the keys of a store: {_RIGHTS}"
    if not commands and line and line[1] in scripts:
        lines = scripts[line[1]].split("\n")
        commands = _CALLED.findall("".join(lines[int(line[2]) - 1 : int(line[2])]))
    if not commands:
        return f"does not permit the user what a store needs: {_RIGHTS}"
    return f"does not permit the user the command {' or '.join(commands)}: {_RIGHTS}"


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
