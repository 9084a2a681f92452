"""What a session costs its store over its life: how often it is written, and that it goes away."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.stores import SQLiteStore
from tests.helpers.browser import Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import Clock, MakeWorld, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> CountingStore:
    return CountingStore(MemoryStore())


@pytest.fixture
def world(make_world: MakeWorld, store: CountingStore) -> World:
    world = make_world(store=store)
    store.memory._clock = world.clock
    return world


async def volley(browser: Browser, count: int, path: str = "/") -> list[int]:
    statuses = []

    async def ask() -> None:
        statuses.append((await browser.get(path)).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(ask)
    return statuses


@pytest.mark.slow
async def test_a_session_that_is_used_is_written_once_a_minute(
    world: World, store: CountingStore
) -> None:
    browser = await world.login()
    written = store.writes
    for _ in range(50):
        world.clock.tick(1)
        assert (await browser.get("/")).status_code == 200
    assert store.writes == written
    for _ in range(10 * 60):
        world.clock.tick(1)
        await browser.get("/")
    assert store.writes == written + 10


async def test_many_requests_at_the_minute_write_it_once(
    world: World, store: CountingStore
) -> None:
    browser = await world.login()
    world.clock.tick(61)
    world.clock.step = 0.001
    written, tried = store.writes, store.tried["replace"]
    assert await volley(browser, 100) == [200] * 100
    assert store.writes == written + 1
    assert store.tried["replace"] - tried <= 100  # each at most once: no storm of repetitions


async def test_many_requests_seal_it_once_with_a_new_secret_key(
    make_world: MakeWorld, store: CountingStore
) -> None:
    old = make_world(store=store)
    browser = await old.login()
    keys = [*old.engine.config.secret_key, "new-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe"]
    rotated = make_world(secret_key=keys, store=store)
    again = rotated.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")
    written = store.writes
    assert await volley(again, 50) == [200] * 50
    assert store.writes == written + 1


async def test_reads_of_session_data_write_nothing(world: World, store: CountingStore) -> None:
    browser = await world.login()
    await browser.post("/data", json={"a": [1, {"b": None}]})
    written = store.writes
    assert (await browser.get("/data")).json() == {"a": [1, {"b": None}]}
    await browser.post("/data", json={"a": [1, {"b": None}]})  # the same again
    assert store.writes == written
    await browser.post("/data", json={"a": [1, {"b": 0}]})
    assert store.writes == written + 1


async def test_what_the_next_request_reads_was_written_before_the_response_started(
    world: World,
) -> None:
    browser = await world.login()
    for n in range(20):
        async with browser.stream("POST", "/data", json={"n": n}) as response:
            assert response.status_code == 200
            assert (await browser.get("/data")).json()["n"] == n


async def test_the_session_id_is_new_at_every_login(world: World) -> None:
    browser = world.browser()
    cookies = []
    for _ in range(3):
        start = await browser.get("/auth/login")
        await browser.finish(start.headers["location"])
        cookies.append(browser.named("cm_auth")[0])
    assert len(set(cookies)) == 3
    for old in cookies[:-1]:  # and the one before it is nobody
        assert (await world.browser(Cookie=f"cm_auth={old}").get("/")).status_code == 302
    assert (await browser.get("/")).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sessions_that_are_over_leave_the_store_without_a_cron_job(
    make_world: MakeWorld, tmp_path: Path, kind: str
) -> None:
    clock = Clock()
    memory, file = (
        MemoryStore(1000, clock=clock),
        SQLiteStore(tmp_path / "sessions.db", clock=clock),
    )
    store = memory if kind == "memory" else file
    world = make_world(store=store, idle_timeout=600)
    world.clock.now = clock.now
    for _ in range(40):
        await world.login()
    assert await records(store) == 40
    clock.tick(601)
    world.clock.now = clock.now
    await world.login()
    for _ in range(3):
        clock.tick(61)
        world.clock.now = clock.now
        await world.login()  # writes sweep
    assert await records(store) == 4


async def records(store: MemoryStore | SQLiteStore) -> int:
    """How many records of sessions it holds, the expired included."""
    if isinstance(store, MemoryStore):
        keys = [key for values, _ in store._shards for key in values]
    else:
        keys = [key for (key,) in store._file.run("SELECT key FROM records")[0]]
    return len([key for key in keys if not key.startswith("listed.")])


def test_the_purge_of_the_file_is_the_same_for_threads(tmp_path: Path) -> None:
    clock = Clock()
    store = SQLiteStore(tmp_path / "sessions.db", clock=clock).blocking()
    for n in range(30):
        run_sync(store.put(f"key{n}", b"value", 10))
    clock.tick(60)
    run_sync(store.put("new", b"value", 10))
    assert store._file.run("SELECT count(*) FROM records")[0] == [(1,)]
