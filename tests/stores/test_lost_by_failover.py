"""A failover that loses a storm of refreshes, with two engines in one process."""

from __future__ import annotations

import anyio
import pytest

from cm_auth_middleware.testing import Settings, SimulatedUser
from tests.helpers.browser import Browser
from tests.helpers.servers import Forwarder, pair
from tests.helpers.world import JSON, MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize("end", ["killed", "made a replica"])
async def test_a_storm_of_refreshes_that_the_replica_never_got_costs_no_session(
    make_world: MakeWorld, end: str
) -> None:
    """The link to the replica breaks before many tokens expire, and then the primary ends."""
    strict = Settings(rotate_refresh_tokens=True, revoke_family_on_reuse=True)
    with pair() as (old, new), Forwarder(old.port) as name:
        # Two processes: each has a client of its own.
        worlds = [make_world(store=name.url, settings=strict)]
        worlds.append(make_world(beside=worlds[0], store=name.url))
        worlds[0].sim.users += [
            SimulatedUser(f"user{n}@example.com", "x", "U", "N", n, n) for n in range(40)
        ]
        browsers = [await worlds[n % 2].login(f"user{n}@example.com") for n in range(40)]

        def same(browser: Browser, world: World) -> Browser:
            return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")

        async def ask_all(shift: int) -> list[int]:
            statuses: list[int] = []

            async def ask(browser: Browser) -> None:
                statuses.append((await browser.get("/cameras", headers=JSON)).status_code)

            async with anyio.create_task_group() as group:
                for n, browser in enumerate(browsers):
                    group.start_soon(ask, same(browser, worlds[(n + shift) % 2]))
            return statuses

        new.command("REPLICAOF", "NO", "ONE")  # it gets nothing any more
        worlds[0].clock.tick(43_300)
        assert await ask_all(0) == [200] * 40
        name.port = new.port
        if end == "killed":
            old.stop()
        else:
            old.command("REPLICAOF", "127.0.0.1", str(new.port))
        for shift in (1, 0):  # first at the process that does not know the new tokens
            assert await ask_all(shift) == [200] * 40
        assert len(worlds[0].sim.token_calls("refresh_token")) == 40
