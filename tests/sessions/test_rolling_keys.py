"""A change of the secret key in three steps, while processes of two steps serve the same users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.testing import Settings
from tests.helpers.browser import ANNA, BOB, Browser
from tests.helpers.world import JSON, MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

OLD = "old_PelDNAjKQHoOUda-FFNa77NqZpQiWbOkdUFeo57uFJmi"
NEW = "new_uqX3Ixt9mzJN224xzA4jfDlx7IuKgyvme_E_Bo_D2ffk"
STEPS = [(OLD,), (NEW, OLD), (OLD, NEW), (NEW,)]
LIFETIME = 43_199
ANNAS_ID = 10003
STRICT = Settings(pkce=True, rotate_refresh_tokens=True, revoke_family_on_reuse=True)


class Fleet:
    """Processes of each step on one store."""

    def __init__(self, make_world: MakeWorld, store: str, folder: Path) -> None:
        options: dict[str, Any] = {"exempt": ["/health"]}
        self.memory = MemoryStore() if store == "memory" else None
        options["store"] = self.memory or f"sqlite:///{folder / 'sessions.db'}"
        first = make_world(secret_key=STEPS[0], settings=STRICT, **options)
        if self.memory:
            self.memory._clock = first.clock
        self.clock, self.sim = first.clock, first.sim
        self.steps: list[World] = [first]
        self.steps += [make_world(beside=first, secret_key=keys, **options) for keys in STEPS[1:]]

    def mix(self, number: int) -> tuple[World, World]:
        """The processes of a step and of the one before it."""
        return self.steps[number - 1], self.steps[number]


@pytest.fixture(params=["memory", "sqlite"])
def fleet(make_world: MakeWorld, request: pytest.FixtureRequest, tmp_path: Path) -> Fleet:
    return Fleet(make_world, request.param, tmp_path)


def at(world: World, browser: Browser) -> Browser:
    """The same browser, with the same cookies, at another process."""
    other = world.browser()
    other._cookies = browser._cookies
    return other


async def log_in(start: World, end: World, email: str = ANNA) -> Browser:
    """Begin a login at one process and end it at another."""
    browser = start.browser()
    location = (await browser.get("/")).headers["location"]
    answer = await at(end, browser).finish(location, email)
    assert (answer.status_code, answer.text) == (200, f"/? {email}")
    return browser


async def statuses(fleet: Fleet, number: int, browsers: list[Browser], count: int) -> set[int]:
    """Send requests of all browsers to both kinds of processes, with an expiry in between."""
    found = set()
    for n in range(count):
        if n == count // 2:
            fleet.clock.tick(LIFETIME)
        world = fleet.mix(number)[n * 7 // 3 % 2]
        browser = at(world, browsers[n % len(browsers)])
        found.add((await browser.get("/cameras", headers=JSON)).status_code)
    return found


async def roll(fleet: Fleet, count: int) -> None:
    browsers = [await log_in(fleet.steps[0], fleet.steps[0], who) for who in (ANNA, BOB, ANNA)]
    for number in range(1, len(STEPS)):
        before, after = fleet.mix(number)
        browsers += [await log_in(before, after), await log_in(after, before, BOB)]
        assert await statuses(fleet, number, browsers, count) == {200}
        for browser in browsers:  # the step is everywhere now, and all come by
            assert (await at(after, browser).get("/cameras", headers=JSON)).status_code == 200
    assert len(fleet.sim.token_calls("refresh_token")) == 2 * (len(STEPS) - 1)  # of two users


async def test_processes_of_neighbouring_steps_serve_the_same_users(fleet: Fleet) -> None:
    await roll(fleet, 24)


@pytest.mark.slow
async def test_none_of_400_requests_in_each_mix_is_sent_to_the_login(fleet: Fleet) -> None:
    await roll(fleet, 400)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_a_login_that_began_at_one_step_ends_at_the_next(fleet: Fleet, number: int) -> None:
    """R47: also at a server that checks PKCE."""
    before, after = fleet.mix(number)
    for start, end in ((before, after), (after, before)):
        browser = await log_in(start, end)
        for world in (before, after):
            assert (await at(world, browser).get("/cameras", headers=JSON)).status_code == 200


@pytest.mark.parametrize("keys", [(OLD, NEW), (NEW, OLD)])
async def test_a_login_ends_under_the_key_alone_that_signed_it(make_world, keys) -> None:
    """R47: begun where the other key was known as well."""
    store = MemoryStore()
    start = make_world(secret_key=keys, settings=Settings(pkce=True), store=store)
    store._clock = start.clock
    await log_in(start, make_world(beside=start, secret_key=keys[-1:]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_handles_of_one_step_open_at_the_next(fleet: Fleet, number: int) -> None:
    before, after = fleet.mix(number)
    browser = await log_in(before, before)
    for maker, opener in ((before, after), (after, before)):
        handle = (await at(maker, browser).get("/export")).text
        fleet.clock.tick(LIFETIME)  # so that the job refreshes
        job = await opener.client_for(handle)
        answer = await opener.on_its_side(lambda job=job: job.get("/rest/v2.4/cameras"))
        assert answer.status_code == 200
        assert (await at(maker, browser).get("/cameras", headers=JSON)).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_an_administrator_at_either_step_finds_and_ends_all_sessions_of_a_user(
    fleet: Fleet, number: int
) -> None:
    before, after = fleet.mix(number)
    for admin in (before, after):
        browsers = [await log_in(before, before), await log_in(after, after)]
        bobs = await log_in(before, after, BOB)
        engine = admin.engine
        for world in (before, after):
            found = await world.on_its_side(lambda world=world: world.engine.sessions(ANNAS_ID))
            assert len(found) == len(browsers)
        assert await admin.on_its_side(lambda e=engine: e.logout_user(ANNAS_ID)) == len(browsers)
        for browser in browsers:
            for world in (before, after):
                answer = await at(world, browser).get("/cameras", headers=JSON)
                assert answer.status_code == 401
        assert (await at(after, bobs).get("/cameras", headers=JSON)).status_code == 200


async def test_without_the_first_step_the_users_of_the_new_key_are_refused(fleet: Fleet) -> None:
    """Why there are three steps."""
    browser = await log_in(fleet.steps[2], fleet.steps[2])
    answer = await at(fleet.steps[0], browser).get("/cameras", headers=JSON)
    assert answer.status_code == 401
