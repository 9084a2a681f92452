"""The route ``health``: a load balancer learns if the store can be used, and nothing else."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import anyio
import httpx2
import pytest

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware, MemoryStore
from cm_auth_middleware.auth import health
from tests.helpers.servers import redis_server, until
from tests.helpers.stores import CountingStore, HangingStore
from tests.helpers.world import MakeWorld
from tests.security.routed import OPTIONS, asgi_app, wsgi_app

pytestmark = pytest.mark.anyio

WELL, ILL = b'{"status":"ok"}', b'{"status":"unavailable"}'


@pytest.fixture
def asked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No result is given again, so that a test need not wait."""
    monkeypatch.setattr(health, "_REUSED", 0.0)


@pytest.mark.parametrize("cookie", ["", "cm_auth=nonsense", "cm_auth=x; other=y"])
async def test_a_store_that_works_is_200_without_a_session(
    make_world: MakeWorld, cookie: str
) -> None:
    world = make_world()
    browser = world.browser(**({"Cookie": cookie} if cookie else {}))
    answer = await browser.get("/auth/health")
    assert (answer.status_code, answer.content) == (200, WELL)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"
    assert "set-cookie" not in answer.headers
    head = await browser.head("/auth/health")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(WELL))
    refused = await browser.post("/auth/health")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.usefixtures("asked_each_time")
async def test_a_store_that_fails_is_503_without_a_reason_until_it_works(
    make_world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """R13: a probe has no cookie."""
    store = CountingStore(MemoryStore())
    browser = make_world(store=store).browser()
    store.broken.add("ping")
    with caplog.at_level(logging.WARNING, "cm_auth_middleware"):
        for _ in range(3):
            answer = await browser.get("/auth/health")
            assert (answer.status_code, answer.content) == (503, ILL)
            assert answer.headers["cache-control"] == "no-store"
    assert [record.event for record in caplog.records] == ["unhealthy"]  # once, with the reason
    assert "broken on purpose" in caplog.text
    store.broken.clear()
    assert (await browser.get("/auth/health")).status_code == 200


@pytest.mark.slow
@pytest.mark.usefixtures("asked_each_time")
async def test_a_store_that_hangs_is_503_within_a_second(make_world: MakeWorld) -> None:
    store = HangingStore()
    browser = make_world(store=store).browser()
    assert (await browser.get("/auth/health")).status_code == 200
    store.hangs = True
    for _ in range(3):
        began = time.monotonic()
        assert (await browser.get("/auth/health")).status_code == 503
        assert time.monotonic() - began < 1
    store.hangs = False
    until(lambda: store.hanging == 0) if store._blocks else await anyio.sleep(0.05)
    assert (await browser.get("/auth/health")).status_code == 200


@pytest.mark.slow
async def test_a_crowd_of_probes_asks_the_store_once_a_second(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_PATIENCE", 60.0)
    store = HangingStore()
    world = make_world(store=store)
    answers: list[httpx2.Response] = []

    async def probe() -> None:
        answers.append(await world.browser().get("/auth/health"))

    store.hangs = True
    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(probe)
        await anyio.sleep(0.3)
        store.hangs = False
    for _ in range(30):
        await probe()
    assert {answer.status_code for answer in answers} == {200}
    assert store.asked["ping"] <= 1 + (time.monotonic() - began) / health._REUSED


@pytest.mark.slow
async def test_probes_of_a_store_that_hangs_do_not_pile_up(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_REUSED", 0.0)
    monkeypatch.setattr(health, "_PATIENCE", 0.02)
    store = HangingStore()
    browser = make_world(store=store).browser()
    store.hangs = True
    for _ in range(20):
        assert (await browser.get("/auth/health")).status_code == 503
    assert store.hanging <= 8
    store.hangs = False


async def test_it_is_served_below_a_mount_and_under_another_prefix(side: str) -> None:
    options = {**OPTIONS, "prefix": "/sso"}
    if side == "asgi":
        app = CMAuthMiddleware(asgi_app(), **options)
        transport = httpx2.ASGITransport(app=app, root_path="/ui")
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answers = [await client.get(path) for path in ("/ui/sso/health", "/ui/auth/health")]
    else:
        wsgi = CMAuthWSGIMiddleware(wsgi_app(), **options)
        mounted = httpx2.WSGITransport(app=wsgi, script_name="/ui")
        with httpx2.Client(transport=mounted, base_url="http://localhost") as client:
            answers = [client.get(path) for path in ("/sso/health", "/auth/health")]
    assert answers[0].content == WELL
    assert answers[1].status_code == 401  # no route of ours, and nothing is exempt


async def test_a_sqlite_file_that_cannot_be_written_is_503(
    make_world: MakeWorld, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for folder, status in (tmp_path, 200), (tmp_path / "file", 503):
        browser = make_world(store=f"sqlite:///{folder / 'sessions.db'}").browser()
        assert (await browser.get("/auth/health")).status_code == status


@pytest.mark.slow
@pytest.mark.usefixtures("asked_each_time")
async def test_a_redis_that_stands_still_or_has_no_memory_is_503_within_a_second(
    make_world: MakeWorld,
) -> None:
    """R13: and one that is stopped."""
    with redis_server() as server:
        browser = make_world(store=server.url).browser()
        assert (await browser.get("/auth/health")).status_code == 200
        server.pause()
        try:
            for _ in range(3):
                began = time.monotonic()
                assert (await browser.get("/auth/health")).status_code == 503
                assert time.monotonic() - began < 1
        finally:
            server.resume()
        deadline = time.monotonic() + 10
        while (await browser.get("/auth/health")).status_code != 200:
            assert time.monotonic() < deadline
            await anyio.sleep(0.1)
        server.command("CONFIG", "SET", "maxmemory", "1")
        assert (await browser.get("/auth/health")).status_code == 503
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert (await browser.get("/auth/health")).status_code == 200
        server.stop()
        assert (await browser.get("/auth/health")).status_code == 503
