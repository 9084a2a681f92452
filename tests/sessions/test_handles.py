"""Jobs outside any request: a handle of the session, a ready client, and when it is dead."""

from __future__ import annotations

import base64
import logging
import pickle
from typing import Any

import anyio.to_thread
import httpx2
import pytest

from cm_auth_middleware import (
    AuthEngine,
    SessionDataError,
    SessionExpiredError,
    UnavailableError,
)
from tests.helpers.apps import api
from tests.helpers.stores import BrokenStore
from tests.helpers.world import CM, SECRET_KEY, World, both_providers

pytestmark = pytest.mark.anyio

DAY = 86_400


async def session_of(world: World, handle: str) -> Any:
    """The session of a handle, for this side."""
    if world.side == "wsgi":
        return await anyio.to_thread.run_sync(world.engine.sync_session_for, handle)
    return await world.engine.session_for(handle)


class Job:
    """A job: the client of a handle, for an event loop or for threads as the side is."""

    def __init__(self, world: World, engine: AuthEngine | None = None) -> None:
        self.engine = engine or world.engine
        self.in_threads = world.side == "wsgi"
        self.client: Any = None

    async def open(self, handle: str) -> Job:
        if self.in_threads:
            self.client = await anyio.to_thread.run_sync(self.engine.sync_client_for, handle)
        else:
            self.client = await self.engine.client_for(handle)
        return self

    async def get(self, path: str = "") -> httpx2.Response:
        path = path or f"{api(self.client)}/cameras"
        if self.in_threads:
            return await anyio.to_thread.run_sync(self.client.get, path)
        return await self.client.get(path)


async def exported(world: World, email: str = "anna@example.com") -> tuple[Any, str]:
    browser = await world.login(email)
    return browser, (await browser.get("/export")).text


@both_providers
async def test_a_job_acts_for_the_user_who_agreed(world: World) -> None:
    _, anna = await exported(world)
    _, bob = await exported(world, "bob@example.com")
    for handle, email in ((anna, "anna@example.com"), (bob, "bob@example.com")):
        job = await Job(world).open(handle)
        user = world.user_path.removeprefix(job.client.base_url.path.rstrip("/"))
        assert (await job.get(user)).json()["email"] == email
    assert isinstance(
        job.client, httpx2.Client if world.side == "wsgi" else httpx2.AsyncClient
    )  # fmt: skip


@both_providers
async def test_a_handle_leads_to_the_session_too_whose_data_can_be_read(world: World) -> None:
    browser, handle = await exported(world)
    await browser.post("/data", json={"theme": "dark"})
    session = await session_of(world, handle)
    assert session.user["email"] == "anna@example.com"
    assert session.data == {"theme": "dark"}
    with pytest.raises(SessionDataError):
        session.data["theme"] = "light"
    await browser.post("/auth/logout")
    with pytest.raises(SessionExpiredError):
        await session_of(world, handle)


@both_providers
async def test_a_handle_comes_from_the_hooks_too(make_world) -> None:
    handles: list[str] = []
    ended: list[Any] = []

    def on_logout(session: Any) -> None:
        with pytest.raises(SessionExpiredError):
            session.export()
        ended.append(session)

    def keep(session: Any) -> None:
        handles.append(session.export())

    world = make_world(on_login=keep, on_refresh=keep, on_logout=on_logout)
    browser = await world.login()
    world.clock.tick(43_300)
    await browser.get("/cameras")
    assert len(handles) == 2
    for handle in handles:
        assert (await (await Job(world).open(handle)).get()).status_code == 200
    await browser.post("/auth/logout")
    assert len(ended) == 1


@both_providers
async def test_refreshes_are_shared_with_the_live_session(world: World) -> None:
    browser, handle = await exported(world)
    job = await Job(world).open(handle)
    world.clock.tick(43_300)
    assert (await job.get()).status_code == 200
    assert (await browser.get("/cameras")).status_code == 200
    world.sim.expire_access_tokens()
    assert (await browser.get("/cameras")).status_code == 200
    assert (await job.get()).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 2
    assert [c.status for c in world.sim.calls(f"{world.api}/cameras") if c.status == 401] == [401]


@both_providers
async def test_a_job_ends_with_a_logout_at_once(world: World) -> None:
    browser, handle = await exported(world)
    job = await Job(world).open(handle)
    world.sim.fail_api(503, path="/rest/v2.0/users/self/tokens/current")  # they live on
    await browser.post("/auth/logout")
    before = len(world.sim.requests)
    with pytest.raises(SessionExpiredError):
        await job.get()
    with pytest.raises(SessionExpiredError):
        await Job(world).open(handle)
    assert len(world.sim.requests) == before


@both_providers
async def test_a_job_ends_when_an_administrator_ends_the_sessions(world: World) -> None:
    _, handle = await exported(world)
    job = await Job(world).open(handle)
    user_id = world.user_id()
    if world.side == "asgi":
        await world.engine.logout_user(user_id)
    else:
        await anyio.to_thread.run_sync(world.engine.logout_user, user_id)
    with pytest.raises(SessionExpiredError):
        await job.get()


@both_providers
async def test_a_job_ends_when_camera_manager_ends_the_grant(world: World) -> None:
    browser, handle = await exported(world)
    job = await Job(world).open(handle)
    world.sim.revoke_user("anna@example.com")
    with pytest.raises(SessionExpiredError):
        await job.get()
    world.clock.tick(61)
    assert (await browser.get("/")).status_code == 302


@both_providers
async def test_a_job_does_not_put_off_the_idle_timeout(make_world) -> None:
    world = make_world(idle_timeout=2 * DAY)
    _, handle = await exported(world)
    job = await Job(world).open(handle)
    for _ in range(3):
        world.clock.tick(15 * 3600)
        assert (await job.get()).status_code == 200
    world.clock.tick(4 * 3600)  # 49 hours, and the access token is 4 hours old
    before = len(world.sim.requests)
    with pytest.raises(SessionExpiredError):
        await job.get()
    with pytest.raises(SessionExpiredError):
        await Job(world).open(handle)
    assert len(world.sim.requests) == before


@both_providers
async def test_the_absolute_timeout_ends_a_job_whose_user_is_busy(make_world) -> None:
    world = make_world(absolute_timeout=3 * DAY)
    browser, handle = await exported(world)
    for _ in range(5):
        world.clock.tick(DAY / 2)
        await browser.get("/cameras")
        await (await Job(world).open(handle)).get()
    world.clock.tick(DAY / 2)
    with pytest.raises(SessionExpiredError):
        await Job(world).open(handle)


@both_providers
async def test_a_handle_is_no_cookie_and_a_cookie_is_no_handle(world: World) -> None:
    browser, handle = await exported(world)
    cookie = browser.named("cm_auth")[0]
    raw = handle.removeprefix("cmauth1.")
    for value in (handle, raw, cookie.partition(".")[0]):
        thief = world.browser(Cookie=f"cm_auth={value}")
        assert (await thief.get("/")).status_code == 302
    for value in (cookie, f"cmauth1.{cookie}"):
        with pytest.raises(SessionExpiredError):
            await Job(world).open(value)


@pytest.mark.slow
@both_providers
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "",
        lambda _: "cmauth1.",
        lambda handle: handle[:-1],
        lambda handle: handle + "A",
        lambda handle: handle[:30] + ("A" if handle[30] != "A" else "B") + handle[31:],
        lambda handle: handle.replace("cmauth1.", "cmauth2."),
        lambda handle: "cmauth1." + "!" * (len(handle) - 8),
        lambda handle: "cmauth1." + "\x00" * (len(handle) - 8),
        lambda handle: "cmauth1." + "é" * (len(handle) - 8),
        lambda handle: handle * 10_000,
        lambda handle: base64.b64encode(pickle.dumps(handle)).decode(),
    ],
)
async def test_a_damaged_handle_opens_nothing(world: World, damage) -> None:
    _, handle = await exported(world)
    with pytest.raises(SessionExpiredError):
        await Job(world).open(damage(handle))
    assert (await (await Job(world).open(handle)).get()).status_code == 200


def another(world: World, **options: Any) -> AuthEngine:
    """An engine of another process: the same store and key."""
    shared = {
        "client_id": world.sim.client_id,
        "client_secret": world.sim.client_secret,
        "secret_key": SECRET_KEY,
        "provider": world.engine.config.provider,
        "base_url": CM,
        "store": world.engine.store,
    }
    return AuthEngine(transport=world.net, clock=world.clock, **{**shared, **options})


@both_providers
async def test_a_handle_outlives_a_change_of_the_secret_key(world: World) -> None:
    _, handle = await exported(world)
    new = "n3w" + SECRET_KEY[::-1]
    rotated = another(world, secret_key=[SECRET_KEY, new])
    assert (await (await Job(world, rotated).open(handle)).get()).status_code == 200
    for foreign in (another(world, secret_key=new), another(world, store="memory://")):
        with pytest.raises(SessionExpiredError):
            await Job(world, foreign).open(handle)


@both_providers
async def test_a_handle_tells_nothing(world: World, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    browser, handle = await exported(world)
    again = (await browser.get("/export")).text
    assert handle[8:40] != again[8:40]
    cookie = base64.urlsafe_b64decode(browser.named("cm_auth")[0].partition(".")[0] + "==")
    sealed = base64.urlsafe_b64decode(handle.removeprefix("cmauth1.") + "=")
    assert cookie[:32] not in sealed
    assert cookie[32:] not in sealed
    job = await Job(world).open(handle)
    await job.get()
    assert handle not in repr(job.client)
    assert handle not in caplog.text


@both_providers
async def test_a_store_that_is_gone_ends_nothing(make_world) -> None:
    store = BrokenStore()
    world = make_world(store=store)
    store._clock = world.clock
    _, handle = await exported(world)
    job = await Job(world).open(handle)
    store.broken = True
    with pytest.raises(UnavailableError):
        await job.get()
    with pytest.raises(UnavailableError):
        await Job(world).open(handle)
    store.broken = False
    assert (await job.get()).status_code == 200
