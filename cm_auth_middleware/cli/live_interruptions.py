"""Hold back Ctrl-C while tokens arrive, and not for long."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_GRACE = 2.0  # seconds for the call under way when a signal comes
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interruptions:
    """Turns signals that end the process into one `KeyboardInterrupt`, but not while tokens arrive.

    The tokens of a call that is interrupted would be known to nobody, and could not be revoked. So
    the call gets a little more time for its answer, and none any more at the next signal. After
    the `KeyboardInterrupt`, signals only shorten calls: the tokens are to be revoked then.

    Attributes:
        is_pending: True if a signal came that has not been raised.
    """

    def __init__(self) -> None:
        self.is_pending = False
        self._is_postponed = False
        self._is_raised = False
        self._cut: Callable[[], None] | None = None  # ends the call under way
        self._timers: list[threading.Timer] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (None, signal.SIG_IGN):  # nohup ignores SIGHUP
                    self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Raise an interruption after the block, not in it; also if the block fails."""
        before, self._is_postponed = self._is_postponed, True
        try:
            yield
        finally:
            self._is_postponed = before
            if self.is_pending and not before:
                self.is_pending = False
                self._raise_once()

    @contextmanager
    def cutting(self, cut: Callable[[], None]) -> Iterator[None]:
        """Let a postponed signal call `cut` soon, if the block has not ended by then."""
        self._cut = cut
        if self.is_pending:
            self._cut_after(_GRACE)
        try:
            yield
        finally:
            self._cut = None
            while self._timers:
                self._timers.pop().cancel()

    def sleep(self, seconds: float) -> None:
        """Sleep, until a signal comes."""
        end = time.monotonic() + seconds
        while not self.is_pending and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))

    def _interrupt(self, *_: object) -> None:
        if not self._is_postponed:
            self._raise_once()
        seconds = 0.0 if self.is_pending else _GRACE
        self.is_pending = True
        self._cut_after(seconds)

    def _raise_once(self) -> None:
        if not self._is_raised:
            self._is_raised = True
            raise KeyboardInterrupt

    def _cut_after(self, seconds: float) -> None:
        # In another thread, because a signal may come while this one holds a lock that cut() needs.
        if self._cut is not None:
            timer = threading.Timer(seconds, self._cut)
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
