"""Round trips to the store that one refresh costs; over a network each takes a millisecond."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from typing import Any

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.stores import redis_clients, redis_cluster
from cm_auth_middleware.testing import Settings
from cm_auth_middleware.tokens import failovers
from tests.helpers.fleets import cluster
from tests.helpers.servers import redis_server
from tests.helpers.stores import CountingStore
from tests.helpers.world import both_providers

pytestmark = pytest.mark.anyio

MOST = 9  # one more for each look of a process at what it saved lately
MINUTE = 61  # seconds after which a request notes that the session is used


@both_providers
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


@pytest.mark.slow
@pytest.mark.parametrize("rotates", [False, True], ids=["lasting", "rotating"])
@pytest.mark.parametrize("make_server", [redis_server, cluster], ids=["one", "cluster"])
async def test_a_refresh_costs_ten_round_trips_to_redis(
    make_world, monkeypatch, rotates: bool, make_server: Any
) -> None:
    """With the default prefix, under which an older release may have stored the records.

    What is sent to several nodes of a cluster at the same time is one round trip.
    """
    trips: list[str] = []
    under_way, lock = 0, threading.Lock()

    def count(kind: type, method: str) -> None:
        original = getattr(kind, method)

        async def run(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal under_way
            # Those of the failovers are made all the time, and one of them by a refresh.
            if any(frame.filename == failovers.__file__ for frame in traceback.extract_stack()):
                return await original(self, *arguments, **options)
            with lock:
                # A script is sent whole to a node that does not know it, once.
                if not under_way and arguments[0] != "EVAL":
                    trips.append(repr(arguments)[:120])
                under_way += 1
            try:
                if isinstance(self, redis_cluster.BlockingCluster):
                    time.sleep(0.05)  # noqa: ASYNC251 - or one thread ends before another begins
                return await original(self, *arguments, **options)
            finally:
                with lock:
                    under_way -= 1

        monkeypatch.setattr(kind, method, run)

    if make_server is cluster:
        count(redis_cluster._Cluster, "_execute")
    else:
        count(redis_clients.AsyncClients, "run")
        count(redis_clients.BlockingClients, "run")
    with make_server() as server:
        settings = Settings(rotate_refresh_tokens=rotates)
        world = make_world(store=server.url, settings=settings, revalidate=10**8)
        browser = await world.login()
        # Until the process knows the server; before that a refresh waits, which costs more.
        await anyio.sleep(1.5)

        async def cost(seconds: float) -> int:
            world.clock.tick(seconds)
            trips.clear()
            assert (await browser.get("/cameras")).status_code == 200
            return len(trips)

        await cost(MINUTE)
        request = await cost(MINUTE)
        for refreshes in range(1, 4):
            refresh = await cost(43_300) - request + 1
            assert len(world.sim.token_calls("refresh_token")) == refreshes
            assert 0 < refresh <= MOST + 1, "\n".join(trips)
        await world.close()
