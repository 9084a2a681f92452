"""A request to an exempt path does not wait for a store that hangs."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from cm_auth_middleware import MemoryStore
from tests.helpers.browser import Browser
from tests.helpers.servers import redis_server
from tests.helpers.stores import CountingStore, HangingStore
from tests.helpers.world import MakeWorld

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SOON = 1.0  # seconds: the bound is 0.25, and the machine may be busy
ANNA, NOBODY = "anna@example.com", "nobody"


async def ask(browser: Browser) -> str:
    """Ask for an exempt path; it says who is logged in."""
    began = time.monotonic()
    response = await browser.get("/health")
    assert response.status_code == 200
    assert time.monotonic() - began < SOON
    return response.text


async def until_known(browser: Browser) -> None:
    """Wait until the exempt path has its session again."""
    deadline = time.monotonic() + 20
    while await ask(browser) != ANNA:
        assert time.monotonic() < deadline
        await anyio.sleep(0.05)


async def test_it_goes_on_without_a_session_while_the_store_hangs(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    store = HangingStore()
    world = make_world(store=store, exempt=["/health"])
    browser = await world.login()
    assert await ask(browser) == ANNA
    for _ in range(2):
        caplog.clear()
        store.hangs = True
        with caplog.at_level(logging.INFO, "cm_auth_middleware"):
            assert [await ask(browser) for _ in range(3)] == [NOBODY] * 3
        assert [record.event for record in caplog.records] == ["store_slow"]  # once an outage
        store.hangs = False
        await until_known(browser)


async def test_it_waits_for_the_store_once_and_for_a_quarter_of_a_second(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HangingStore()
    world = make_world(store=store, exempt=["/health"])
    browser = await world.login()
    engine = world.engine
    runtime = (engine.async_services if world.side == "asgi" else engine.thread_services).runtime
    waits: list[float] = []
    within = runtime.within

    async def noted(seconds: float, work: Any) -> Any:
        waits.append(seconds)
        return await within(seconds, work)

    monkeypatch.setattr(runtime, "within", noted)
    store.hangs = True
    assert await ask(browser) == NOBODY
    assert waits == [0.25]
    store.hangs = False
    await until_known(browser)


async def test_one_that_took_long_is_not_looked_up_again(make_world: MakeWorld) -> None:
    store = CountingStore(MemoryStore())
    world = make_world(store=store, exempt=["/health"])
    browser = await world.login()

    def work() -> None:
        world.clock.tick(31)  # after so long a session is looked up again, elsewhere
        store.broken.add("get")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        work()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    def wsgi_app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        work()
        start_response("200 OK", [])
        return [b"done"]

    world.app.app = app if world.side == "asgi" else wsgi_app
    assert (await browser.get("/health")).text == "done"
    store.broken.clear()
    assert (await browser.get("/")).status_code == 503
    store.broken.clear()


async def test_a_crowd_of_them_leaves_few_questions_behind(make_world: MakeWorld) -> None:
    store = HangingStore()
    world = make_world(store=store, exempt=["/health"])
    browser = await world.login()
    store.hangs = True
    began = time.monotonic()
    for _ in range(3):
        async with anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(browser.get, "/health")
    assert time.monotonic() - began < 3 * SOON
    await anyio.sleep(0.05)  # what was cancelled ends at its next turn
    assert store.hanging <= 8
    store.hangs = False
    await until_known(browser)


async def test_without_a_session_cookie_the_store_is_not_asked(make_world: MakeWorld) -> None:
    store = HangingStore()
    world = make_world(store=store, exempt=["/health"])
    for cookie in ("theme=dark", "cm_auth=nonsense"):
        assert await ask(world.browser(Cookie=cookie)) == NOBODY
    assert store.asked["get"] == 0


async def test_it_does_not_wait_for_the_lock_of_a_sqlite_file(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    file = tmp_path / "sessions.db"
    world = make_world(store=f"sqlite:///{file}", exempt=["/health"])
    browser = await world.login()
    world.clock.tick(61)  # the request is to be noted as a use of the session
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    await ask(browser)
    other.execute("ROLLBACK")
    other.close()
    await until_known(browser)


@pytest.mark.slow
async def test_it_goes_on_without_a_session_while_redis_stands_still(
    make_world: MakeWorld,
) -> None:
    with redis_server() as server:
        world = make_world(store=server.url, exempt=["/health"])
        browser = await world.login()
        assert await ask(browser) == ANNA
        server.pause()
        try:
            assert [await ask(browser) for _ in range(12)] == [NOBODY] * 12
        finally:
            server.resume()
        await until_known(browser)
