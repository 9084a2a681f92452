"""Races, load, and a world that falls apart."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import anyio.to_thread
import httpx2
import pytest

from cm_auth_middleware.stores import MemoryStore, SQLiteStore
from cm_auth_middleware.testing import Settings, SimulatorServer
from tests.helpers.browser import Browser
from tests.helpers.servers import redis_server
from tests.helpers.world import APP, CM, JSON, Clock, World, both_providers

from .visits import (
    NAME,
    Response,
    call_asgi,
    call_wsgi,
    is_logged_in,
    session_of,
    sessions_in,
    started,
    stored,
    visit,
)
from .wired import Wired, clocked

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROTATING = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}


def two_processes(make_world: Callable[..., World], tmp_path: Path, **settings: Any) -> list[World]:
    """Two engines, each with its own memory and locks, on one store and one CameraManager."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    worlds = [make_world(store=store, settings=Settings(**settings)) for _ in range(2)]
    worlds[1].put_before_the_server(worlds[0].sim)
    worlds[1].sim = worlds[0].sim
    worlds[1].clock = worlds[0].clock
    worlds[1].engine._clock = worlds[0].clock  # before its first use
    worlds[1].engine.store._clock = worlds[0].clock
    return worlds


@both_providers
async def test_five_hundred_requests_at_expiry_make_one_token_call(make_world, tmp_path) -> None:
    """42: over two processes, where a second refresh would cost everybody the session."""
    worlds = two_processes(make_world, tmp_path, token_latency=0.05, **ROTATING)
    cookie = f"{NAME}={session_of(await worlds[0].login())}"
    worlds[0].clock.tick(43_300)
    statuses: list[int] = []

    async def ask(world: World) -> None:
        statuses.append((await visit(world, cookie.encode(), "/cameras"))[0])

    async with anyio.create_task_group() as group:
        for n in range(500):
            group.start_soon(ask, worlds[n % 2])
    assert statuses == [200] * 500
    assert len(worlds[0].sim.token_calls("refresh_token")) == 1
    for world in worlds:  # and nobody was logged out a refresh later
        world.clock.tick(43_300)
        assert await is_logged_in(world, cookie, "/cameras")


@both_providers
@pytest.mark.parametrize("rotating", [False, True])
async def test_a_logout_during_a_refresh_wins(make_world, rotating: bool) -> None:
    """43: it stays out, and what the refresh brought home is dead, too."""
    world = make_world(settings=Settings(rotate_refresh_tokens=rotating))
    browser = await world.login()
    cookie = f"{NAME}={session_of(browser)}"
    world.clock.tick(43_300)
    world.sim.settings.token_latency = 0.3
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await browser.get("/cameras", headers=JSON)).status_code)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        while not world.sim.token_calls("refresh_token"):
            await anyio.sleep(0.01)
        await world.browser(Cookie=cookie).post("/auth/logout")
    assert statuses == [401]
    assert not await is_logged_in(world, cookie)
    assert world.sim._tokens.access == {}
    assert world.sim._tokens.refresh == {}
    assert [k for k in sessions_in(world) if not k.startswith("gone.")] == []


@both_providers
@pytest.mark.parametrize("rotating", [False, True])
async def test_a_lease_that_ran_out_costs_no_session(make_world, tmp_path, rotating: bool) -> None:
    """44: two refresh at once after all; one token is lost, and nobody is logged out."""
    worlds = two_processes(make_world, tmp_path, rotate_refresh_tokens=rotating)
    one, two = worlds
    cookie = f"{NAME}={session_of(await one.login())}"
    one.clock.tick(43_300)
    sim, held = one.sim, []

    async def slow_for_one(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == one.token_path and not held:
            held.append(True)
            await anyio.to_thread.run_sync(_end_leases, tmp_path / "sessions.db")
            assert await is_logged_in(two, cookie, "/cameras")
        await sim(scope, receive, send)

    one.net.add(CM, slow_for_one)
    assert await is_logged_in(one, cookie, "/cameras")
    assert held
    one.net.add(CM, sim)
    for _ in range(3):
        for world in worlds:
            assert await is_logged_in(world, cookie, "/cameras")
        one.clock.tick(43_300)
    assert await is_logged_in(two, cookie, "/cameras")


def _end_leases(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM leases")


@both_providers
@pytest.mark.parametrize("rotating", [False, True])
async def test_a_process_that_died_between_token_call_and_save(
    make_world, tmp_path, rotating: bool
) -> None:
    """45: the next one recovers where the refresh token stays, or asks for a login; no loop."""
    one, two = two_processes(make_world, tmp_path, rotate_refresh_tokens=rotating)
    browser = await one.login()
    cookie = f"{NAME}={session_of(browser)}"
    one.clock.tick(43_300)
    one.sim.fail_token("lost")  # done there, and nobody here heard of it
    await browser.get("/cameras")  # of the process that is not asked again
    _end_leases(tmp_path / "sessions.db")
    after = two.browser(Cookie=cookie)
    answer = await after.get("/cameras")
    rotating = one.sim.settings.rotate_refresh_tokens  # API v3's always are
    assert answer.status_code == (302 if rotating else 200)
    if rotating:
        page = await two.browser().login("/cameras")
        assert page.status_code == 200


class Forgetful(Browser):
    """A browser that keeps no cookie whose name ends like one of these."""

    refuses: tuple[str, ...] = ()

    def forget(self) -> None:
        for cookie in list(self.cookies.jar):
            if cookie.name.endswith(self.refuses):
                self.cookies.jar.clear(cookie.domain, cookie.path, cookie.name)


async def walk(browser: Forgetful, path: str, limit: int = 12) -> list[httpx2.Response]:
    """Follow every redirect, as somebody who is logged in at CameraManager is sent around."""
    trail = [await browser.get(path)]
    while trail[-1].status_code in (302, 303) and len(trail) < limit:
        browser.forget()
        location = trail[-1].headers["location"]
        url = browser.callback_url(location) if location.startswith(CM) else location
        trail.append(await browser.get(url))
    return trail


@both_providers
@pytest.mark.parametrize("refuses", [(NAME,), ("",)], ids=["session", "all"])
async def test_a_browser_that_keeps_no_cookies_is_told_so(world: World, refuses) -> None:
    """46: one round, and then a page that says why, with a button to try again."""
    browser = Forgetful(world, APP, {"Accept": "text/html"})
    browser.refuses = refuses
    trail = await walk(browser, "/cameras")
    assert trail[-1].status_code == 400
    assert "ookies" in trail[-1].text
    assert len(world.sim.token_calls()) <= 1
    assert "href=" in trail[-1].text


@both_providers
@pytest.mark.parametrize("ahead", [-4_000, 4_000])
async def test_a_server_with_a_wrong_clock_causes_no_loop(
    make_world, tmp_path, ahead: float
) -> None:
    """46: the callback comes to a server whose clock differs by more than an hour."""
    one, two = (make_world(store=f"sqlite:///{tmp_path}/s.db") for _ in range(2))
    two.put_before_the_server(one.sim)
    two.clock.tick(ahead)
    browser = one.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    other = two.browser()
    other.cookies = browser.cookies
    answer = await other.get(url)
    assert answer.status_code == 400
    assert "Start again" in answer.text


async def test_two_apps_with_one_cookie_name_do_not_loop(make_world) -> None:
    """46: each overwrites the other's session; the page says that this may be so."""
    one, two = make_world(), make_world(secret_key="another " + "Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe")
    browser = Forgetful(one, APP, {"Accept": "text/html"})
    browser.refuses = ("nothing",)
    assert (await walk(browser, "/cameras"))[-1].status_code == 200
    one.net.apps[APP] = two.net.apps[APP]
    trail = await walk(browser, "/cameras")
    assert trail[-1].status_code in (200, 400)
    assert len(trail) < 6


# 10^5 and 10^4 take minutes with every allocation traced: by hand.
SOAK = os.environ.get("CM_AUTH_SOAK") == "1"


@pytest.mark.timeout(900 if SOAK else 60)
async def test_strangers_leave_no_trace(world: World) -> None:
    """47: anonymous requests and abandoned logins: neither memory nor the store grows."""
    anonymous, abandoned = (100_000, 10_000) if SOAK else (3_000, 300)

    async def strangers(count: int, start: int) -> None:
        for n in range(start, start + count):
            await _call(world, b"cm_auth=%0130d" % n, f"/deep/{n}")

    async def logins(count: int, start: int) -> None:
        for n in range(start, start + count):
            await _call(world, b"", f"/auth/login/../{n}")
            status, headers, _ = await _call(world, b"x=%d" % n, f"/cameras/{n}")
            assert status == 302
            assert any("_login_" in value for _, value in headers)

    await strangers(200, 0)
    await logins(100, 0)
    gc.collect()
    tracemalloc.start()
    try:
        await strangers(anonymous, 1_000)
        await logins(abandoned, 1_000)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000  # bytes: what a cache of fixed size and the interpreter keep
    assert stored(world) == {}
    assert world.engine.store._leases == {}


@both_providers
async def test_logins_that_fail_leave_nothing_for_long(make_world, tmp_path) -> None:
    """47: a callback with an invented code notes that its login was used, for half a minute."""
    clock = Clock()
    store = SQLiteStore(tmp_path / "s.db", clock=clock, lease_clock=clock)
    world = make_world(store=store)
    rows = []
    for _ in range(4):
        for _ in range(60):
            browser = world.browser()
            query = parse_qs(urlsplit((await browser.get("/")).headers["location"]).query)
            invented = {"code": "invented", "state": query["state"][0]}
            assert (await browser.get("/auth/callback", params=invented)).status_code == 400
        clock.tick(3600)
        with closing(sqlite3.connect(tmp_path / "s.db")) as database:
            rows += database.execute("SELECT count(*) FROM leases").fetchone()
    assert max(rows) < 130
    assert await store.count() == 0


async def _call(world: World, cookie: bytes, path: str) -> Response:
    if world.side == "asgi":
        return await call_asgi(world.app, cookie, path)
    return call_wsgi(world.app, cookie, path)  # without a thread: it is memory that is measured


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_expired_sessions_go_a_few_at_a_time(tmp_path, kind: str) -> None:
    """48: without a cron job, and no request pays for more than a small part of them."""
    count = 100_000 if SOAK else 10_000
    clock = Clock()
    store: Any = MemoryStore(clock=clock)
    if kind == "sqlite":
        store = SQLiteStore(tmp_path / "s.db", clock=clock)

    def kept() -> int:
        if kind == "memory":
            return sum(len(values) for values, _ in store._shards)
        return int(store._file.run("SELECT count(*) FROM records")[0][0][0])

    for n in range(count):
        await store.put(f"{n:064x}", b"\x01" + bytes(500), 100)
    clock.tick(1_000)
    before = kept()
    assert before == count
    for n in range(0, count, 97):
        assert await store.get(f"{n:064x}") is None
    assert kept() == before  # who reads does not sweep
    most = writes = 0
    while (left := kept()) > writes + 1:
        clock.tick(1)
        await store.put(f"new {writes}", b"\x01", 1e9)
        most = max(most, left - kept())
        writes += 1
        assert writes < count
    assert most <= 200 + count // 100
    await store.close()


def test_one_engine_serves_several_event_loops(tmp_path) -> None:
    """49: one after the other and at once: no socket or lock of another loop, no lost session."""
    with SimulatorServer(clocked()) as server:
        world = Wired("asgi", server.simulator, server.url, store=f"sqlite:///{tmp_path}/s.db")
        server.simulator.settings.token_latency = 0.1
        statuses: list[int] = []

        async def log_in() -> str:
            browser = await world.login()
            await world.engine.close()  # what this loop opened
            return f"{NAME}={session_of(browser)}"

        cookie = asyncio.run(log_in()).encode()

        async def ask() -> None:
            calls = [call_asgi(world.app, cookie, "/cameras") for _ in range(10)]
            statuses.extend(status for status, _, _ in await asyncio.gather(*calls))
            await world.engine.close()

        for _ in range(3):
            asyncio.run(ask())
            server.simulator.expire_access_tokens()
            threads = [threading.Thread(target=asyncio.run, args=(ask(),)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert statuses == [200] * 150
        assert len(server.simulator.token_calls("refresh_token")) == 3
        world.net.shut_down()


def test_threads_share_one_engine(tmp_path) -> None:
    """49: a WSGI server's threads, at expiry too."""
    with SimulatorServer(clocked()) as server:
        world = Wired("wsgi", server.simulator, server.url)
        cookie = f"{NAME}={session_of(asyncio.run(world.login()))}".encode()
        statuses: list[int] = []

        def ask() -> None:
            statuses.extend(call_wsgi(world.app, cookie, "/cameras")[0] for _ in range(5))

        server.simulator.expire_access_tokens()
        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 150
        assert len(server.simulator.token_calls("refresh_token")) == 1
        world.engine.close()
        world.net.shut_down()


def test_a_fork_shares_no_socket_and_no_lock(tmp_path) -> None:
    """49: forked with a connection open and a lock held; children and parent go on."""
    with SimulatorServer(clocked()) as server:
        store = f"sqlite:///{tmp_path}/s.db"
        world = Wired("wsgi", server.simulator, server.url, store=store)
        server.simulator._clock = world.engine._clock
        cookie = f"{NAME}={session_of(asyncio.run(world.login()))}"
        # The program has the real clock, which is behind; so the token looks young to it.
        program = [sys.executable, "-m", "tests.security.forked", server.url, store, cookie]
        done = subprocess.run(
            program, capture_output=True, text=True, timeout=50, cwd=Path(__file__).parents[2]
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [200] * 25
        assert done.stderr == ""
        world.engine.close()
        world.net.shut_down()


async def test_a_reload_loses_no_session(make_world, tmp_path) -> None:
    """49: a new process on the same store; also one whose predecessor still runs."""
    one, two = two_processes(make_world, tmp_path)
    cookie = f"{NAME}={session_of(await one.login())}"
    assert await is_logged_in(two, cookie, "/cameras")
    await one.close()
    assert await is_logged_in(two, cookie, "/cameras")
    assert await is_logged_in(one, cookie, "/cameras")


async def test_with_the_store_gone_protected_paths_are_503_and_the_rest_works(
    make_world, tmp_path
) -> None:
    """50: Retry-After, no login, nobody logged out, and no restart when it is back."""
    path = tmp_path / "s.db"
    world = make_world(store=f"sqlite:///{path}", exempt=["/health"])
    browser = await world.login()
    cookies = list(browser.cookies.jar)
    away = tmp_path / "away"
    away.mkdir()
    await world.close()
    for file in tmp_path.glob("s.db*"):
        file.rename(away / file.name)
    path.mkdir()  # nobody can open that
    for _ in range(3):
        for method, target in (("GET", "/"), ("GET", "/cameras"), ("POST", "/data"),
                               ("POST", "/auth/logout"), ("GET", "/auth/session")):  # fmt: skip
            answer = await browser.request(method, target)
            assert answer.status_code == 503, target
            assert int(answer.headers["retry-after"]) >= 1
            assert "set-cookie" not in answer.headers
        assert (await browser.get("/health")).text == "nobody"
    stranger = world.browser()
    assert (await stranger.get("/cameras")).status_code == 302
    assert list(browser.cookies.jar) == cookies
    path.rmdir()
    for file in away.iterdir():
        file.rename(tmp_path / file.name)
    with anyio.fail_after(30):
        while (await browser.get("/cameras")).status_code != 200:
            await anyio.sleep(0.1)
    assert (await browser.get("/health")).text == "anna@example.com"


async def test_with_redis_gone_it_is_the_same(make_world) -> None:
    """50: a server that is stopped and started."""
    with redis_server() as server:
        world = make_world(store=server.url, exempt=["/health"])
        browser = await world.login()
        server.stop()
        answer = await browser.get("/cameras")
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert (await browser.get("/health")).text == "nobody"
        server.start()
        with anyio.fail_after(30):
            while (await browser.get("/cameras")).status_code == 503:
                await anyio.sleep(0.1)
        # It was started empty: that is a session that ended, and not an error.
        assert (await browser.get("/cameras")).status_code in (302, 400)
        assert (await world.login()).named(NAME)
