"""A store that loses what it has acknowledged, as a failover of Redis can: no session ends.

The server rotates refresh tokens, and ends a grant whose old refresh token is used again. Worlds
beside the first are other processes of the same site.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.testing import Settings
from tests.helpers.browser import ANNA, BOB, Browser
from tests.helpers.stores import CountingStore
from tests.helpers.world import JSON, MakeWorld, World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIFETIME = 43_199
STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}


class LossyStore(CountingStore):
    """A store with a server that another one may replace."""

    lives = 1

    async def epochs(self, _key: str | None = None) -> frozenset[str]:
        await self._turn("epochs")
        return frozenset([f"life {self.lives}"])

    def blocking(self) -> CountingStore:
        return LossyTwin(self)


class LossyTwin(CountingStore):
    """The same for threads."""

    def __init__(self, store: LossyStore) -> None:
        super().__init__(store.memory)
        self.broken, self._store, self._yields = store.broken, store, False

    async def epochs(self, _key: str | None = None) -> frozenset[str]:
        await self._turn("epochs")
        return frozenset([f"life {self._store.lives}"])


class Site:
    """Two processes on one store, whose content can be set back."""

    def __init__(self, make_world: MakeWorld, **settings: bool) -> None:
        self.memory = MemoryStore()
        self.store = LossyStore(self.memory)
        quiet = {"revalidate": 10**8}  # no writes beside requests
        self.one: World = make_world(store=self.store, settings=Settings(**settings), **quiet)
        self.memory._clock = self.one.clock
        self.two: World = make_world(beside=self.one, **quiet)
        self.sim = self.one.sim

    def state(self) -> list[dict[str, tuple[bytes, float]]]:
        return [
            {key: (value, ends[key]) for key, value in values.items()}
            for values, ends in self.memory._shards
        ]

    def keepers(self, state: list[dict[str, tuple[bytes, float]]]) -> list[str]:
        """The processes that are known to keep tokens."""
        records = [shard["keepers"][0] for shard in state if "keepers" in shard]
        return sorted(json.loads(records[0][1:])) if records else []

    async def settled_state(self, processes: int = 1) -> list[dict[str, tuple[bytes, float]]]:
        """Return the state when so many processes are known to keep tokens."""
        await until(lambda: len(self.keepers(self.state())) == processes)
        return self.state()

    def set_back(self, state: list[dict[str, tuple[bytes, float]]]) -> None:
        """Lose everything that was written since; leases, too, lie on the server that is gone."""
        for (values, ends), before in zip(self.memory._shards, state, strict=True):
            values.clear()
            ends.clear()
            for key, (value, end) in before.items():
                values[key] = value
                # A store's own clock does not jump with that of the tests.
                ends[key] = float("inf") if key == "keepers" else end
        self.memory._leases.clear()
        self.store.lives += 1

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


async def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        await anyio.sleep(0.02)


async def until_written(site: Site, state: list[dict[str, tuple[bytes, float]]]) -> None:
    """Wait until a process has put something back by itself."""
    await until(lambda: len(site.grants()) > len([k for s in state for k in s if "grant." in k]))


@both_providers
async def test_who_fetched_tokens_puts_them_back_instead_of_a_second_refresh(
    make_world: MakeWorld,
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    for expiry in range(1, 4):
        before = await site.settled_state()
        site.one.clock.tick(LIFETIME)
        assert await status(browser) == 200
        site.set_back(before)
        assert await status(browser) == 200
        assert site.calls == expiry
    assert site.sim.refresh_tokens == 1


@both_providers
async def test_it_puts_them_back_without_a_request_so_that_other_processes_find_them(
    make_world: MakeWorld,
) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    before = await site.settled_state()
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200
    site.set_back(before)
    await until_written(site, before)
    assert await status(same(browser, site.two)) == 200
    assert site.calls == 1


@both_providers
async def test_a_process_that_knows_of_no_loss_waits_for_what_others_put_back(
    make_world: MakeWorld,
) -> None:
    site = Site(make_world, **STRICT)
    annas, bobs = await site.one.login(email=ANNA), await site.two.login(email=BOB)
    before = await site.settled_state(2)
    site.one.clock.tick(LIFETIME)
    assert await status(annas) == 200
    calls = site.calls
    site.set_back(before)
    assert await status(same(annas, site.two)) == 200  # at once
    assert site.calls == calls
    assert await status(bobs) == 200


@both_providers
async def test_a_process_started_meanwhile_waits_too(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    before = await site.settled_state()
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200
    site.set_back(before)
    assert await status(same(browser, make_world(beside=site.one))) == 200
    assert site.calls == 1


@both_providers
async def test_a_token_call_under_way_is_waited_for(make_world: MakeWorld) -> None:
    """Its lease is lost with the server, so nothing else holds the second one back."""
    site = Site(make_world, **STRICT)
    browser, other = await site.one.login(email=ANNA), await site.two.login(email=BOB)
    before = await site.settled_state(2)
    site.one.clock.tick(LIFETIME)
    site.sim.settings.token_latency = 1.5
    found: list[int] = []

    async def ask(browser: Browser) -> None:
        found.append(await status(browser))

    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser)
        await until(lambda: site.calls == 1)
        site.set_back(before)
        group.start_soon(ask, same(browser, site.two))
    assert found == [200, 200]
    assert site.calls == 1
    assert await status(other) == 200


@both_providers
async def test_a_process_that_died_is_waited_for_only_so_long(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    browser = await site.one.login()
    before = await site.settled_state()
    shard = next(shard for shard in before if "keepers" in shard)
    keepers, expires = shard["keepers"]
    shard["keepers"] = keepers.replace(b"{", b'{"0123456789abcdef":0,', 1), expires
    site.set_back(before)
    site.one.clock.tick(LIFETIME)
    began = time.monotonic()
    found = [await status(browser)]
    while found[-1] == 503 and time.monotonic() < began + 60:
        found.append(await status(browser))
    assert found == [503] * (len(found) - 1) + [200]
    assert time.monotonic() > began + 2
    assert site.calls == 1


@both_providers
async def test_a_process_that_is_closed_is_not_waited_for(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    browser, _ = await site.one.login(email=ANNA), await site.two.login(email=BOB)
    await site.settled_state(2)
    await site.two.close()
    assert len(site.keepers(site.state())) == 1
    site.set_back(site.state())
    site.one.clock.tick(LIFETIME)
    assert await status(browser) == 200  # and not 503


@both_providers
async def test_a_storm_that_is_lost_costs_no_session(make_world: MakeWorld) -> None:
    site = Site(make_world, **STRICT)
    worlds = [site.one, site.two] * 2
    browsers = [await world.login(email=user) for user in (ANNA, BOB) for world in worlds]
    before = await site.settled_state(2)
    site.one.clock.tick(LIFETIME)
    for n, browser in enumerate(browsers):
        assert await status(same(browser, worlds[n % 4])) == 200
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
    # CameraManager gives each login of a user the same tokens, API v3 its own.
    assert site.calls == calls == (2 if site.sim.settings.shared_access_token else 8)


@both_providers
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


@both_providers
async def test_newer_tokens_of_another_process_stay(make_world: MakeWorld) -> None:
    site = Site(make_world)
    site.sim.settings.rotate_refresh_tokens = False  # one record for all tokens
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
