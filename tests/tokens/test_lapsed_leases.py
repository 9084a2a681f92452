"""A process with new tokens is cut off from the store for longer than its lease lasts.

The server rotates refresh tokens, and ends a grant whose old refresh token is used again. The
second world is another process of the same site, whose way to the store heals first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import anyio
import pytest

from cm_auth_middleware import MemoryStore, StoreError
from cm_auth_middleware.testing import Settings
from cm_auth_middleware.tokens import refresh
from tests.helpers.browser import Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import JSON, MakeWorld, World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIFETIME = 43_199
STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}
ALL = {"get", "put", "replace", "delete", "acquire", "release", "ping", "find"}
LATER = 1.5  # seconds after which the first process's way to the store heals, too


class Site:
    """Two processes, each with its own way to one store."""

    def __init__(self, make_world: MakeWorld, **settings: bool) -> None:
        self.memory = MemoryStore()
        self.ways = [CountingStore(self.memory) for _ in range(2)]
        quiet = {"revalidate": 10**8}
        given = Settings(**settings)
        self.one: World = make_world(store=self.ways[0], settings=given, **quiet)
        self.two: World = make_world(beside=self.one, store=self.ways[1], **quiet)
        self.memory._clock = self.one.clock

    @property
    def calls(self) -> int:
        return len(self.one.sim.token_calls("refresh_token"))

    async def until_called(self) -> None:
        await until(lambda: self.calls > 0)

    def leases(self) -> list[str]:
        return [key for key in self.memory._leases if key.startswith("lease.")]


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


def at(world: World, browser: Browser) -> Browser:
    return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")


async def status(browser: Browser) -> int:
    return (await browser.get("/cameras", headers=JSON)).status_code


@both_providers
@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "cut off, too"])
async def test_a_process_waits_for_tokens_that_another_one_could_not_save(
    make_world: MakeWorld, *, is_idle: bool
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.one.sim.settings.token_latency = 0.5
    found: list[int] = []

    async def ask(world: World) -> None:
        found.append(await status(at(world, browser)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, site.one)
        await site.until_called()
        site.ways[0].broken |= ALL
        if not is_idle:
            site.ways[1].broken |= ALL
            assert await status(at(site.two, browser)) == 503
            site.ways[1].broken.clear()
        await anyio.sleep(1)
        site.one.clock.tick(30)  # no process could renew the lease
        group.start_soon(ask, site.two)
        await anyio.sleep(LATER)
        site.ways[0].broken.clear()
    assert found == [200, 200]
    assert site.calls == 1
    assert site.one.sim.refresh_tokens == 1


@both_providers
async def test_who_gives_up_to_save_tokens_does_not_give_the_lease_back(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_SAVE_PATIENCE", 0.3)
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.one.sim.settings.token_latency = 0.5
    found: list[int] = []

    async def ask(world: World) -> None:
        found.append(await status(at(world, browser)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, site.one)
        await site.until_called()
        site.ways[0].broken |= ALL - {"release"}
        await until(lambda: found == [503])
        group.start_soon(ask, site.two)
        await anyio.sleep(LATER)
        site.ways[0].broken.clear()
    assert found == [503, 200]
    assert await status(at(site.one, browser)) == 200
    assert site.calls == 1


@both_providers
async def test_whatever_a_store_raises_the_new_tokens_are_kept(make_world: MakeWorld) -> None:
    """An application's own store may let errors pass that are no StoreError."""
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.ways[0].failures.append(AttributeError)
    site.ways[0].broken |= {"put", "put_all"}
    with contextlib.suppress(AttributeError):
        assert await status(at(site.one, browser)) == 500
    assert site.calls == 1
    site.ways[0].broken.clear()
    assert await status(at(site.two, browser)) == 200
    assert await status(at(site.one, browser)) == 200
    assert site.calls == 1


@both_providers
async def test_whatever_a_store_raises_again_the_old_refresh_token_is_not_used(
    make_world: MakeWorld,
) -> None:
    """The new tokens are saved later, and the first attempts to do so may fail, too."""
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.ways[0].failures.append(AttributeError)
    site.ways[0].broken |= {"put"}
    with contextlib.suppress(AttributeError):
        assert await status(at(site.one, browser)) == 500
    tried = site.ways[0].tried
    first = tried["put"]
    await until(lambda: tried["put"] >= first + 2)
    found: list[int] = []

    async def ask() -> None:
        found.append(await status(at(site.two, browser)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(LATER)
        site.ways[0].broken.clear()
    assert found == [200]
    assert await status(at(site.one, browser)) == 200
    assert site.calls == 1


@both_providers
@pytest.mark.parametrize("side", ["asgi"])
async def test_the_lease_is_left_if_saving_later_is_cancelled(make_world: MakeWorld) -> None:
    """As at the end of an event loop that was made for one request: the next one saves them."""
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    way = site.ways[0]
    way.failures.append(AttributeError)
    way.broken |= {"put"}
    with contextlib.suppress(AttributeError):
        assert await status(at(site.one, browser)) == 500
    held = way.hold("put")
    await held.reached.wait()
    way.broken.clear()
    way._yields = False  # what it sends is sent, also when its caller was cancelled
    await site.one.engine.close()
    found: list[int] = []

    async def ask() -> None:
        found.append(await status(at(site.two, browser)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(LATER)
        assert await status(at(site.one, browser)) == 200
    assert found == [200]
    assert site.calls == 1


@both_providers
@pytest.mark.parametrize("failure", [StoreError, AttributeError])
async def test_a_lease_that_could_not_be_given_back_is_given_back_later(
    make_world: MakeWorld, failure: type[Exception]
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.ways[0].failures.append(failure)
    site.ways[0].broken |= {"release"}
    site.one.sim.fail_token(503)
    with contextlib.suppress(AttributeError):
        assert await status(at(site.one, browser)) >= 500
    assert site.leases()
    site.ways[0].broken.clear()
    await until(lambda: not site.leases())
    assert await status(at(site.two, browser)) == 200


@both_providers
@pytest.mark.parametrize("failure", [StoreError, AttributeError])
async def test_a_lease_that_cannot_be_renewed_does_not_end_the_token_call(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    """Its tokens exist nowhere else; they are saved once the lease is asked for again."""
    monkeypatch.setattr(refresh, "_LEASE_MARGIN", -9.0)  # of 10 s: it is renewed after 0.3 s
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.one.sim.settings.token_latency = 1.0
    way, found = site.ways[0], []
    way.failures.append(failure)

    async def ask() -> None:
        found.append(await status(at(site.one, browser)))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await site.until_called()
        way.broken |= {"acquire"}
        before = way.tried["acquire"]
        await until(lambda: way.tried["acquire"] > before)
        way.broken.clear()
    assert found == [200]
    assert site.calls == 1


@both_providers
async def test_a_process_that_died_is_not_waited_for_for_ever(make_world: MakeWorld) -> None:
    site = Site(make_world)
    site.one.sim.settings.rotate_refresh_tokens = False  # so that the lease keeps its name
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    site.one.sim.settings.token_latency = 0.5
    async with anyio.create_task_group() as group:
        group.start_soon(status, at(site.one, browser))
        await site.until_called()
        [lease] = site.leases()
    assert not site.leases()
    assert await site.memory.claim(lease, "who died", 15)
    site.one.clock.tick(LIFETIME)
    began = time.monotonic()
    assert await status(at(site.two, browser)) == 200
    assert time.monotonic() - began >= refresh._LAPSED_PATIENCE
    assert site.calls == 2
    assert not site.leases()
