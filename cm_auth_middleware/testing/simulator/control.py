"""Control the simulator over HTTP: `/_control` returns its state, and accepts commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cm_auth_middleware.testing.simulator.api import number
from cm_auth_middleware.testing.simulator.settings import RecordedRequest, Settings


class Control:
    """The endpoint `/_control`.

    Args:
        settings: the simulator's settings; the name of each is a command that changes it.
        actions: the other commands by name; each is called with the value that was sent.
        state: returns the part of the answer beside settings and requests.
        requests: returns the requests so far.
    """

    def __init__(
        self,
        settings: Settings,
        actions: Mapping[str, Callable[[Any], None]],
        state: Callable[[], dict[str, Any]],
        requests: Callable[[], list[RecordedRequest]],
    ) -> None:
        self._settings = settings
        self._actions = actions
        self._state = state
        self._requests = requests

    async def endpoint(self, request: Request) -> Response:
        """Execute the commands of a POST, a JSON object; answer with the state after them."""
        if request.method == "POST":
            # A page of another site cannot send this media type without a CORS preflight.
            if not request.headers.get("content-type", "").startswith("application/json"):
                return JSONResponse({"error": "send application/json"}, 415)
            try:
                self._command(await request.json())
            except (TypeError, ValueError, LookupError) as error:
                return JSONResponse({"error": str(error)}, 400)
        since = number(request, "since", 0)
        requests = self._requests()
        counts: dict[str, int] = {}
        for call in requests:
            counts[call.path] = counts.get(call.path, 0) + 1
        return JSONResponse(
            {
                "settings": asdict(self._settings),
                **self._state(),
                "counts": counts,
                "next": len(requests),
                "requests": [asdict(call) for call in requests[since:]],
            }
        )

    def _command(self, command: Any) -> None:
        if not isinstance(command, dict):
            raise TypeError("send a JSON object")
        knobs = {knob.name for knob in fields(Settings)} - {"provider"}
        unknown = set(command) - knobs - set(self._actions)
        if unknown:
            known = [*sorted(self._actions), *sorted(knobs)]
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        # A reset comes before the other commands, which it would undo.
        for name in sorted(command, key=lambda name: name != "reset"):
            if name in knobs:
                setattr(self._settings, name, command[name])
            elif command[name] is not False:
                self._actions[name](command[name])
