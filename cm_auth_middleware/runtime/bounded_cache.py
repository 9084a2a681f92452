"""A bounded memory of what was worked out before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MOST = 4096  # entries of one dictionary
_lock = threading.Lock()


def remember(known: dict[K, V], key: K, value: V, is_over: Callable[[V], bool] | None = None) -> V:
    """Keep a value under its key, in place of the oldest one if there are too many.

    Args:
        is_over: says of one that it need not be kept any longer; the oldest ones are asked.
    """
    with _lock:
        known.pop(key, None)  # what is kept anew is the youngest
        while known:
            oldest = next(iter(known))
            if len(known) < _MOST and not (is_over and is_over(known[oldest])):
                break
            del known[oldest]
        known[key] = value
    return value


def forget(known: dict[K, V], key: K) -> V | None:
    """Keep a value no longer; return it."""
    with _lock:
        return known.pop(key, None)


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_renew_lock)
