"""Who goes first when many calls wait for the connections of a store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from cm_auth_middleware.stores.postgres import PostgresStore
from cm_auth_middleware.stores.redis import RedisStore
from cm_auth_middleware.stores.turns import Turns
from tests.helpers.postgres import postgres_server
from tests.helpers.servers import redis_server

pytestmark = pytest.mark.anyio

READS = 200


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["redis", "postgres"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with redis_server() if request.param == "redis" else postgres_server() as server:
        yield f"{server.url}?max_connections=2"


@pytest.mark.slow
async def test_many_requests_do_not_keep_a_refresh_waiting(url: str) -> None:
    """Its commands go before the reads of sessions that wait for a connection."""
    store = PostgresStore(url) if url.startswith("postgres") else RedisStore(url)
    await store.put("session", b"1", 60)
    done = 0

    async def read() -> None:
        nonlocal done
        assert await store.get("session") == b"1"
        done += 1

    reads = [asyncio.create_task(read()) for _ in range(READS)]
    await asyncio.sleep(0)
    assert await store.acquire("lease", "a", 60)
    await store.get("grant.name")
    assert done < READS / 2
    await asyncio.gather(*reads)
    await store.close()


async def waiting(turns: Turns, name: str, came: list[str], *, goes_first: bool) -> None:
    await turns.wait(5, goes_first=goes_first)
    came.append(name)


async def test_who_goes_first_does_and_the_others_keep_their_order() -> None:
    turns, came = Turns(1), []
    assert turns.take()
    assert not turns.take()
    order = [("a", False), ("b", False), ("c", True), ("d", True)]
    tasks = [
        asyncio.create_task(waiting(turns, name, came, goes_first=first)) for name, first in order
    ]
    await asyncio.sleep(0)
    for _ in range(4):
        turns.give_back()
        await asyncio.sleep(0.01)
    assert came == ["c", "d", "a", "b"]
    await asyncio.gather(*tasks)
    turns.give_back()
    assert turns.take()
    assert not turns.take()


@pytest.mark.parametrize("is_given", [False, True])
async def test_a_turn_of_who_was_cancelled_is_not_lost(is_given: bool) -> None:
    """Also if it came at the moment when its request was cancelled."""
    turns, came = Turns(1), []
    turns.take()
    left = asyncio.create_task(waiting(turns, "left", came, goes_first=True))
    stays = asyncio.create_task(waiting(turns, "stays", came, goes_first=False))
    await asyncio.sleep(0)
    if is_given:
        turns.give_back()
    left.cancel()
    if not is_given:
        await asyncio.sleep(0)
        turns.give_back()
    await stays
    assert came == ["stays"]
    turns.give_back()
    assert turns.take()


async def test_who_waits_for_too_long_is_told_and_takes_no_turn() -> None:
    turns = Turns(1)
    turns.take()
    with pytest.raises(TimeoutError):
        await turns.wait(0.01, goes_first=True)
    turns.give_back()
    assert turns.take()
