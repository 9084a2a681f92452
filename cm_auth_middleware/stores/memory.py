"""Sessions in this process's memory: the default, for one process, gone with a restart."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

_PURGE_BATCH = 64  # records looked at by one write: purging never holds a request up
_LEASES = 1024  # leases kept before those that ran out are swept


class MemoryStore:
    """A bounded dictionary with expiry.

    Args:
        capacity: how many sessions are kept; beyond it the one longest not written goes first.
        clock: epoch seconds.
    """

    def __init__(
        self, capacity: int = 1_000_000, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._capacity = capacity
        self._clock = clock
        self._values: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._leases: dict[str, tuple[str, float]] = {}
        self._lock = threading.Lock()

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        entry = self._values.get(key)
        return entry[0] if entry is not None and entry[1] > self._clock() else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        with self._lock:
            self._set(key, value, ttl)
            self._purge(_PURGE_BATCH)
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        with self._lock:
            entry = self._values.get(key)
            if entry is None or entry[1] <= self._clock() or entry[0] != old:
                return False
            self._set(key, new, ttl)
            return True

    async def delete(self, key: str) -> bytes | None:
        """Remove the value and return it."""
        with self._lock:
            entry = self._values.pop(key, None)
            return entry[0] if entry is not None and entry[1] > self._clock() else None

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        now = self._clock()
        with self._lock:
            holder = self._leases.get(key)
            if holder is not None and holder[0] != owner and holder[1] > now:
                return False
            if len(self._leases) >= _LEASES:
                self._leases = {k: held for k, held in self._leases.items() if held[1] > now}
            self._leases[key] = (owner, now + ttl)
            return True

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        with self._lock:
            if self._leases.get(key, ("",))[0] == owner:
                del self._leases[key]

    async def purge(self) -> int:
        """Remove everything that has expired."""
        with self._lock:
            return self._purge(len(self._values))

    async def ping(self) -> None:
        """Memory is always there."""

    async def close(self) -> None:
        """Nothing to release; the sessions stay."""

    def _set(self, key: str, value: bytes, ttl: float) -> None:
        self._values[key] = (value, self._clock() + ttl)
        self._values.move_to_end(key)

    def _purge(self, most: int) -> int:
        """Look at the `most` records longest not written and drop the expired among them."""
        now = self._clock()
        oldest = [key for key, _ in zip(self._values, range(most), strict=False)]
        expired = [key for key in oldest if self._values[key][1] <= now]
        for key in expired:
            del self._values[key]
        return len(expired)
