"""A register of the objects that have to start afresh in a process that was forked."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Owner(Protocol):
    def after_fork(self) -> None:
        """Replace locks, sockets and threads of the parent process."""


_owners: weakref.WeakValueDictionary[int, _Owner] = weakref.WeakValueDictionary()


def after_fork(owner: _Owner) -> None:
    """Call `owner.after_fork()` in each process that is forked from this one, while it exists.

    Locks need it: another thread of the parent may hold one at the fork, and the child has no
    thread that would release it.
    """
    _owners[id(owner)] = owner


def _call_owners() -> None:
    for owner in list(_owners.values()):
        owner.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_call_owners)
