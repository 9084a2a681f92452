"""The list of users: by it an operator finds the sessions of all, and of an e-mail address."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.sessions.encryption import USERS, Sealer
from cm_auth_middleware.sessions.manager import user_order
from cm_auth_middleware.sessions.record import Record, Tokens, dumps
from tests.helpers.servers import redis_server
from tests.helpers.world import SECRET_KEY, MakeWorld, World, both_providers

pytestmark = pytest.mark.anyio

ANNA, BOB = "10003", "10007"
OTHER_KEY = "newer-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0"


async def call(world: World, function: Any, *arguments: Any) -> Any:
    """Await it on the ASGI side; call it plainly, from a thread without a loop, on the other."""
    if world.side == "asgi":
        return await function(*arguments)
    return await anyio.to_thread.run_sync(function, *arguments)


async def check_users(world: World) -> None:
    await world.login("bob@example.com")
    for _ in range(2):
        await world.login()
    users, anna = world.engine.users, str(world.user_id())
    assert await call(world, users) == [anna, str(world.user_id("bob@example.com"))]
    assert await call(world, users, " ANNA@Example.com") == [anna]
    assert await call(world, users, "nobody@example.com") == []
    assert await call(world, users, "") == []
    listed = await call(world, world.engine.sessions, anna)
    assert [info.user_id for info in listed] == [anna, anna]


@both_providers
async def test_users_are_listed_and_found_by_their_address(make_world: MakeWorld) -> None:
    await check_users(make_world())


async def test_so_they_are_in_a_file(make_world: MakeWorld, tmp_path: Path) -> None:
    await check_users(make_world(store=f"sqlite:///{tmp_path / 'sessions.db'}"))


@pytest.mark.slow
async def test_so_they_are_in_redis(make_world: MakeWorld) -> None:
    with redis_server() as server:
        await check_users(make_world(store=server.url))


async def test_the_list_is_not_readable_without_the_secret_key(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    path = tmp_path / "sessions.db"
    world = make_world(store=f"sqlite:///{path}")
    await world.login()
    with closing(sqlite3.connect(path)) as copy:
        entries = dict(copy.execute("SELECT key, value FROM records WHERE key LIKE 'listed.%'"))
    ((name, entry),) = entries.items()
    for text in (b"anna", b"example.com", b"10003", b"127.0.0.1"):
        assert text not in name.encode() + entry
    assert Sealer((SECRET_KEY,), "userId").open_user(name, entry) == ANNA
    assert Sealer((OTHER_KEY,), "userId").open_user(name, entry) is None
    assert Sealer((SECRET_KEY,), "userId").open_user("listed.another", entry) is None
    assert Sealer((SECRET_KEY,), "userId").open_user(name, entry[:20]) is None
    other = make_world(beside=world, store=world.engine.store, secret_key=OTHER_KEY)
    assert await call(other, other.engine.users) == []
    assert await call(other, other.engine.users, "anna@example.com") == []


async def test_users_are_found_while_a_new_secret_key_is_rolled_out(make_world: MakeWorld) -> None:
    old = make_world()
    await old.login()
    new = make_world(beside=old, secret_key=[SECRET_KEY, OTHER_KEY])
    await new.login("bob@example.com")
    await new.login()
    assert await call(new, new.engine.users) == [ANNA, BOB]
    assert await call(new, new.engine.users, "anna@example.com") == [ANNA]


async def test_a_user_is_found_by_the_new_address_once_it_was_read(make_world: MakeWorld) -> None:
    world = make_world(background=False)
    browser = await world.login()
    user = {"userId": 10003, "email": "anna@elsewhere.example"}
    world.sim.fail_api((200, user))
    world.clock.tick(901)
    assert (await browser.get("/")).status_code == 200
    assert await call(world, world.engine.users, "anna@elsewhere.example") == [ANNA]
    assert await call(world, world.engine.users, "anna@example.com") == []


async def test_users_of_an_older_release_are_listed_once_they_were_read_anew(
    make_world: MakeWorld,
) -> None:
    world = make_world(background=False)
    browser = await world.login()
    store = world.engine.store
    assert isinstance(store, MemoryStore)
    for name, _ in await store.find(USERS):
        await store.delete(name)
    assert await call(world, world.engine.users) == []
    assert len(await call(world, world.engine.sessions, ANNA)) == 1, "they are found by their id"
    world.clock.tick(901)
    await browser.get("/")
    assert await call(world, world.engine.users) == [ANNA]


async def test_an_entry_lives_as_long_as_a_session_may(make_world: MakeWorld) -> None:
    world = make_world(absolute_timeout=3600)
    await world.login()
    world.clock.tick(3599)
    assert await call(world, world.engine.users) == [ANNA]
    world.clock.tick(2)
    assert await call(world, world.engine.users) == []


def test_users_without_an_address_are_listed() -> None:
    tokens = Tokens("a", "r", 2.0, 1.0, "write")
    sealer = Sealer((SECRET_KEY,), "userId")
    for user in ({"userId": 7}, {"userId": 7, "email": None}, {"userId": 7, "email": " "}):
        name, entry = sealer.seal_user(Record(tokens, dumps(user), 0.0, 0.0))
        assert sealer.open_user(name, entry) == "7"
        assert not entry.startswith(tuple(sealer.email_prefixes("anna@example.com")))


def test_numbers_are_sorted_as_numbers() -> None:
    assert sorted(["10003", "999", "10", "9"], key=user_order) == ["9", "10", "999", "10003"]
