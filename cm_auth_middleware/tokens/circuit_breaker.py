"""Leaving a server alone that fails: one pause for everybody, and one attempt to find it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import UnavailableError

PAUSE = 1.0  # seconds between attempts at a server that stays down
_FIRST_PAUSE = 0.25  # seconds until a second attempt, which requests wait for
_LONGEST = 60.0  # seconds that any pause lasts; one that seems longer is a clock that was set


class Backoff:
    """Says when the server may be asked again, and for which grant.

    After one failure everybody may try again in a moment. After more the server is down: requests
    fail at once, so that they do not pile up, and one at a time finds out whether it is back.

    As long as it fails for one grant alone, only that one waits: the fault may be the account's.
    Later, too, the grant that failed last lets the others go first.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._closed_until = 0.0
        self._tried_until = 0.0
        self._failures = 0
        self._failed_last = ""
        self._is_general = False

    def left(self, grant: str) -> float:
        """Seconds until the server may be asked again for a grant; 0 for now."""
        if not self._concerns(grant):
            return 0.0
        is_last = self._is_general and self._failures > 1 and grant == self._failed_last
        turn = PAUSE if is_last else 0.0
        return self._seconds_to(self._closed_until + turn)

    async def wait(self, grant: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait out a short pause.

        Raises:
            UnavailableError: it is a long one.
        """
        left = self.left(grant)
        if left > _FIRST_PAUSE:
            raise UnavailableError("CameraManager is not answering", retry_after=left)
        if left:
            await sleep(left)

    def begin(self, grant: str, timeout: float) -> None:
        """Note that the server is asked now, which takes at most so many seconds.

        Raises:
            UnavailableError: it is down, and somebody else is asking it.
        """
        if self._failures < 2 or not self._concerns(grant):
            return
        if self._seconds_to(self._tried_until):
            raise UnavailableError("CameraManager is not answering")
        self._tried_until = self._clock() + timeout

    def failed(self, grant: str, retry_after: float) -> None:
        """Note a failure, after which the server asked for so many seconds of peace."""
        asked = retry_after > PAUSE
        if asked or self._failed_last not in ("", grant):
            self._is_general = True
        self._failed_last = grant
        self._failures += 1
        pause = retry_after if asked or self._failures > 1 else _FIRST_PAUSE
        self._closed_until = self._clock() + min(pause, _LONGEST)
        self._tried_until = 0.0

    def answered(self) -> None:
        """Note an answer, whatever it says."""
        self._closed_until = self._tried_until = 0.0
        self._failures, self._failed_last, self._is_general = 0, "", False

    def _concerns(self, grant: str) -> bool:
        return self._is_general or grant == self._failed_last

    def _seconds_to(self, time: float) -> float:
        left = time - self._clock()
        return left if 0 < left <= _LONGEST + PAUSE else 0.0
