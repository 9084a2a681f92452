"""Processes that wait for the refresh of another one leave the store in peace.

Worlds beside the first are other processes of the same site.
"""

from __future__ import annotations

import time
from itertools import islice
from statistics import mean

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.tokens import refresh
from tests.helpers.browser import Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import JSON, MakeWorld, World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIFETIME = 43_199
MOST = 10  # commands a second, each process


class Site:
    """Several processes on one store, each with a count of its commands."""

    def __init__(self, make_world: MakeWorld, processes: int) -> None:
        self.memory = MemoryStore()
        self.stores = [CountingStore(self.memory) for _ in range(processes)]
        first = make_world(store=self.stores[0])
        self.memory._clock = first.clock
        self.worlds: list[World] = [first]
        self.worlds += [make_world(beside=first, store=store) for store in self.stores[1:]]

    async def expire(self, latency: float) -> list[tuple[float, int]]:
        """Let all processes notice an expiry at once; return each one's seconds and commands."""
        browser = await self.worlds[0].login()
        for world in self.worlds:  # a request that notes the use of the session is none of these
            assert (await same(browser, world).get("/cameras")).status_code == 200
        self.worlds[0].clock.tick(LIFETIME)
        self.worlds[0].sim.settings.token_latency = latency
        found: list[tuple[float, int]] = []

        async def ask(world: World, store: CountingStore) -> None:
            store.tried.clear()
            began = time.monotonic()
            answer = await same(browser, world).get("/cameras", headers=JSON)
            assert answer.status_code == 200
            found.append((time.monotonic() - began, store.tried.total()))

        async with anyio.create_task_group() as group:
            for world, store in zip(self.worlds, self.stores, strict=True):
                group.start_soon(ask, world, store)
        assert len(self.worlds[0].sim.token_calls("refresh_token")) == 1
        return found


def same(browser: Browser, world: World) -> Browser:
    return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")


@both_providers
async def test_who_waits_for_a_slow_refresh_asks_the_store_ten_times_a_second_at_most(
    make_world: MakeWorld,
) -> None:
    for seconds, commands in await Site(make_world, 8).expire(latency=4.0):
        assert seconds >= 4
        assert commands <= MOST * seconds


@both_providers
async def test_a_quick_refresh_is_noticed_soon(make_world: MakeWorld) -> None:
    found = await Site(make_world, 3).expire(latency=0.1)
    assert max(seconds for seconds, _ in found) < 2


def test_the_pauses_grow_and_processes_do_not_ask_in_step() -> None:
    rows = [list(islice(refresh._pauses(), 40)) for _ in range(50)]
    assert all(0.01 <= row[0] <= 0.04 for row in rows)
    assert 0.2 <= mean(mean(row[10:]) for row in rows) <= 0.3
    assert len({sum(row) for row in rows}) == len(rows)
