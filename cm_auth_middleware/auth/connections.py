"""Open connections: each ends within a minute after its session has ended.

The middleware loads the session when a request begins, and most requests are over soon after. A
WebSocket, server-sent events, a download or a long poll may last for days. So one watch for each
event loop, and one thread for each WSGI process, looks up the sessions of all open connections
again and again. It does not depend on what a handler does: some only send, some only receive, some
do neither.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UnavailableError
from ..events import log
from ..runtime.after_fork import after_fork

if TYPE_CHECKING:
    from ..runtime.base import Repetition, Runtime
    from ..sessions.session import Session
    from .gate import Gate

LOOK_EVERY = 20.0  # seconds between two looks at the sessions of open connections
_END_TIMEOUT = 5.0  # seconds that ending a connection may take: its client may not be reading

IsAlive = Callable[["Session"], Awaitable[bool]]


class Connection(Protocol):
    """A connection that may last.

    Attributes:
        is_old: True once it was open while the watch looked.
    """

    session: Session
    is_old: bool

    async def end(self) -> None:
        """End it: the client sees it close, and the handler sees that the client left."""


class NextLook:
    """A connection's own look at its session, for when the watch is kept waiting.

    A busy event loop may keep it, and a test may move the clock of the engine.
    """

    __slots__ = ("_again_at", "_at", "_is_alive", "_is_stale", "_session")

    def __init__(self, session: Session, gate: Gate) -> None:
        self._session = session
        self._is_stale = gate.is_stale
        self._is_alive = gate.is_alive
        self._at = time.monotonic() + LOOK_EVERY
        self._again_at = 0.0

    @property
    def is_due(self) -> bool:
        now = time.monotonic()
        return now >= self._at or (self._is_stale(self._session) and now >= self._again_at)

    async def finds_end(self) -> bool:
        """Look the session up and return True if it has ended; the next look is due later."""
        now = time.monotonic()
        self._at, self._again_at = now + LOOK_EVERY, now + 1  # if the store cannot be asked
        with suppress(UnavailableError):  # which ends no session
            self._session.ended = not await self._is_alive(self._session)
        return self._session.ended


async def _find_ended(connections: Collection[Any], is_alive: IsAlive) -> list[Any]:
    """Look up each session once; return the connections of those that have ended."""
    alive: dict[str, bool] = {}
    ended = []
    try:
        for connection in list(connections):
            session = connection.session
            connection.is_old = True
            if session.record_id not in alive:
                alive[session.record_id] = not session.ended and await is_alive(session)
            if not alive[session.record_id]:
                session.ended = True
                ended.append(connection)
    except UnavailableError:
        pass  # while the store fails no connection ends: the next look is soon
    except Exception:
        log("watch_failed", exc_info=True)
    return ended


class _OnLoop(set[Connection]):
    """The open connections of one event loop, and the watch over them."""

    watch: Repetition | None = None


def _unknown() -> bool:
    """Return False: what stands for trio's event loop cannot say if that runs."""
    return False


class LoopConnections:
    """The open connections of each event loop of this process."""

    def __init__(self, runtime: Runtime, is_alive: IsAlive) -> None:
        self._runtime = runtime
        self._is_alive = is_alive
        self._loops: weakref.WeakKeyDictionary[Any, _OnLoop] = weakref.WeakKeyDictionary()
        from ..runtime.running_loop import running_loop  # a process with threads alone needs none

        self._running_loop = running_loop
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Forget the last loop: to the child it seems to run still."""
        # The thread, a function that tells if its loop still runs, and what is open on that one.
        self._last: tuple[int, Callable[[], bool], _OnLoop] = (0, _unknown, _OnLoop())

    def here(self) -> set[Connection]:
        """Return the open connections of this event loop, and watch those that are put there.

        Each is to be removed when it has ended.
        """
        # Nearly always there is one loop. To ask which one runs is a call of the operating system
        # in Python 3.11; a thread runs one at a time.
        thread, is_running, here = self._last
        if thread != get_ident() or not is_running():
            loop = self._running_loop()
            here = self._loops.get(loop) or self._loops.setdefault(loop, _OnLoop())
            self._last = get_ident(), getattr(loop, "is_running", _unknown), here
        watch = here.watch
        if watch is None or watch.has_ended:
            work = partial(_look_if_alive, weakref.ref(self), here)
            here.watch = self._runtime.repeat(LOOK_EVERY, work)
        return here

    async def _look(self, connections: set[Connection]) -> bool:
        import anyio  # which the threads' side does not load

        async with anyio.create_task_group() as group:  # a client may not be reading
            for connection in await _find_ended(connections, self._is_alive):
                group.start_soon(_end_in_time, connection)
        return bool(connections)


async def _look_if_alive(
    reference: weakref.ref[LoopConnections | ThreadConnections], *arguments: Any
) -> bool:
    """Look, unless the engine is gone: a watch that sleeps must not keep it alive."""
    connections = reference()
    return connections is not None and await connections._look(*arguments)


async def _end_in_time(connection: Connection) -> None:
    import anyio

    with anyio.move_on_after(_END_TIMEOUT):
        await connection.end()


class ThreadConnections:
    """The open connections of this process's threads.

    References to them are weak: a connection leaves when the server drops its response.
    """

    def __init__(self, runtime: Runtime, is_alive: IsAlive) -> None:
        self._runtime = runtime
        self._is_alive = is_alive
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Start anew: the thread that watched was not forked."""
        self._lock = threading.Lock()  # of the watch: it begins and ends
        # A WeakSet has its methods in Python, which cost each request a tenth of the gate.
        self._open: set[weakref.ref[Any]] = set()
        self._leave = self._open.discard
        self._bodies: weakref.WeakKeyDictionary[Any, Connection] = weakref.WeakKeyDictionary()
        self._watch: Repetition | None = None

    def add(self, connection: Connection, body: Any = None) -> None:
        """Watch a connection for as long as it is referenced.

        Args:
            body: of a response that is an object of the server's own; the connection is watched
                for as long as the server keeps it.
        """
        self._open.add(weakref.ref(connection, self._leave))
        if body is not None:
            self._bodies[body] = connection
        watch = self._watch
        if watch is None or watch.has_ended:
            self._start_watch()

    def _start_watch(self) -> None:
        with self._lock:
            if self._watch is None or self._watch.has_ended:
                work = partial(_look_if_alive, weakref.ref(self))
                self._watch = self._runtime.repeat(LOOK_EVERY, work)

    async def _look(self) -> bool:
        await self._end_ended()  # apart, so that no variable here keeps a connection
        with self._lock:
            # Before the look at them: who adds one that it misses starts another watch.
            watch, self._watch = self._watch, None
            if not self._open:
                return False
            self._watch = watch
        return True

    async def _end_ended(self) -> None:
        connections = [connection for each in self._open.copy() if (connection := each())]
        for connection in await _find_ended(connections, self._is_alive):
            await connection.end()
