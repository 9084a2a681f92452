"""Listing a user's sessions and ending them all, on each store and from either side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from cm_auth_middleware import MemoryStore, SessionInfo, UnavailableError
from tests.helpers.servers import RedisServer, redis_server
from tests.helpers.stores import CountingStore, DictStore
from tests.helpers.world import JSON, MakeWorld, World, both_providers

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis")
        server.command("FLUSHALL")
        return server.url
    return {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path / 'sessions.db'}"}[request.param]


async def call(world: World, function: Any, *arguments: Any) -> Any:
    """Await it on the ASGI side; call it plainly, from a thread without a loop, on the other."""
    if world.side == "asgi":
        return await function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments)


@both_providers
@pytest.mark.slow
async def test_all_sessions_of_a_user_end_and_nobody_else_s(
    make_world: MakeWorld, store: str
) -> None:
    world = make_world(store=store)
    annas = [await world.login() for _ in range(3)]
    bob = await world.login("bob@example.com")
    assert await call(world, world.engine.logout_user, world.user_id()) == 3
    for browser in annas:
        assert (await browser.get("/")).status_code == 302
        assert (await browser.get("/", headers=JSON)).status_code == 401
    assert (await bob.get("/cameras")).status_code == 200
    assert await call(world, world.engine.logout_user, world.user_id()) == 0
    again = await world.login()
    assert (await again.get("/cameras")).status_code == 200
    assert await call(world, world.engine.logout_user, str(world.user_id())) == 1
    assert await call(world, world.engine.logout_user, world.user_id("bob@example.com")) == 1
    assert (await bob.get("/")).status_code == 302
    assert await call(world, world.engine.logout_user, "nobody's") == 0


@both_providers
async def test_sessions_say_when_and_from_where_and_hold_no_tokens(
    make_world: MakeWorld, store: str
) -> None:
    world = make_world(store=store)
    began = world.clock.now
    first = await world.login()
    world.clock.tick(100)
    await world.login()
    await world.login("bob@example.com")
    world.clock.tick(500)
    await first.get("/")  # used last
    listed: list[SessionInfo] = await call(world, world.engine.sessions, world.user_id())
    assert [info.logged_in_at - began for info in listed] == [0, 100]
    assert [info.last_seen_at - began for info in listed] == [600, 100]
    assert {info.address for info in listed} == {"127.0.0.1"}
    assert len({info.reference for info in listed}) == 2
    assert all(len(info.reference) == 8 for info in listed)
    tokens = [*world.sim._tokens.access, *world.sim._tokens.refresh]
    assert not any(token in repr(listed) for token in tokens)
    assert await call(world, world.engine.sessions, 1) == []
    await first.post("/auth/logout")
    left = await call(world, world.engine.sessions, str(world.user_id()))
    assert [info.logged_in_at - began for info in left] == [100]


@both_providers
@pytest.mark.slow
async def test_sessions_sealed_with_an_older_secret_key_are_found(
    make_world: MakeWorld, store: str
) -> None:
    old = make_world(store=store)
    if store == "memory://":
        store = old.engine.store
    await old.login()
    keys = [*old.engine.config.secret_key, "newer-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0"]
    world = make_world(store=store, secret_key=keys)
    await world.login()
    assert len(await call(world, world.engine.sessions, world.user_id())) == 2
    assert await call(world, world.engine.logout_user, world.user_id()) == 2


@both_providers
@pytest.mark.parametrize("method", ["find", "delete"])
async def test_a_store_that_fails_says_so(make_world: MakeWorld, method: str) -> None:
    store = CountingStore(MemoryStore())
    world = make_world(store=store)
    browser = await world.login()
    store.broken.add(method)
    with pytest.raises(UnavailableError):
        await call(world, world.engine.logout_user, world.user_id())
    store.broken.clear()
    assert (await browser.get("/")).status_code == 200
    assert await call(world, world.engine.logout_user, world.user_id()) == 1


@both_providers
async def test_a_store_that_cannot_list_says_so(make_world: MakeWorld) -> None:
    world = make_world(store=DictStore())
    browser = await world.login()
    for function in (world.engine.sessions, world.engine.logout_user):
        with pytest.raises(UnavailableError, match=r"cannot list sessions: it has no find\(\)"):
            await call(world, function, world.user_id())
    with pytest.raises(UnavailableError, match="cannot list sessions"):
        await call(world, world.engine.users)
    assert (await browser.get("/")).status_code == 200
