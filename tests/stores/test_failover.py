"""A site whose Redis gets another primary behind one name, as a visitor sees it."""

from __future__ import annotations

import secrets
import time

import anyio
import pytest

from tests.helpers.browser import Browser
from tests.helpers.servers import (
    REFUSALS,
    Forwarder,
    clients_of,
    exchange,
    pair,
    redis_server,
    until,
)
from tests.helpers.world import JSON, MakeWorld, World

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def crowd(world: World) -> list[Browser]:
    """Log in a dozen at once, each by connections of their own."""
    browsers = [world.browser() for _ in range(12)]
    async with anyio.create_task_group() as group:
        for browser in browsers:
            group.start_soon(browser.login)
    return browsers


@pytest.mark.parametrize("first", ["login", "refresh", "logout", "page"])
async def test_after_a_failover_behind_one_name_everybody_goes_on_at_once(
    make_world: MakeWorld, first: str
) -> None:
    """R4: the demoted primary keeps its connections open, and nobody restarts the application."""
    with pair() as (old, new), Forwarder(old.port) as name:
        world = make_world(store=name.url, exchanges_at_once=16)
        browsers = await crowd(world)
        leaving = await world.login("bob@example.com")  # a logout ends the tokens that others share
        assert clients_of(old) > 1
        exchange(old, new)
        name.port = new.port
        if first == "login":
            await world.login("bob@example.com")
        elif first == "logout":
            assert (await leaving.post("/auth/logout")).status_code == 303
            assert (await leaving.get("/", headers=JSON)).status_code == 401
        elif first == "refresh":
            world.clock.tick(43_300)
            statuses: list[int] = []

            async def ask(browser: Browser) -> None:
                statuses.append((await browser.get("/cameras")).status_code)

            async with anyio.create_task_group() as group:
                for browser in browsers:
                    group.start_soon(ask, browser)
            assert statuses == [200] * len(browsers)
        for browser in browsers:
            assert (await browser.get("/cameras")).status_code == 200
        await world.login("bob@example.com")
        until(lambda: clients_of(old) == 0)
        assert clients_of(new) > 0


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_store_that_takes_no_writes_is_503_until_another_is_there(
    make_world: MakeWorld, code: str
) -> None:
    make_ill, _ = REFUSALS[code]
    with redis_server() as server, redis_server() as other, Forwarder(server.port) as name:
        world = make_world(store=name.url)
        for number in range(100):
            server.command("SET", f"k{number}", secrets.token_hex(500))
        await world.login()
        make_well = make_ill(server)
        assert (await world.browser().login()).status_code == 503
        make_well()
        assert (await world.browser().login()).status_code == 200

        make_ill(server)
        assert (await world.browser().login()).status_code == 503
        name.port = other.port
        deadline = time.monotonic() + 3
        while (await world.browser().login()).status_code != 200:
            assert time.monotonic() < deadline
            await anyio.sleep(0.05)
