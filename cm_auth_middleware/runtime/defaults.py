"""The time and the network that engines use by default: the real ones, unless a test changes them.

There is one `DEFAULTS` in a process. Engines ask it at each use, so that a test also reaches an
engine that an application made at its import.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Defaults:
    """The clock and the transport of each engine that was not given its own.

    Attributes:
        time_offset: seconds that the clock is ahead of the real one.
        transport_factory: returns the transport (httpx2's, for event loops and threads alike) that
            replaces connections to a ``base_url``, or None for real connections.
    """

    def __init__(self) -> None:
        self.time_offset = 0.0
        self.transport_factory: Callable[[str], Any] | None = None

    def clock(self) -> float:
        """Return epoch seconds."""
        return time.time() + self.time_offset

    def transport(self, base_url: str) -> Any:
        """Return the transport that replaces connections to `base_url`; None for real ones."""
        return None if self.transport_factory is None else self.transport_factory(base_url)


DEFAULTS = Defaults()
