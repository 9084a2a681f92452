"""Paths that answer 401 where 403 is meant: one refresh for all of them, and then no more."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware.errors import StoreError
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.stores.memory import MemoryStore
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.world import MakeWorld, World, both_providers
from tests.sessions.test_handles import Job

pytestmark = [pytest.mark.anyio, pytest.mark.slow, both_providers]

CAMERAS = "/cameras"
PATHS = [CAMERAS, "/cameras/status", "/cameras/2001", "/echo"]


def refuse(world: World, *paths: str) -> None:
    for path in paths or [CAMERAS]:
        world.sim.fail_api(401, 1000, path=f"{world.api}{path}")


def refreshes(world: World) -> int:
    return len(world.sim.token_calls("refresh_token"))


def questions(world: World) -> int:
    """How often the user was asked for."""
    return len(world.sim.calls(world.user_path))


async def status(browser: Any, path: str = CAMERAS) -> int:
    url = f"{browser.world.root}{path}"
    return int((await browser.get("/api/x", params={"url": url})).json()["status"])


async def test_a_path_that_always_says_401_costs_one_refresh(world: World) -> None:
    """R5: and the 401 is handed on."""
    browser = await world.login()
    refuse(world)
    before = questions(world)
    for _ in range(10):
        assert await status(browser) == 401
        world.clock.tick(10)
    assert refreshes(world) == 1
    assert questions(world) - before <= 3  # one a minute


async def test_through_the_proxy_it_costs_one_refresh(
    make_world: MakeWorld, side: str, provider: str
) -> None:
    path = CAMERAS if provider == "eagleeye" else f"/rest/v2.4{CAMERAS}"
    rules = [f"GET {path}"]
    app: Any = make_app([Mount("/cm", CMProxy(allow=rules))])
    if side == "wsgi":
        app = DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(allow=rules)})
    world = make_world(app=app)
    browser = await world.login()
    refuse(world)
    for _ in range(10):
        assert (await browser.get(f"/cm{path}")).status_code == 502
    assert refreshes(world) == 1


async def test_by_a_handle_it_costs_one_refresh(world: World) -> None:
    browser = await world.login()
    job = await Job(world).open((await browser.get("/export")).text)
    refuse(world)
    for _ in range(10):
        assert (await job.get()).status_code == 401
    assert refreshes(world) == 1


async def test_many_such_paths_cost_one_refresh_together(world: World) -> None:
    """By turns: a memory that each new token ends would make it one for each call."""
    browser = await world.login()
    refuse(world, *PATHS)
    for _ in range(4):
        for path in PATHS:
            assert await status(browser, path) == 401
    assert refreshes(world) == 1


async def test_over_two_processes_it_costs_one_refresh(make_world: MakeWorld) -> None:
    world = make_world()
    other = make_world(beside=world)
    browser, elsewhere = await world.login(), other.browser()
    refuse(world)
    elsewhere.cookies.update(browser.cookies)
    for _ in range(5):
        assert await status(browser) == 401
        assert await status(elsewhere) == 401
    assert refreshes(world) == 1


async def test_the_next_token_costs_no_refresh_of_its_own(world: World) -> None:
    browser = await world.login()
    refuse(world)
    assert await status(browser) == 401
    world.clock.tick(43_200)  # beyond the lifetime of the token
    for _ in range(5):
        assert await status(browser) == 401
    assert refreshes(world) == 2  # the second one was due


async def test_a_token_that_dies_is_renewed_by_any_other_path_at_once(world: World) -> None:
    browser = await world.login()
    refuse(world)
    for _ in range(3):
        assert await status(browser) == 401
    world.sim.expire_access_tokens()
    assert await status(browser, PATHS[3]) == 200
    assert refreshes(world) == 2


async def test_a_token_that_dies_is_renewed_by_the_same_path_within_a_minute(
    world: World,
) -> None:
    browser = await world.login()
    refuse(world)
    for _ in range(3):
        assert await status(browser) == 401
    world.sim.forget_failures()
    world.sim.expire_access_tokens()
    world.clock.tick(61)
    assert await status(browser) == 200
    assert refreshes(world) == 2


async def test_what_is_handed_on_is_the_whole_answer(world: World) -> None:
    body = {"error": "x" * 300_000}
    world.sim.fail_api((401, body), 1000, path=f"{world.api}{CAMERAS}")
    browser = await world.login()
    job = await Job(world).open((await browser.get("/export")).text)
    for _ in range(3):
        answer = await job.get()
        assert (answer.status_code, answer.json()) == (401, body)


async def test_that_a_refusal_cannot_be_noted_is_no_error(make_world: MakeWorld) -> None:
    store = Forgetful()
    world = make_world(store=store)
    browser = await world.login()
    refuse(world)
    for _ in range(3):
        assert await status(browser) == 401
    assert store.failed
    assert refreshes(world) == 1  # this process knows without it, for a minute


class Forgetful(MemoryStore):
    """A store that takes no note of a refusal."""

    failed = False

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        if key.startswith("refused."):
            self.failed = True
            raise StoreError("gone")
        await super().put(key, value, ttl)
