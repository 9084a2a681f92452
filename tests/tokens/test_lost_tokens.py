"""A store that loses what it has acknowledged, as a failover of Redis can: no session ends.

The server rotates refresh tokens, and ends a grant whose old refresh token is used again. Worlds
beside the first are other processes of the same site.
"""

from __future__ import annotations

import time

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.testing import Settings
from tests.helpers.browser import ANNA, BOB, Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import JSON, MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIFETIME = 43_199
STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}


class Site:
    """Two processes on one store, whose content can be set back."""

    def __init__(self, make_world: MakeWorld, **settings: bool) -> None:
        self.memory = MemoryStore()
        self.store = CountingStore(self.memory)
        quiet = {"revalidate": 10**8}  # no writes beside requests
        self.one: World = make_world(store=self.store, settings=Settings(**settings), **quiet)
        self.memory._clock = self.one.clock
        self.two: World = make_world(beside=self.one, **quiet)
        self.sim = self.one.sim

    def state(self) -> list[dict[str, tuple[bytes, float]]]:
        return [dict(shard) for shard in self.memory._shards]

    def set_back(self, state: list[dict[str, tuple[bytes, float]]]) -> None:
        """Lose everything that was written since; leases, too, lie on the server that is gone."""
        for shard, before in zip(self.memory._shards, state, strict=True):
            shard.clear()
            shard.update(before)
        self.memory._leases.clear()

    def grants(self) -> dict[str, tuple[bytes, float]]:
        """The records of grants."""
        entries = (entry for shard in self.state() for entry in shard.items())
        return {key: value for key, value in entries if key.startswith("grant.")}

    @property
    def calls(self) -> int:
        return len(self.sim.token_calls("refresh_token"))


def same(browser: Browser, world: World) -> Browser:
    return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")


async def status(browser: Browser) -> int:
    return (await browser.get("/cameras", headers=JSON)).status_code


async def until_written(site: Site, state: list[dict[str, tuple[bytes, float]]]) -> None:
    """Wait until a process has put something back by itself."""
    deadline = time.monotonic() + 20
    while site.state() == state:
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def test_who_fetched_tokens_puts_them_back_instead_of_a_second_refresh(
    make_world: MakeWorld,
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    for expiry in range(1, 4):
        before = site.state()
        site.one.clock.tick(LIFETIME)
        assert await status(browser) == 200
        site.set_back(before)
        assert await status(browser) == 200
        assert site.calls == expiry
    assert site.sim.refresh_tokens == 1


async def test_it_puts_them_back_without_a_request_so_that_other_processes_find_them(
    make_world: MakeWorld,
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    before = site.state()
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200
    site.set_back(before)
    await until_written(site, before)
    assert await status(same(browser, site.two)) == 200
    assert site.calls == 1


@pytest.mark.parametrize("sign", ["its own tokens are lost", "the store failed"])
async def test_a_process_that_notices_a_loss_waits_for_what_others_put_back(
    make_world: MakeWorld, sign: str
) -> None:
    site = Site(make_world, **STRICT)
    annas, bobs = await site.one.login(email=ANNA), await site.two.login(email=BOB)
    before = site.state()
    site.one.clock.tick(LIFETIME)
    assert await status(annas) == 200
    if sign == "its own tokens are lost":
        assert await status(bobs) == 200
    calls = site.calls
    if sign == "the store failed":
        site.store.broken |= {"get", "put", "replace", "acquire", "release"}
        assert await status(same(annas, site.two)) == 503
        site.store.broken.clear()
    site.set_back(before)
    assert await status(same(annas, site.two)) == 200  # at once
    assert site.calls == calls
    assert await status(bobs) == 200


async def test_a_storm_that_is_lost_costs_no_session(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    browsers = [await site.one.login(email=user) for user in (ANNA, BOB) for _ in range(4)]
    before = site.state()
    site.one.clock.tick(LIFETIME)
    for n, browser in enumerate(browsers):
        assert await status(same(browser, (site.one, site.two)[n % 2])) == 200
    calls = site.calls
    site.set_back(before)
    found: list[int] = []

    async def ask(browser: Browser) -> None:
        found.append(await status(browser))

    async with anyio.create_task_group() as group:
        for world in (site.one, site.two):
            for browser in browsers:
                group.start_soon(ask, same(browser, world))
    assert found == [200] * len(found)
    assert site.calls == calls == 2


async def test_a_grant_that_was_logged_out_is_not_put_back(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200
    assert (await same(browser, site.two).post("/auth/logout")).status_code == 303
    for grant in site.grants():  # the logout is not lost, but all else is
        await site.memory.delete(grant)
    await anyio.sleep(2)  # several looks of process one
    assert not site.grants()
    for world in (site.one, site.two):
        assert await status(same(browser, world)) == 401
    assert site.sim.refresh_tokens == 0


async def test_newer_tokens_of_another_process_stay(make_world: MakeWorld) -> None:
    site = Site(make_world)  # the refresh token stays: one record for all tokens
    browser = await site.one.login()
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200
    site.one.clock.tick(LIFETIME)
    assert await status(same(browser, site.two)) == 200
    grants = site.grants()
    await anyio.sleep(2)  # several looks of both
    assert site.grants() == grants
    for world in (site.one, site.two):
        assert await status(same(browser, world)) == 200
    assert site.calls == 2
