"""CameraManager with a recording that never ends, and how many are on their way at ``/running``."""

from __future__ import annotations

import anyio
from starlette.types import Receive, Scope, Send

from cm_auth_middleware.testing import Simulator

_simulator = Simulator()
_running: list[object] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope.get("path")
    if path == "/rest/v2.4/live":
        await _record(receive, send)
    elif path == "/running":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(len(_running)).encode()})
    else:
        await _simulator(scope, receive, send)


async def _record(receive: Receive, send: Send) -> None:
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        _running.append(group)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"frame", "more_body": True})
                await anyio.sleep(0.5)
        finally:
            _running.remove(group)
