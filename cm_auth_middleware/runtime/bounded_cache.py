"""A dictionary that drops its oldest values, for results that can be computed again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from .after_fork import after_fork

K = TypeVar("K")
V = TypeVar("V")

_MOST = 4096  # values of one cache


class BoundedCache(dict[K, V]):
    """A dictionary that drops its oldest value to make room for another one.

    A value set again becomes the newest. Threads may share it: reading is a plain dictionary's and
    takes no lock.

    Args:
        is_over: returns True for a value that need not be kept any longer. It is asked of the
            oldest values whenever another one is set.
    """

    def __init__(self, is_over: Callable[[V], bool] | None = None) -> None:
        super().__init__()
        self._is_over = is_over
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Take a new lock: another thread may have held the old one at the fork."""
        self._lock = threading.Lock()

    def __setitem__(self, key: K, value: V) -> None:
        with self._lock:
            super().pop(key, None)
            while self:
                oldest = next(iter(self))
                if len(self) < _MOST and not (self._is_over and self._is_over(self[oldest])):
                    break
                del self[oldest]
            super().__setitem__(key, value)

    def pop(self, key: K, *default: Any) -> Any:
        """Remove a value and return it, as a dictionary does."""
        with self._lock:
            return super().pop(key, *default)
