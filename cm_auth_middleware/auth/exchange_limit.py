"""The limit on code exchanges at a time, which visitors cause: users and their refreshes go on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..events import log
from ..runtime.after_fork import after_fork

_LONGEST = 60.0  # seconds that a pause lasts; one that seems longer is a clock that was set
_AGAIN = 1.0  # seconds until another login may find room; a pause as short is waited for


class ExchangeLimit:
    """Counts the code exchanges of this process that are under way, and pauses them.

    Any visitor can begin a login and come back with an invented code, as often as they like.
    CameraManager may ask for a pause (429), for which refreshes must not suffer: they go on until
    they are refused themselves.

    Args:
        most: exchanges at a time.
        clock: epoch seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._paused_until = 0.0
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Count anew: the exchanges of the parent process are not this one's."""
        self._lock = threading.Lock()
        self._under_way = 0
        self._is_told = False  # True once the log was told of the refusals that go on

    def enter(self) -> float | None:
        """Count an exchange until `leave` and return None; or return the seconds to wait."""
        with self._lock:
            pause, under_way = self._pause, self._under_way
            if pause <= _AGAIN and under_way < self._most:
                self._under_way += 1
                return None
            is_told, self._is_told = self._is_told, True
        if not is_told:
            log("logins_limited", under_way=under_way)
        return max(pause, _AGAIN)

    @property
    def short_pause(self) -> float:
        """Return the seconds that an exchange which has entered has to wait, at most one."""
        return min(self._pause, _AGAIN)

    def leave(self) -> None:
        """Count an exchange no more."""
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                self._is_told = False

    @property
    def _pause(self) -> float:
        left = self._paused_until - self._clock()
        return left if 0 < left <= _LONGEST else 0.0

    def pause(self, seconds: float) -> None:
        """Admit no exchange for so long, at most a minute: CameraManager wants that."""
        self._paused_until = self._clock() + min(seconds, _LONGEST)
