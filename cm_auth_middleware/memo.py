"""A bounded memory of what was worked out before."""

from __future__ import annotations

import os
import threading
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

_MOST = 4096  # entries of one dictionary
_lock = threading.Lock()


def remember(known: dict[K, V], key: K, value: V) -> V:
    """Keep a value under its key, in place of the oldest one if there are too many."""
    with _lock:
        while len(known) >= _MOST:
            del known[next(iter(known))]
        known[key] = value
    return value


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # another thread of the parent may hold it at the fork
    os.register_at_fork(after_in_child=_renew_lock)
