"""Dictionaries that drop their oldest values, for results that can be computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from sys import getsizeof
from typing import Any, TypeVar

from .after_fork import after_fork

K = TypeVar("K")
V = TypeVar("V")

MOST_BYTES = 64_000_000  # of all caches of an engine
_MOST = 4096  # values of one cache
_ENTRY = 120  # bytes that a dictionary needs for an entry, and a small object beside the value


class CacheMemory:
    """The memory that some caches share.

    When they hold more together, the one that holds most drops its oldest values.

    Args:
        most: bytes that they may hold together.

    Attributes:
        used: the bytes that they hold together, about.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self.used = 0
        self._caches: list[BoundedCache[Any, Any]] = []
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Take a new lock: another thread may have held the old one at the fork."""
        self.lock = threading.Lock()

    def add(self, cache: BoundedCache[Any, Any]) -> None:
        """Let a cache share this memory."""
        self._caches.append(cache)

    def make_room(self) -> None:
        """Drop values until all caches together hold no more than they may."""
        while self.used > self.most:
            max(self._caches, key=lambda cache: cache.bytes_held).drop_oldest()


class BoundedCache(dict[K, V]):
    """A dictionary that drops its oldest value to make room for another one.

    A value set again becomes the newest. Threads may share it: reading is a plain dictionary's and
    takes no lock.

    Args:
        is_over: returns True for a value that need not be kept any longer. It is asked of the
            oldest values whenever another one is set.
        memory: shared with other caches; one of its own if it is not given.
        size: returns the bytes of a value, which must not change; without it, the value itself is
            counted, but nothing that it refers to.

    Attributes:
        bytes_held: by all keys and values, about.
    """

    def __init__(
        self,
        is_over: Callable[[V], bool] | None = None,
        *,
        memory: CacheMemory | None = None,
        size: Callable[[V], int] = getsizeof,
    ) -> None:
        super().__init__()
        self._is_over = is_over
        self._memory = memory or CacheMemory()
        self._size = size
        self.bytes_held = 0
        self._memory.add(self)

    def __setitem__(self, key: K, value: V) -> None:
        memory, is_over, added = self._memory, self._is_over, self._bytes(key, value)
        with memory.lock:
            if key in self:
                self._remove(key)
            while self:
                oldest = next(iter(self))
                if len(self) < _MOST and (is_over is None or not is_over(self[oldest])):
                    break
                self._remove(oldest)
            dict.__setitem__(self, key, value)
            self.bytes_held += added
            memory.used += added
            if memory.used > memory.most:
                memory.make_room()

    def pop(self, key: K, *default: Any) -> Any:
        """Remove a value and return it, as a dictionary does."""
        with self._memory.lock:
            return self._remove(key) if key in self else super().pop(key, *default)

    def clear(self) -> None:
        """Remove all values."""
        with self._memory.lock:
            super().clear()
            self._memory.used -= self.bytes_held
            self.bytes_held = 0

    def drop_oldest(self) -> None:
        """Remove the oldest value; the memory's lock is held."""
        self._remove(next(iter(self)))

    def _remove(self, key: K) -> V:
        value = super().pop(key)
        removed = self._bytes(key, value)
        self.bytes_held -= removed
        self._memory.used -= removed
        return value

    def _bytes(self, key: K, value: V) -> int:
        return getsizeof(key) + self._size(value) + _ENTRY
