"""Leave a failing server alone: requests pause, and one at a time checks if it answers again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import UnavailableError

PAUSE = 1.0  # seconds between attempts at a server that stays down
_FIRST_PAUSE = 0.25  # seconds until a second attempt, which requests wait for
_LONGEST = 60.0  # seconds that any pause lasts; one that seems longer is a clock that was set


class CircuitBreaker:
    """Decides when the server may be called again, and for which grant.

    After one failure every request may try again in a moment. After more the breaker is open:
    requests fail at once, so that they do not pile up, and one at a time tries the server.

    While only one grant fails, only its requests wait: the account may be at fault, not the server.
    Once several fail, all wait, and the grant that failed last waits longest, so that the others
    are tried first.

    Args:
        clock: epoch seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paused_until = 0.0
        self._trial_until = 0.0
        self._failures = 0
        self._failed_last = ""
        self._is_general = False
        self._kind: type[UnavailableError] = UnavailableError  # of the last failure

    def is_open(self, grant: str) -> bool:
        """True if the server may not be called for a grant just now."""
        return self.retry_in(grant) > 0

    def retry_in(self, grant: str) -> float:
        """Return the seconds until the server may be called again for a grant; 0 for now."""
        if not self._concerns(grant):
            return 0.0
        is_last = self._is_general and self._failures > 1 and grant == self._failed_last
        turn = PAUSE if is_last else 0.0
        return self._seconds_to(self._paused_until + turn)

    async def wait(self, grant: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Wait until the server may be called again, if that is soon.

        Raises:
            UnavailableError: it is not soon; of the kind that `failed` was told last.
        """
        left = self.retry_in(grant)
        if left > _FIRST_PAUSE:
            raise self._kind("the server gives no new tokens just now", retry_after=left)
        if left:
            await sleep(left)

    def enter(self, grant: str, timeout: float) -> None:
        """Note the start of a call, which takes at most `timeout` seconds.

        Raises:
            UnavailableError: the server is down, and another request is trying it; of the kind that
                `failed` was told last.
        """
        if self._failures < 2 or not self._concerns(grant):
            return
        if self._seconds_to(self._trial_until):
            raise self._kind("the server gives no new tokens just now")
        self._trial_until = self._clock() + timeout

    def succeeded(self) -> None:
        """Note that the server answered, be it with a refusal."""
        self._paused_until = self._trial_until = 0.0
        self._failures, self._failed_last, self._is_general = 0, "", False

    def failed(
        self,
        grant: str,
        retry_after: float,
        kind: type[UnavailableError] = UnavailableError,
    ) -> None:
        """Note a failure, and the seconds after which the server wants to be called again."""
        self._kind = kind
        is_asked_for = retry_after > PAUSE
        if is_asked_for or self._failed_last not in ("", grant):
            self._is_general = True
        self._failed_last = grant
        self._failures += 1
        pause = retry_after if is_asked_for or self._failures > 1 else _FIRST_PAUSE
        self._paused_until = self._clock() + min(pause, _LONGEST)
        self._trial_until = 0.0

    def _concerns(self, grant: str) -> bool:
        return self._is_general or grant == self._failed_last

    def _seconds_to(self, time: float) -> float:
        left = time - self._clock()
        return left if 0 < left <= _LONGEST + PAUSE else 0.0
