"""Loading what a process needs soon, beside its first requests.

A process answers its first request without HTTP client, TLS settings and cryptography, which
together take longer to load than everything else here. A thread loads them as soon as it can be
foreseen that they are needed. Who needs them earlier waits for that thread, as for any import.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

_PATIENCE = 5.0  # seconds that a fork waits for what is being loaded

_loading: set[threading.Thread] = set()


class Loading:
    """The steps of one engine's side, each of which is taken once."""

    def __init__(self) -> None:
        self._begun: set[Callable[[], object]] = set()

    def begin(self, *steps: Callable[[], object]) -> None:
        """Take those steps in a thread that were not taken before. Their errors come later.

        The interpreter waits for the thread when it exits: some modules cannot be left half loaded.
        """
        if self._begun.issuperset(steps):  # as at each redirect to a login but the first
            return
        new = [step for step in steps if step not in self._begun]
        self._begun.update(new)

        def load() -> None:
            try:
                for step in new:
                    with suppress(Exception):  # who needs it takes the same step, and is told
                        step()
            finally:
                _loading.discard(thread)

        thread = threading.Thread(target=load, name="cm_auth loading")
        _loading.add(thread)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started, as when the interpreter exits
            _loading.discard(thread)


def wait_until_loaded() -> None:
    """Wait for what is being loaded.

    A process that is forked meanwhile would have modules that are half loaded and locked for ever.
    """
    for thread in list(_loading):
        if thread is not threading.current_thread():
            thread.join(_PATIENCE)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=wait_until_loaded)
