"""The default store keeps sessions in this process's memory, and loses them with a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from ..runtime.after_fork import after_fork
from .leases import CLAIMED, LAPSED
from .workers import warn_if_several_workers

_SHARDS = 256  # at most; with 10^6 records each has 4 000, which takes 0.2 ms to sweep or to grow
_SHARD_RECORDS = 1_000  # a smaller store has fewer shards
_SWEEP_EVERY = 10.0  # seconds from the start of one round through the shards to the next
_LEASES = 1_024  # leases kept before those that have expired are swept


_Shard = tuple[dict[str, bytes], dict[str, float]]
"""A part of the records: their values, and their ends, each in order of writing.

Two dictionaries take less memory than one of pairs would, and hold nothing that the garbage
collector would have to look at. A record that has an end always has a value: it is written value
first and removed end first. Who reads without the lock reads the end first, so that a new end never
speaks for an old value.
"""


class MemoryStore:
    """A bounded dictionary with expiry. It never waits, so it serves threads and loops alike.

    Each write sweeps the expired records out of one shard, one shard after the other.

    Args:
        capacity: the number of sessions that are kept. Beyond it, the one that was not written for
            the longest time is deleted (in a large store, of those in the new one's shard).
        clock: epoch seconds.
    """

    def __init__(
        self, capacity: int = 1_000_000, *, clock: Callable[[], float] = time.time
    ) -> None:
        count = 1
        while count < _SHARDS and count * _SHARD_RECORDS < capacity:
            count *= 2
        self._clock = clock
        # Many small ones, because a dictionary of 10^6 takes 40 ms to grow, and cannot be swept a
        # part at a time.
        self._shards: list[_Shard] = [({}, {}) for _ in range(count)]
        self._mask = count - 1
        self._shard_capacity = -(-capacity // count)
        self._next_sweep = 0
        self._round_at = 0.0
        self._leases: dict[str, tuple[str, float]] = {}
        self._sweep_leases_at = _LEASES
        self._lock = threading.Lock()
        self._is_forked = False
        after_fork(self)
        warn_if_several_workers()

    @property
    def is_at_hand(self) -> bool:
        """True: memory never waits. A class derived from this one may."""
        return type(self) is MemoryStore

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        values, ends = self._shards[hash(key) & self._mask]
        value: bytes | None
        try:
            end, value = ends[key], values[key]
        except KeyError:
            with self._lock:  # another thread may be replacing it, which takes it out for a moment
                end, value = ends.get(key, 0.0), values.get(key)
        return value if end > self._clock() else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        if self._is_forked:  # as with gunicorn --preload
            self._is_forked = False
            warn_if_several_workers()
        with self._lock:
            self._set(key, value, ttl)
            self._sweep_if_due()

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        with self._lock:
            values, ends = self._shards[hash(key) & self._mask]
            if values.get(key) != old or ends.get(key, 0.0) <= self._clock():
                return False
            self._set(key, new, ttl)
            self._sweep_if_due()
            return True

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it."""
        with self._lock:
            values, ends = self._shards[hash(key) & self._mask]
            end, value = ends.pop(key, 0.0), values.pop(key, None)
            return value if end > self._clock() else None

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        now = self._clock()
        with self._lock:
            holder = self._leases.get(key)
            if holder is not None and holder[0] != owner and holder[1] > now:
                return False
            self._lease(key, owner, now, ttl)
            return True

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        """Take or extend a lease, unless another owner let it run out."""
        now = self._clock()
        with self._lock:
            holder, ends = self._leases.get(key, (owner, 0.0))
            if holder not in (owner, CLAIMED + owner) and ends > now:
                if not holder.startswith(CLAIMED) or ends > now + LAPSED:
                    return False
                if not even_lapsed:
                    return None
            self._lease(key, CLAIMED + owner, now, ttl + LAPSED)
            return True

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        with self._lock:
            holder = self._leases.get(key)
            if holder is not None and holder[0] in (owner, CLAIMED + owner):
                del self._leases[key]

    async def purge(self) -> int:
        """Delete everything that has expired."""
        removed = 0
        for _ in self._shards:
            with self._lock:
                removed += self._sweep()
        return removed

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Read every record, which takes about a second for a million."""
        return list(self._live(prefix))

    async def count(self, prefix: bytes = b"") -> int:
        """Count the live records."""
        return sum(1 for _ in self._live(prefix))

    def blocking(self) -> MemoryStore:
        """Return this store itself: memory never waits."""
        return self

    async def ping(self) -> None:
        """Return: memory can always be used."""

    async def close(self) -> None:
        """Do nothing: there is nothing to release, and the sessions stay."""

    def _live(self, prefix: bytes) -> Iterator[tuple[str, bytes]]:
        now = self._clock()
        for values, ends in self._shards:
            with self._lock:  # as in get(): who logs a user out everywhere must miss no session
                found = [
                    (key, value)
                    for key, value in values.items()
                    if value.startswith(prefix) and ends.get(key, 0.0) > now
                ]
            yield from found

    def _lease(self, key: str, owner: str, now: float, ttl: float) -> None:
        if len(self._leases) >= self._sweep_leases_at:
            self._leases = {k: held for k, held in self._leases.items() if held[1] > now}
            self._sweep_leases_at = max(_LEASES, 2 * len(self._leases))
        self._leases[key] = (owner, now + ttl)

    def _set(self, key: str, value: bytes, ttl: float) -> None:
        values, ends = self._shards[hash(key) & self._mask]
        end = self._clock() + ttl
        _remove(key, values, ends)  # or it would keep its place in the order
        values[key] = value
        ends[key] = end
        if len(values) > self._shard_capacity:
            _remove(next(iter(values)), values, ends)

    def _sweep_if_due(self) -> None:
        if self._next_sweep == 0:
            now = self._clock()
            if now < self._round_at:
                return
            self._round_at = now + _SWEEP_EVERY
        self._sweep()

    def _sweep(self) -> int:
        """Delete the expired records of the next shard and return how many."""
        now = self._clock()
        values, ends = self._shards[self._next_sweep]
        self._next_sweep = (self._next_sweep + 1) & self._mask
        expired = [key for key, end in ends.items() if end <= now]
        for key in expired:
            _remove(key, values, ends)
        return len(expired)

    def after_fork(self) -> None:
        """Take a new lock: another thread may have held the old one at the fork."""
        self._lock = threading.Lock()
        self._is_forked = True


def _remove(key: str, values: dict[str, bytes], ends: dict[str, float]) -> None:
    ends.pop(key, None)
    values.pop(key, None)
