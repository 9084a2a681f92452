"""Leaving a server alone that fails: one pause for everybody, and one attempt to find it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .errors import UnavailableError

PAUSE = 1.0  # seconds between attempts at a server that stays down
_FIRST_PAUSE = 0.25  # seconds until a second attempt, which requests wait for
_LONGEST = 60.0  # seconds that any pause lasts; one that seems longer is a clock that was set


class Backoff:
    """Says when the server may be asked again.

    After one failure everybody may try again in a moment. After more the server is down: requests
    fail at once, so that they do not pile up, and one at a time finds out whether it is back.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._closed_until = 0.0
        self._tried_until = 0.0
        self._failures = 0

    @property
    def left(self) -> float:
        """Seconds until the server may be asked again; 0 for now."""
        return self._seconds_to(self._closed_until)

    async def wait(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait out a short pause.

        Raises:
            UnavailableError: it is a long one.
        """
        if self.left > _FIRST_PAUSE:
            raise UnavailableError("CameraManager is not answering", retry_after=self.left)
        if self.left:
            await sleep(self.left)

    def begin(self, timeout: float) -> None:
        """Note that the server is asked now, which takes at most so many seconds.

        Raises:
            UnavailableError: it is down, and somebody else is asking it.
        """
        if self._failures < 2:
            return
        if self._seconds_to(self._tried_until):
            raise UnavailableError("CameraManager is not answering")
        self._tried_until = self._clock() + timeout

    def failed(self, retry_after: float) -> None:
        """Note a failure, after which the server asked for so many seconds of peace."""
        self._failures += 1
        asked = retry_after > PAUSE
        pause = retry_after if asked or self._failures > 1 else _FIRST_PAUSE
        self._closed_until = self._clock() + min(pause, _LONGEST)
        self._tried_until = 0.0

    def answered(self) -> None:
        """Note an answer, whatever it says."""
        self._failures, self._closed_until, self._tried_until = 0, 0.0, 0.0

    def _seconds_to(self, time: float) -> float:
        left = time - self._clock()
        return left if 0 < left <= _LONGEST else 0.0
