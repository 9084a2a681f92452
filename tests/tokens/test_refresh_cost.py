"""Round trips to the store that one refresh costs; over a network each takes a millisecond."""

from __future__ import annotations

from collections import Counter

import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.testing import Settings
from tests.helpers.stores import CountingStore

pytestmark = pytest.mark.anyio

MOST = 9  # one more for each look of a process at what it saved lately
MINUTE = 61  # seconds after which a request notes that the session is used


@pytest.mark.parametrize("rotates", [False, True], ids=["lasting", "rotating"])
async def test_a_refresh_costs_nine_round_trips_to_the_store(make_world, rotates: bool) -> None:
    settings = Settings(rotate_refresh_tokens=rotates)
    store = CountingStore(MemoryStore())
    world = make_world(store=store, settings=settings, revalidate=10**8)
    store.memory._clock = world.clock
    browser = await world.login()

    async def cost(seconds: float) -> Counter[str]:
        world.clock.tick(seconds)
        store.tried.clear()
        assert (await browser.get("/cameras")).status_code == 200
        return Counter(store.tried)

    await cost(MINUTE)
    request = await cost(MINUTE)  # without a refresh
    assert request.total() > 0
    for refreshes in range(1, 4):  # the first finds no record of the grant
        refresh = await cost(43_300) - request
        assert len(world.sim.token_calls("refresh_token")) == refreshes
        assert 0 < refresh.total() <= MOST, refresh
