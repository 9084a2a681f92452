"""An OAuth server with a million grants: `python -m tests.chaos.many_grants PORT CLOCK`.

The simulator keeps an object for each token and each request. Here a token is a text that says
which grant it is of, and how many refreshes old; what is kept of a grant is that number. Refresh
tokens rotate, and the use of an old one ends the grant.
"""

from __future__ import annotations

import sys
from array import array
from typing import Any
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .site import SharedClock

MOST = 2_000_000
_ENDED = -1


def user(number: int) -> dict[str, Any]:
    """The user of a grant: two grants each, as of a person with two browsers."""
    return {"userId": 1_000_000 + number // 2, "email": f"user{number // 2}@example.com"}


def access_token(number: int, age: int, expires_at: float) -> str:
    return f"a:{number}:{age}:{expires_at:.0f}"


def refresh_token(number: int, age: int) -> str:
    return f"r:{number}:{age}"


class Grants:
    """The OAuth server and the API."""

    def __init__(self, clock: SharedClock) -> None:
        self._clock = clock
        self._ages = array("q", bytes(8 * MOST))
        self._counts = {"refreshes": 0, "reused": 0, "revoked": 0}
        self.settings = {"access_token_lifetime": 600.0}
        self.app = Starlette(
            routes=[
                Route("/oauth/token", self.token, methods=["POST"]),
                Route("/rest/v2.3/users/self", self.self_),
                Route("/rest/v2.4/cameras", self.cameras),
                Route("/rest/v2.0/users/self/tokens/current", self.revoke, methods=["DELETE"]),
                Route("/_control", self.control, methods=["GET", "POST"]),
            ]
        )

    async def token(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode())
        _, number, age = form["refresh_token"][0].split(":")
        grant = int(number)
        if self._ages[grant] != int(age):
            self._counts["reused"] += 1
            self._ages[grant] = _ENDED
            return JSONResponse({"error": "invalid_grant"}, 400)
        self._counts["refreshes"] += 1
        self._ages[grant] += 1
        lifetime = self.settings["access_token_lifetime"]
        return JSONResponse(
            {
                "access_token": access_token(grant, int(age) + 1, self._clock() + lifetime),
                "refresh_token": refresh_token(grant, int(age) + 1),
                "token_type": "bearer",
                "expires_in": int(lifetime),
                "scope": "write",
            }
        )

    async def self_(self, request: Request) -> Response:
        grant = self._grant(request)
        return _refused() if grant is None else JSONResponse(user(grant))

    async def cameras(self, request: Request) -> Response:
        grant = self._grant(request)
        return _refused() if grant is None else JSONResponse([{"name": "Front gate"}])

    async def revoke(self, request: Request) -> Response:
        grant = self._grant(request)
        if grant is None:
            return _refused()
        self._counts["revoked"] += 1
        self._ages[grant] = _ENDED
        return Response(status_code=204)

    async def control(self, request: Request) -> Response:
        if request.method == "POST":
            self.settings.update(await request.json())
        return JSONResponse(self._counts)

    def _grant(self, request: Request) -> int | None:
        """Return the grant that a request's access token is of, if it is the newest one."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        _, number, age, expires_at = token.split(":")
        is_valid = self._ages[int(number)] == int(age) and self._clock() < float(expires_at)
        return int(number) if is_valid else None


def _refused() -> Response:
    return JSONResponse({"error": "invalid_token"}, 401)


def main(port: str, clock: str) -> None:
    app = Grants(SharedClock(clock)).app
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
