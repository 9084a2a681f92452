"""What a login costs its store; over a network each round trip takes a millisecond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cm_auth_middleware import MemoryStore, StoreError, telemetry
from cm_auth_middleware.sessions.encryption import USERS
from cm_auth_middleware.stores import PutsSeveral, method_of
from tests.helpers.browser import Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import MakeWorld, World, both_providers

pytestmark = pytest.mark.anyio

# The lease, so that a code is sent once; a logout, and newer tokens, of the same grant; and the
# session with its user's entry in the list.
LOGIN = {"acquire": 1, "get": 2, "put_all": 1}


class PuttingStore(CountingStore):
    """One that sets several values in one step, as those do that are no memory."""

    async def put_all(self, records: Sequence[tuple[str, bytes, float]]) -> None:
        await self._turn("put_all")
        for record in records:
            await self.memory.put(*record)


class OwnPut(PuttingStore):
    """One of an application, derived from a store that sets several values in one step."""

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        await super().put(key, value, ttl)


class HandingOn:
    """One of an application that hands what it lacks on to another store."""

    def __init__(self, memory: MemoryStore) -> None:
        self._store = PuttingStore(memory)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def blocking(self) -> HandingOn:
        twin = HandingOn(self._store.memory)
        twin._store = self._store.blocking()
        return twin

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        await self._store.put(key, value, ttl)


def world_with(make_world: MakeWorld, store: CountingStore) -> World:
    world = make_world(store=store)
    store.memory._clock = world.clock
    return world


async def begin(browser: Browser) -> str:
    """Begin a login; return the URL of its callback."""
    response = await browser.get("/auth/login")
    assert response.status_code == 302, response.text
    return browser.callback_url(response.headers["location"])


async def log_in(browser: Browser, callback: str) -> None:
    response = await browser.get(callback)
    assert response.status_code == 302, response.text
    assert browser.named("cm_auth")


@both_providers
async def test_a_login_takes_one_lease_and_writes_once(make_world: MakeWorld) -> None:
    store = PuttingStore(MemoryStore())
    world = world_with(make_world, store)
    for _ in range(2):  # the second one is of the same grant, as CameraManager gives it
        browser = world.browser()
        callback = await begin(browser)
        assert not store.tried, "the store was asked for a visitor"
        await log_in(browser, callback)
        assert store.tried == LOGIN
        store.tried.clear()


@both_providers
async def test_a_store_without_put_all_is_written_twice(make_world: MakeWorld) -> None:
    store = CountingStore(MemoryStore())
    assert not isinstance(store, PutsSeveral)
    assert method_of(store, "put_all") is None
    browser = world_with(make_world, store).browser()
    await log_in(browser, await begin(browser))
    assert store.tried == {"acquire": 1, "get": 2, "put": 2}


@both_providers
@pytest.mark.parametrize("kind", [OwnPut, HandingOn])
@pytest.mark.parametrize("is_timed", [True, False])
async def test_a_put_of_an_application_is_not_passed_by(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, kind: Any, is_timed: bool
) -> None:
    if not is_timed:  # as where no OpenTelemetry is installed
        monkeypatch.setattr(telemetry, "find", lambda: None)
    store = kind(MemoryStore())
    assert isinstance(store, PutsSeveral)
    browser = world_with(make_world, store).browser()
    await log_in(browser, await begin(browser))
    assert store.tried == {"acquire": 1, "get": 2, "put": 2}


@both_providers
@pytest.mark.parametrize("kind", [PuttingStore, CountingStore])
async def test_a_login_whose_writes_break_off_leaves_no_session_that_no_list_has(
    make_world: MakeWorld, kind: type[CountingStore]
) -> None:
    class Memory(MemoryStore):
        async def put(self, key: str, value: bytes, ttl: float) -> None:
            if await self.count():
                raise StoreError("broken between two records")
            await super().put(key, value, ttl)

    memory = Memory()
    browser = world_with(make_world, kind(memory)).browser()
    response = await browser.get(await begin(browser))
    assert response.status_code == 503
    assert not browser.named("cm_auth")
    assert await memory.count() == await memory.count(USERS) == 1


@both_providers
async def test_a_login_whose_write_fails_is_503_and_leaves_nothing(make_world: MakeWorld) -> None:
    store = PuttingStore(MemoryStore())
    world = world_with(make_world, store)
    store.broken.add("put_all")
    browser = world.browser()
    response = await browser.get(await begin(browser))
    assert response.status_code == 503
    assert not browser.named("cm_auth")
    assert await store.memory.count() == 0
    store.broken.clear()
    await log_in(browser, await begin(browser))
