"""The route ``health``: can the store be used? A load balancer or an orchestrator asks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import CMAuthError
from ..events import log
from ..web.response import Response, json_response

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..stores import SessionStore
    from ..web.request import Request

_PATIENCE = 0.5  # seconds: Kubernetes waits 1 s for a probe, the way to it included
_REUSED = 1.0  # seconds that a result is given again: anybody may ask, and the store has other work


class Health:
    """Tells by a write if the store can be used, and nothing else: CameraManager is not asked."""

    def __init__(self, store: SessionStore, runtime: Runtime) -> None:
        self._store = store
        self._runtime = runtime
        self._is_well = True
        self._asked_at = -math.inf

    async def health(self, _: Request) -> Response:
        """Serve 200 if the store can be used, else 503, within a second, without a reason."""
        if self._runtime.monotonic() - self._asked_at >= _REUSED:
            await self._runtime.single_flight.do("health", self._ask)
        if self._is_well:
            return json_response(200, {"status": "ok"})
        return json_response(503, {"status": "unavailable"})

    async def _ask(self) -> None:
        try:
            await self._runtime.within(_PATIENCE, self._store.ping)
            is_well = True
        except Exception as error:  # of a store that an application wrote, too
            is_well = False
            if self._is_well:  # it will be asked again and again
                reason = error if isinstance(error, CMAuthError) else type(error).__name__
                log("unhealthy", reason=reason)
        self._is_well, self._asked_at = is_well, self._runtime.monotonic()
