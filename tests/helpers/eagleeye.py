"""Eagle Eye's API v3 by the names of the live servers, which no test calls."""

from __future__ import annotations

import json
from typing import Any

from tests.helpers.browser import Browser
from tests.helpers.world import World

AUTH = "https://auth.eagleeyenetworks.com"
# Where the simulator has the accounts of its two users, and where they move.
BOBS, ANNAS = (f"https://api.c00{number}.eagleeyenetworks.com" for number in (1, 2))
HALF_A_DAY = 43_300
NAME, PORT = "api.c001.eagleeyenetworks.com", 443


def bearers(world: World) -> set[str]:
    """The origins that a bearer token was sent to, whether anything listens there or not."""
    return {
        f"{request.url.scheme}://{request.url.netloc.decode()}"
        for request in world.net.seen
        if "bearer" in request.headers.get("authorization", "").lower()
    }


def poison(world: World, value: Any) -> None:
    world.sim.settings.https_base_url = json.dumps(value)


async def exported(world: World, browser: Browser) -> Any:
    """A client that a job keeps, outside of any request."""
    return await world.client_for((await browser.get("/export")).text)
