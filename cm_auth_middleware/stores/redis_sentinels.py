"""Ask the sentinels of a Redis which server is the primary.

redis-py asks them when it connects, and `redis.asyncio` goes on using a connection to a server that
is no longer the primary. A primary that stood still (a virtual machine that is moved, a host that
swaps) goes on believing that it is one when it wakes up: for up to 10 s it confirms writes, and
all of them are lost when a sentinel makes it a replica. So this module asks

- once a second, while the store is used;
- before a call, if another call has been waiting for the same server: it may be standing still;
- after a call that took long, or during which another one did: only if the server is the primary
  still, its answer counts.

All sentinels are asked, because one that stood still itself names the old primary. The answer with
the highest configuration epoch counts: a majority has to agree before a failover gets an epoch
(https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/, "Configuration epochs").
While a failover is under way, nothing counts; the caller waits for the end.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from redis import exceptions

ASK_EVERY = 1.0  # seconds for which an answer counts
SILENCE = 0.25  # seconds after which a server may be standing still
_PAUSE = 0.1  # seconds between two questions during a failover
_SETTLE = 3.0  # seconds that a failover is waited for
_LEAVE_ALONE = 2.0  # seconds that a sentinel that did not answer is not asked again


class FailoverError(exceptions.RedisError):
    """A replica is about to take the place of the primary."""


class _Answer(NamedTuple):
    """What a sentinel says.

    Attributes:
        epoch: of the configuration; the highest is the latest.
        address: host and port of the primary.
        is_down: True if the sentinels agree that the primary does not answer.
        is_failing_over: True if this sentinel is replacing it.
    """

    epoch: int
    address: tuple[str, int]
    is_down: bool
    is_failing_over: bool


class _Watcher:
    """A connection to a sentinel."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.ask_at = float("-inf")  # not before, by the monotonic clock
        self.error: Exception | None = None


class Sentinels:
    """Knows the primary, for all event loops and threads of this process.

    Args:
        connections: makes connections to the sentinels, of the blocking redis-py.
        service: the name of the primary.

    Attributes:
        address: host and port of the primary; None until somebody asked.
    """

    def __init__(self, connections: Any, service: str) -> None:
        self.address: tuple[str, int] | None = None
        self._connections = connections
        self._service = service
        self._asked_at = float("-inf")
        self._down_since: float | None = None
        self._locks: dict[int, threading.Lock] = {}
        self._watchers: dict[int, list[_Watcher]] = {}

    def knows(self, since: float) -> bool:
        """True if the sentinels were asked since then, by the monotonic clock."""
        return self.address is not None and self._asked_at >= since

    def ask(self, since: float) -> None:
        """Learn the primary, unless another thread has asked since then. This call blocks.

        Raises:
            RedisError: none is known, or a failover does not come to its end.
        """
        # A lock for each process, since a fork may leave that of the parent locked.
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            patience = time.monotonic() + _SETTLE
            while not self.knows(since):
                asked_at = time.monotonic()
                best, others = self._best()
                if best is None:  # keep what is known: the primary is well without sentinels
                    if self.address is None:
                        raise others or exceptions.ConnectionError("no sentinel knows the primary")
                    self._asked_at = asked_at
                    return
                if not best.is_down:
                    self._down_since = None
                elif self._down_since is None:
                    self._down_since = asked_at
                # Nothing takes the place of a primary without a replica, so do not wait for ever.
                is_down = self._down_since is not None and asked_at < self._down_since + _SETTLE
                if not best.is_failing_over and not is_down:
                    self.address, self._asked_at = best.address, asked_at
                    return
                if asked_at > patience:
                    raise FailoverError
                time.sleep(_PAUSE)

    def close(self) -> None:
        """Close the connections of this process; the next question opens them again."""
        with self._locks.setdefault(os.getpid(), threading.Lock()):
            for watcher in self._watchers.pop(os.getpid(), []):
                _disconnect(watcher)

    def _best(self) -> tuple[_Answer | None, Exception | None]:
        """Ask all; return the latest answer, or None and why a sentinel gave none."""
        watchers = self._watchers.get(os.getpid())
        if watchers is None:
            watchers = [_Watcher(connection) for connection in self._connections()]
            self._watchers[os.getpid()] = watchers
        now = time.monotonic()
        asked = [w for w in watchers if now >= w.ask_at or self.address is None]
        # All questions are sent before the first answer is waited for.
        asked = [watcher for watcher in asked if self._send(watcher)]
        found = [(watcher, self._receive(watcher)) for watcher in asked]
        # An idle connection may have been closed by a sentinel that was started again.
        again = [watcher for watcher, answer in found if answer is None and self._send(watcher)]
        found += [(watcher, self._receive(watcher)) for watcher in again]
        answers = [answer for _, answer in found if answer is not None]
        if not answers:
            return None, next((watcher.error for watcher in watchers if watcher.error), None)
        best = max(answers, key=lambda answer: (answer.epoch, not answer.is_down))
        latest = [answer for answer in answers if answer.epoch == best.epoch]
        return best._replace(
            is_down=any(answer.is_down for answer in latest),
            is_failing_over=any(answer.is_failing_over for answer in latest),
        ), None

    def _send(self, watcher: _Watcher) -> bool:
        if time.monotonic() < watcher.ask_at and self.address is not None:
            return False  # it was silent just now
        try:
            watcher.connection.connect()
            question = [("SENTINEL", word, self._service) for word in _QUESTIONS]
            watcher.connection.send_packed_command(watcher.connection.pack_commands(question))
        except Exception as error:
            self._failed(watcher, error)
            return False
        return True

    def _receive(self, watcher: _Watcher) -> _Answer | None:
        try:
            address, state = _read(watcher.connection), _read(watcher.connection)
            if isinstance(address, Exception):
                raise address
            watcher.error = None
            return _answer(address, state) if address else None
        except Exception as error:
            self._failed(watcher, error)
            return None

    def _failed(self, watcher: _Watcher, error: Exception) -> None:
        _disconnect(watcher)
        watcher.error = error.with_traceback(None)
        if isinstance(error, (TimeoutError, exceptions.TimeoutError)):
            watcher.ask_at = time.monotonic() + _LEAVE_ALONE


# The first names the new primary as soon as there is one, the second at the end of the failover.
_QUESTIONS = ("GET-MASTER-ADDR-BY-NAME", "MASTER")


def _answer(address: Any, state: Any) -> _Answer:
    host, port = address[0].decode(), int(address[1])
    fields: dict[bytes, bytes] = {}
    if isinstance(state, dict):  # RESP3
        fields = state
    elif isinstance(state, list):  # otherwise the user of the sentinels may not ask for it
        fields = dict(zip(state[::2], state[1::2], strict=False))
    flags = fields.get(b"flags", b"").split(b",")
    is_replaced = (host, port) != (
        fields.get(b"ip", b"").decode(),
        int(fields.get(b"port", port)),
    )
    return _Answer(
        epoch=int(fields.get(b"config-epoch", 0)),
        address=(host, port),
        is_down=b"o_down" in flags and not is_replaced,
        is_failing_over=b"failover_in_progress" in flags and not is_replaced,
    )


def _read(connection: Any) -> Any:
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error


def _disconnect(watcher: _Watcher) -> None:
    with suppress(Exception):
        watcher.connection.disconnect()
