"""A Redis store tells when another server took over, or the server started again."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from cm_auth_middleware.stores import RedisStore
from tests.helpers.fleets import Cluster, cluster
from tests.helpers.servers import Forwarder, exchange, pair, redis_server, until
from tests.helpers.stores import checks_of

pytestmark = pytest.mark.slow

Check = Callable[[RedisStore], Coroutine[Any, Any, None]]
Side = Callable[..., None]


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> Side:
    """Runs a check with a store, on each side."""
    return checks_of(request.param, RedisStore)


def test_an_epoch_ends_when_a_replica_takes_over(side: Side) -> None:
    with pair() as (old, new), Forwarder(old.port) as name:

        async def check(store: RedisStore) -> None:
            await store.put("key", b"v", 60)
            first = await store.epochs()
            assert len(first) == 1
            assert await store.epochs("key") == first
            exchange(old, new)
            name.port = new.port
            old.stop()
            second = await store.epochs("key")
            assert len(second) == 1
            assert second.isdisjoint(first)
            assert await store.epochs() == second

        side(check, name.url)


def test_an_epoch_ends_when_the_server_starts_again(side: Side) -> None:
    with redis_server("--appendonly", "yes") as server:

        async def check(store: RedisStore) -> None:
            first = await store.epochs()
            server.stop()
            server.start()
            assert first.isdisjoint(await store.epochs())

        side(check, server.url)


@pytest.fixture
def fleet() -> Iterator[Cluster]:
    with cluster() as fleet:
        yield fleet


def test_each_primary_of_a_cluster_has_an_epoch(side: Side, fleet: Cluster) -> None:
    keys = [f"key{n}" for n in range(100)]

    async def by_key(store: RedisStore) -> set[frozenset[str]]:
        return {await store.epochs(key) for key in keys}

    async def check(store: RedisStore) -> None:
        before = await store.epochs()
        assert len(before) == 3
        assert await by_key(store) == {frozenset([epoch]) for epoch in before}
        primary = fleet.primary()
        until(lambda: bool(fleet.replicas(primary)))
        fleet.promote(fleet.replicas(primary)[0])
        await store.put("key", b"v", 60)
        after = await by_key(store)
        assert frozenset[str]().union(*after) == await store.epochs()
        assert len(after) == 3
        assert len(before & await store.epochs()) == 2

    side(check, fleet.url)


@pytest.mark.parametrize(
    "options",
    [
        ("--rename-command", "INFO", ""),
        ("--user", "default", "on", "nopass", "~*", "+@all", "-info"),
    ],
    ids=["unknown", "forbidden"],
)
def test_a_server_that_does_not_tell_has_no_epochs(side: Side, options: tuple[str, ...]) -> None:
    with redis_server(*options) as server:

        async def check(store: RedisStore) -> None:
            await store.put("key", b"v", 60)
            assert await store.epochs() == await store.epochs("key") == frozenset()

        side(check, server.url)
