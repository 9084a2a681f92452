"""The time and the network that engines find: the real ones, unless a test moves them.

One place for the whole process, and asked at each use, so that a test also reaches an engine
that an application made at its import.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Defaults:
    """What lies around every engine that was given no clock or transport of its own.

    Attributes:
        time_offset: seconds that the clock is ahead of the real one.
        transport_factory: gives the transport (httpx2's, for event loops and threads alike) that
            stands in for connections to a ``base_url``, or None for real connections.
    """

    def __init__(self) -> None:
        self.time_offset = 0.0
        self.transport_factory: Callable[[str], Any] | None = None

    def clock(self) -> float:
        """Epoch seconds."""
        return time.time() + self.time_offset

    def transport(self, base_url: str) -> Any:
        """The transport that stands in for connections to `base_url`; None for real ones."""
        return None if self.transport_factory is None else self.transport_factory(base_url)


DEFAULTS = Defaults()
