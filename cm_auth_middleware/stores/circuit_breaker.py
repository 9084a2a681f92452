"""Leave a silent server alone: after two time-outs, one call a second tries it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StoreError

SILENT = "did not answer in time; it is tried once a second"
TRY_EVERY = 1.0  # seconds between two calls that try a silent server
SLOW = 1.0  # seconds after which a connection that fails was cut off rather than refused
_TIMEOUTS = 2  # in a row


class CircuitBreaker:
    """Decides if a server may be called, by how the last calls of this process ended.

    A server that refuses connections answers at once, and needs no breaker. One whose packets are
    dropped, or whose process stands still, would keep each request waiting for seconds.

    A call that tries the server may take longer than the time to the next one: the packets of
    the first may be lost where those of the second arrive. There is no lock, which a fork could
    leave locked: at worst, two threads try the server at the same time.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._timeouts = 0
        self._try_at = 0.0

    @property
    def is_open(self) -> bool:
        """True if the server is silent."""
        return self._timeouts >= _TIMEOUTS

    @property
    def is_suspect(self) -> bool:
        """True if the last call had no answer."""
        return self._timeouts > 0

    def admit(self, every: float = TRY_EVERY) -> bool:
        """Return False for a call that has to fail at once, and True once a second if it is open.

        Who calls it and is told True, has to make the call.

        Args:
            every: seconds, where a second is too often.
        """
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._try_at:
            return False
        self._try_at = now + every
        return True

    def enter(self, server: object, timeout: float = 0.0) -> bool:
        """Return True if a call is to try a server that is silent.

        Args:
            server: begins the sentence of the error.
            timeout: seconds for which the call may keep a thread, of which a WSGI server has few:
                about two threads try the server at a time, and the others serve other requests.

        Raises:
            StoreError: the server is silent, and this call is not to try it.
        """
        if not self.is_open:
            return False
        if not self.admit(max(TRY_EVERY, timeout / 2)):
            raise StoreError(f"{server} {SILENT}")
        return True

    def answered(self) -> None:
        """Note that the server answered, be it with an error."""
        self._timeouts = 0

    def timed_out(self, *, try_at_once: bool = False) -> None:
        """Note that a call had no answer in time.

        Args:
            try_at_once: do not wait for a second before the first call that tries the server.
        """
        self._timeouts += 1
        if self._timeouts == _TIMEOUTS:
            self._try_at = self._clock() + (0.0 if try_at_once else TRY_EVERY)
