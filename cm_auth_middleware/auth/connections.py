"""Open connections: each ends within a minute after its session has ended.

A request is short, and the middleware has just seen its session. A WebSocket, server-sent events, a
download or a long poll may last for days. One watch per event loop, and one thread per process for
WSGI, looks at the sessions of all that are open, however their handlers work: those that only
send, only receive, or do neither.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from ..errors import UnavailableError
from ..events import log
from ..runtime.run_sync import running_loop

if TYPE_CHECKING:
    from ..runtime.event_loops import EventLoopRuntime, Repetition, ThreadRuntime
    from ..sessions.session import Session

LOOK_EVERY = 20.0  # seconds between two looks at the sessions of open connections
_END_TIMEOUT = 5.0  # seconds that ending one may take: its client may not be reading

IsAlive = Callable[["Session"], Awaitable[bool]]


class Connection(Protocol):
    """A connection that may last."""

    session: Session

    async def end(self) -> None:
        """End it: the client sees it close, and the handler learns that the client left."""


async def _look(
    connections: Collection[Any], is_alive: IsAlive, end: Callable[[Any], Awaitable[None]]
) -> None:
    """Look once at each session that has connections, and end those of sessions that are over."""
    seen: dict[str, bool] = {}
    try:
        for connection in list(connections):
            session = connection.session
            if session.record_id not in seen:
                seen[session.record_id] = not session.ended and await is_alive(session)
            if not seen[session.record_id]:
                session.ended = True
                await end(connection)
    except UnavailableError:
        return  # a store that cannot be asked ends nothing: the next look is soon
    except Exception:
        log("watch_failed", exc_info=True)


class _OnLoop:
    """The open connections of one event loop, and the watch over them."""

    def __init__(self) -> None:
        self.open: set[Connection] = set()
        self.watch: Repetition | None = None


class LoopConnections:
    """The open connections of each event loop of this process."""

    def __init__(self, runtime: EventLoopRuntime, is_alive: IsAlive) -> None:
        self._runtime = runtime
        self._is_alive = is_alive
        self._loops: weakref.WeakKeyDictionary[Any, _OnLoop] = weakref.WeakKeyDictionary()

    def add(self, connection: Connection) -> set[Connection]:
        """Watch a connection; return the set to take it out of when it has ended."""
        loop = running_loop()
        here = self._loops.get(loop)
        if here is None:
            here = self._loops[loop] = _OnLoop()
        here.open.add(connection)
        if here.watch is None or here.watch.is_over:
            here.watch = self._runtime.repeat(LOOK_EVERY, partial(self._look, here.open))
        return here.open

    async def _look(self, connections: set[Connection]) -> bool:
        await _look(connections, self._is_alive, _end_in_time)
        return bool(connections)


async def _end_in_time(connection: Connection) -> None:
    with anyio.move_on_after(_END_TIMEOUT):
        await connection.end()


class ThreadConnections:
    """The open connections of this process's threads.

    They are forgotten with their last reference, which is when the server drops the response.
    """

    def __init__(self, runtime: ThreadRuntime, is_alive: IsAlive) -> None:
        self._runtime = runtime
        self._is_alive = is_alive
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._bodies: weakref.WeakKeyDictionary[Any, Connection] = weakref.WeakKeyDictionary()
        self._watch: Repetition | None = None

    def add(self, connection: Connection, body: Any = None) -> None:
        """Watch a connection for as long as it is referenced.

        Args:
            body: of a response that is the server's own object, and keeps the connection meanwhile.
        """
        if self._pid != os.getpid():
            self._start()  # this process was forked, and the thread that watched was not
        with self._lock:
            self._open.add(connection)
            if body is not None:
                self._bodies[body] = connection
            if self._watch is None or self._watch.is_over:
                self._watch = self._runtime.repeat(LOOK_EVERY, self._look)

    async def _look(self) -> bool:
        with self._lock:
            connections = list(self._open)
        await _look(connections, self._is_alive, _end)
        del connections
        with self._lock:
            if not self._open:
                self._watch = None  # the next one starts another
                return False
        return True


async def _end(connection: Connection) -> None:
    await connection.end()
