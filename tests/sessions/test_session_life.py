"""A session's life after the login: refresh, expiry, logout, outages."""

from __future__ import annotations

import asyncio
import gc
import json
import threading

import anyio
import pytest

from cm_auth_middleware import MemoryStore
from cm_auth_middleware.sessions.record import Tokens
from cm_auth_middleware.testing import Settings
from tests.helpers.world import CM, JSON, World, both_providers

pytestmark = pytest.mark.anyio


@both_providers
async def test_the_ready_client_reads_cameras(world: World) -> None:
    browser = await world.login()
    response = await browser.get("/cameras")
    assert response.json() == ["Front gate", "Parking lot", "Warehouse", "Loading dock"]


@both_providers
async def test_the_session_says_who_and_when_and_no_token(world: World) -> None:
    browser = await world.login()
    state = (await browser.get("/state")).json()
    assert state["client"]
    assert state["same"]
    assert state["scope"] == world.scope
    assert state["logged_in_at"] == world.clock.now
    assert state["expires_at"] == world.clock.now + world.lifetime
    token = world.sim.requests[1].headers["authorization"].split()[1]
    assert token not in state["repr"]


@both_providers
async def test_an_expired_access_token_is_renewed_before_the_handler_runs(world: World) -> None:
    browser = await world.login()
    world.clock.tick(43200)
    assert (await browser.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1
    assert [c.status for c in world.sim.calls(f"{world.api}/cameras")] == [200]


@both_providers
async def test_inside_the_leeway_one_refresh_goes_on_beside_the_requests(world: World) -> None:
    browser = await world.login()
    world.clock.tick(world.lifetime - 30)
    for _ in range(3):
        assert (await browser.get("/cameras")).status_code == 200
    await world.close()  # what goes on beside comes home
    assert len(world.sim.token_calls("refresh_token")) == 1


@both_providers
async def test_a_401_renews_the_token_and_repeats_the_request(world: World) -> None:
    browser = await world.login()
    world.sim.expire_access_tokens()
    assert (await browser.get("/cameras")).status_code == 200
    assert [c.status for c in world.sim.calls(f"{world.api}/cameras")] == [401, 200]
    assert len(world.sim.token_calls("refresh_token")) == 1


@both_providers
async def test_a_streamed_body_is_repeated_whole(world: World) -> None:
    browser = await world.login()
    world.sim.expire_access_tokens()
    body = b"0123456789" * 20_000

    async def chunks():
        for start in range(0, len(body), 7_000):
            yield body[start : start + 7_000]

    echo = (await browser.post("/upload", content=chunks())).json()
    assert echo["length"] == len(body)
    assert [c.body_length for c in world.sim.calls(f"{world.api}/echo")][-1] == len(body)


@both_providers
async def test_fifty_requests_at_expiry_make_one_token_call(make_world) -> None:
    world = make_world(settings=Settings(rotate_refresh_tokens=True, revoke_family_on_reuse=True))
    browser = await world.login()
    world.sim.settings.token_latency = 0.05
    statuses = []

    async def ask() -> None:
        statuses.append((await browser.get("/cameras")).status_code)

    for _ in range(2):
        world.clock.tick(43300)
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(ask)
    assert statuses == [200] * 100
    assert len(world.sim.token_calls("refresh_token")) == 2


async def test_two_browsers_of_one_account_share_a_refresh(world: World) -> None:
    one, two = await world.login(), await world.login()
    world.sim.settings.token_latency = 0.02
    world.sim.expire_access_tokens()
    statuses = []

    async def ask(browser) -> None:
        statuses.append((await browser.get("/cameras")).status_code)

    async with anyio.create_task_group() as group:
        for n in range(40):
            group.start_soon(ask, (one, two)[n % 2])
    for n in range(20):
        await ask((one, two)[n % 2])
    assert statuses == [200] * 60
    assert len(world.sim.token_calls("refresh_token")) == 1


async def test_sharing_survives_rotation_and_a_long_sleep(make_world) -> None:
    world = make_world(settings=Settings(rotate_refresh_tokens=True, revoke_family_on_reuse=True))
    one, two = await world.login(), await world.login()
    for _ in range(4):
        world.clock.tick(43300)
        assert (await one.get("/cameras")).status_code == 200
    assert (await two.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 4


@both_providers
@pytest.mark.parametrize("how", ["revoke", "expire", "disable"])
async def test_when_camera_manager_ends_the_grant_the_user_is_asked_to_log_in(
    make_world, how: str
) -> None:
    world = make_world()
    browser = await world.login()
    if how == "revoke":
        world.sim.revoke_user("anna@example.com")
    elif how == "disable":
        world.sim.expire_access_tokens()
        world.sim.disable_user("anna@example.com")
    else:
        world.sim.expire_access_tokens()
        world.sim.expire_refresh_tokens()
    world.clock.tick(120)
    response = await browser.get("/cameras")
    assert response.status_code == 302
    assert response.headers["location"].startswith(world.authorize)
    program = await browser.get("/cameras", headers=JSON)
    assert program.status_code == 401
    assert len(world.sim.token_calls("refresh_token")) == 1


@both_providers
@pytest.mark.parametrize(
    "what", [500, 503, 429, "html", "xml", "truncated", "drop", {"error": "invalid_client"}]
)
async def test_an_outage_never_logs_anybody_out(world: World, what) -> None:
    browser = await world.login()
    world.clock.tick(43300)
    world.sim.fail_token(what, times=1)
    response = await browser.get("/cameras")
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    world.clock.tick(2)
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
async def test_a_server_that_is_down_is_not_stormed(world: World) -> None:
    browser = await world.login()
    world.clock.tick(43300)
    world.sim.fail_token(503, times=100)
    for _ in range(20):
        assert (await browser.get("/cameras", headers=JSON)).status_code == 503
    assert len(world.sim.token_calls("refresh_token")) <= 2


@both_providers
async def test_inside_the_leeway_an_outage_is_not_noticed(world: World) -> None:
    browser = await world.login()
    world.clock.tick(world.lifetime - 30)
    world.sim.fail_token(503, times=100)
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
async def test_logout_ends_the_session_here_and_there(world: World) -> None:
    browser = await world.login()
    old = browser.named("cm_auth")[0]
    response = await browser.post("/auth/logout?next=/health")
    assert response.status_code == 303
    assert response.headers["location"] == "/health"
    assert browser.named("cm_auth") == []
    assert world.logouts() in ([204], [200])
    thief = world.browser(Cookie=f"cm_auth={old}")
    assert (await thief.get("/")).status_code == 302


@both_providers
async def test_a_logout_ends_each_session_that_the_browser_sends(world: World) -> None:
    """A neighbouring host may have set a second cookie of our name, on http."""
    anna, bob = await world.login(), await world.login("bob@example.com")
    cookies = [f"cm_auth={browser.named('cm_auth')[0]}" for browser in (anna, bob)]
    both = world.browser(Cookie="; ".join([*cookies, cookies[0]]))
    assert (await both.post("/auth/logout")).status_code == 303
    for cookie in cookies:
        assert (await world.browser(Cookie=cookie).get("/")).status_code == 302
    assert world.logouts() in ([204, 204], [200, 200])


@both_providers
async def test_a_login_ends_each_session_that_the_browser_sends(world: World) -> None:
    anna, bob = await world.login(), await world.login("bob@example.com")
    cookies = [f"cm_auth={browser.named('cm_auth')[0]}" for browser in (anna, bob)]
    both = world.browser()
    start = await both.get("/auth/login")
    pending = "; ".join(f"{c.name}={c.value}" for c in both.cookies.jar)
    url = both.callback_url(start.headers["location"])
    both.cookies.clear()
    answer = await both.get(url, headers={"Cookie": "; ".join([*cookies, pending])})
    assert answer.headers["location"] == "/"
    for cookie in cookies:
        assert (await world.browser(Cookie=cookie).get("/")).status_code == 302
    assert (await both.get("/")).text.endswith("anna@example.com")


@both_providers
async def test_two_logouts_at_once_are_one(make_world, side: str, caplog) -> None:
    """A double click: both find the session before either has ended it."""
    caplog.set_level("INFO", "cm_auth_middleware")
    met = threading.Barrier(2) if side == "wsgi" else asyncio.Barrier(2)
    logouts: list[str] = []

    class Meeting(MemoryStore):
        is_meeting = False

        async def delete(self, key: str) -> bytes | None:
            if self.is_meeting and len(key) == 64:
                met.wait(20) if side == "wsgi" else await asyncio.wait_for(met.wait(), 20)
            return await super().delete(key)

    store = Meeting()
    world = make_world(store=store, on_logout=lambda session: logouts.append(session.log_id))
    browser = await world.login()
    store.is_meeting = True
    answers: list[int] = []

    async def log_out() -> None:
        answers.append((await browser.post("/auth/logout")).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(log_out)
    assert answers == [303, 303]
    assert len(logouts) == 1
    events = [one.event for one in caplog.records if one.name == "cm_auth_middleware"]
    assert events == ["login", "logout"]


@both_providers
@pytest.mark.parametrize("side", ["asgi"])  # no server can cancel a thread
async def test_a_logout_goes_on_when_its_browser_leaves(make_world) -> None:
    deleted, go_on, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Waiting(MemoryStore):
        async def delete(self, key: str) -> bytes | None:
            found = await super().delete(key)
            if len(key) == 64:
                deleted.set()
                await asyncio.wait_for(go_on.wait(), 20)
            return found

    world = make_world(store=Waiting(), on_logout=lambda _: told.set())
    browser = await world.login()
    request = asyncio.create_task(browser.post("/auth/logout"))
    await asyncio.wait_for(deleted.wait(), 20)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    go_on.set()
    await asyncio.wait_for(told.wait(), 20)
    assert world.logouts() in ([204], [200])


@both_providers
async def test_logout_ends_the_session_even_when_camera_manager_is_down(world: World) -> None:
    browser = await world.login()
    cookie = browser.named("cm_auth")[0]
    del world.net.apps[CM]
    assert (await browser.post("/auth/logout")).status_code == 303
    thief = world.browser(Cookie=f"cm_auth={cookie}")
    assert (await thief.get("/")).status_code == 302


@both_providers
async def test_logout_by_get_shows_a_button_and_changes_nothing(world: World) -> None:
    browser = await world.login()
    response = await browser.get("/auth/logout?next=/cameras")
    assert response.status_code == 200
    assert '<form method="post" action="/auth/logout?next=/cameras">' in response.text
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}]
)
async def test_another_site_can_neither_log_out_nor_write(world: World, headers) -> None:
    browser = await world.login()
    assert (await browser.post("/auth/logout", headers=headers)).status_code == 403
    assert (await browser.post("/", headers=headers)).status_code == 403
    assert (await browser.post("/")).status_code == 200


@both_providers
async def test_a_logout_during_a_refresh_wins_and_revokes_the_new_tokens(world: World) -> None:
    browser = await world.login()
    cookie = browser.named("cm_auth")[0]
    world.clock.tick(43300)
    world.sim.settings.token_latency = 0.2
    statuses = []

    async def ask() -> None:
        statuses.append((await browser.get("/cameras", headers=JSON)).status_code)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(0.1)
        await world.browser(Cookie=f"cm_auth={cookie}").post("/auth/logout")
    assert statuses == [401]
    assert (await world.browser(Cookie=f"cm_auth={cookie}").get("/")).status_code == 302
    assert {200, 204}.intersection(world.logouts())


async def test_a_logout_in_one_browser_asks_the_other_to_log_in(world: World) -> None:
    one, two = await world.login(), await world.login()
    await one.post("/auth/logout")
    world.clock.tick(60)
    assert (await two.get("/cameras")).status_code == 302
    assert (await two.login("/cameras")).status_code == 200


@both_providers
async def test_idle_and_absolute_timeouts_end_a_session(make_world) -> None:
    world = make_world(idle_timeout=3600, absolute_timeout=3 * 3600)
    browser = await world.login()
    for _ in range(5):
        world.clock.tick(1800)
        assert (await browser.get("/")).status_code == 200
    world.clock.tick(1801)
    assert (await browser.get("/")).status_code == 302
    browser = await world.login()
    world.clock.tick(3601)
    assert (await browser.get("/")).status_code == 302


@both_providers
async def test_session_endpoint_tells_front_ends(world: World) -> None:
    browser = world.browser()
    info = await browser.get("/auth/session")
    assert info.json() == {"authenticated": False, "user": None, "expires_in": 0}
    await browser.login()
    info = (await browser.get("/auth/session")).json()
    assert info["authenticated"] is True
    assert info["user"]["email"] == "anna@example.com"
    assert info["expires_in"] == 7 * 86_400


@both_providers
async def test_data_is_saved_and_two_requests_both_keep_theirs(world: World) -> None:
    browser = await world.login()
    async with anyio.create_task_group() as group:
        for n in range(10):
            group.start_soon(lambda n=n: browser.post("/data", json={f"key{n}": n}))
    assert (await browser.get("/data")).json() == {f"key{n}": n for n in range(10)}


@both_providers
async def test_authenticated_answers_are_not_cached(world: World) -> None:
    browser = await world.login()
    response = await browser.get("/")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["vary"] == "Cookie"


@both_providers
async def test_the_cookie_is_opaque_and_locked_down(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    response = await browser.get(browser.callback_url(start.headers["location"]))
    cookie = next(c for c in response.headers.get_list("set-cookie") if c.startswith("cm_auth="))
    for attribute in ("HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=2592000"):
        assert attribute in cookie
    assert "Secure" not in cookie
    assert "Domain" not in cookie


@both_providers
async def test_an_altered_cookie_is_nobody(world: World) -> None:
    browser = await world.login()
    cookie = browser.named("cm_auth")[0]
    for n in (0, 40, 86, 87, len(cookie) - 2):
        forged = cookie[:n] + ("A" if cookie[n] != "A" else "B") + cookie[n + 1 :]
        response = await world.browser(Cookie=f"cm_auth={forged}").get("/")
        assert response.status_code == 302, n
    junk = world.browser(Cookie=f"cm_auth=junk; cm_auth={cookie}")
    assert (await junk.get("/")).status_code == 200


@both_providers
async def test_a_rotated_secret_key_keeps_sessions_and_signs_anew(make_world, world: World) -> None:
    browser = await world.login()
    cookie = browser.named("cm_auth")[0]
    newer = "new-" + "Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe"
    old = world.engine.config.secret_key[0]
    rotated = make_world(secret_key=[old, newer], store=world.engine.store)
    browser = rotated.browser(Cookie=f"cm_auth={cookie}")
    response = await browser.get("/")
    assert response.status_code == 200
    assert "cm_auth=" in response.headers["set-cookie"]
    removed = make_world(secret_key=newer, store=world.engine.store)
    response = await removed.browser(Cookie=f"cm_auth={cookie}").get("/")
    assert response.status_code == 302


@both_providers
async def test_asking_for_the_session_does_not_keep_it_alive(make_world) -> None:
    world = make_world(idle_timeout=1000)
    browser = await world.login()
    left = []
    for _ in range(9):
        world.clock.tick(100)
        left.append((await browser.get("/auth/session")).json()["expires_in"])
    assert left == [900, 800, 700, 600, 500, 400, 300, 200, 100]
    world.clock.tick(101)
    info = (await browser.get("/auth/session")).json()
    assert info == {"authenticated": False, "user": None, "expires_in": 0}
    assert (await browser.get("/")).status_code == 302


async def test_a_use_of_the_session_is_seen_by_who_asks_for_it(make_world) -> None:
    world = make_world(idle_timeout=1000)
    browser = await world.login()
    world.clock.tick(900)
    await browser.get("/")
    assert (await browser.get("/auth/session")).json()["expires_in"] == 1000


@both_providers
async def test_a_short_idle_timeout_does_not_end_a_session_that_is_used(make_world) -> None:
    world = make_world(idle_timeout=20)
    browser = await world.login()
    for _ in range(10):
        world.clock.tick(10)
        assert (await browser.get("/")).status_code == 200
    world.clock.tick(21)
    assert (await browser.get("/")).status_code == 302


async def test_a_new_secret_key_that_is_being_rolled_out_costs_no_session(make_world) -> None:
    world = make_world()
    browser = await world.login()
    cookie = {"Cookie": f"cm_auth={browser.named('cm_auth')[0]}"}
    newer = "new-" + "Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe"
    keys = [world.engine.config.secret_key[0], newer]
    ahead = make_world(secret_key=keys, store=world.engine.store)
    assert (await ahead.browser(**cookie).get("/")).status_code == 200  # sealed anew
    # A process that does not have the key yet cannot open it, and leaves it alone.
    assert (await world.browser(**cookie).get("/")).status_code == 302
    assert (await ahead.browser(**cookie).get("/")).status_code == 200


@both_providers
async def test_a_record_that_was_spoilt_is_removed_and_told_once(make_world, caplog) -> None:
    store = MemoryStore()
    world = make_world(store=store)
    browser = await world.login()
    [(key, sealed)] = await store.find(b"\x04")
    for spoilt in (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"\x80\x04junk", b"", b"\x01"):
        caplog.clear()
        await store.put(key, spoilt, 3600)
        for _ in range(3):
            assert (await browser.get("/", headers=JSON)).status_code == 401
        assert caplog.text.count("session_unreadable") == 1
        assert await store.get(key) is None


async def test_a_value_that_only_python_takes_for_the_same_is_saved(world: World) -> None:
    browser = await world.login()
    for value in (1, True, 1.5, {"on": 1}, {"on": True}, 0, False):
        await browser.post("/data", json={"key": value})
        assert (await browser.get("/data")).text.replace(" ", "").replace("\n", "") == (
            json.dumps({"key": value}, separators=(",", ":"))
        )


@both_providers
async def test_one_account_that_fails_keeps_no_other_from_its_refresh(world: World) -> None:
    anna, bob = await world.login(), await world.login("bob@example.com")
    world.clock.tick(43300)
    world.sim.fail_token(500, times=2)
    assert (await anna.get("/cameras")).status_code == 503
    world.clock.tick(0.3)
    assert (await anna.get("/cameras")).status_code == 503
    assert (await anna.get("/cameras")).status_code == 503  # it waits
    assert (await bob.get("/cameras")).status_code == 200


async def test_a_session_that_is_sealed_anew_amid_a_search_is_found(world: World) -> None:
    old, newer = world.engine.config.secret_key[0], "new-Zx9Yw8Vu7Ts6Rq5Po4Nm3Lk2Ji1Hg0Fe"
    browser = await world.login()
    cookie = browser.named("cm_auth")[0]

    class Moving(MemoryStore):
        """Whose sessions are used, and so sealed anew, after the first search."""

        searched = 0

        async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
            found = await super().find(prefix)
            self.searched += 1
            if self.searched == 1:
                await self.after_first()
            return found

    store = Moving(clock=world.clock)
    for key, value in await world.engine.store.find(b""):
        await store.put(key, value, 3600)
    rotated = World(secret_key=[old, newer], store=store)
    user = rotated.browser(Cookie=f"cm_auth={cookie}")

    async def use() -> None:
        assert (await user.get("/")).status_code == 200

    store.after_first = use
    assert await rotated.engine.logout_user(10003) == 1
    assert (await user.get("/")).status_code == 302
    await rotated.close()


def tokens_in_memory() -> set[str]:
    gc.collect()
    return {found.access_token for found in gc.get_objects() if isinstance(found, Tokens)}


@both_providers
@pytest.mark.slow  # it looks at every object of the process, twice
@pytest.mark.parametrize("end", ["logged out elsewhere", "left alone"])
async def test_the_tokens_of_a_session_do_not_stay_in_memory_when_it_is_over(
    make_world, world: World, end: str
) -> None:
    anna, bob = await world.login(), await world.login(email="bob@example.com")
    await anna.get("/")
    asked = world.sim.calls(world.user_path)[0]
    held = asked.headers["authorization"].removeprefix("Bearer ")
    assert held in tokens_in_memory()
    if end == "left alone":
        world.clock.tick(300)
        await bob.get("/")  # whoever comes next sweeps
    else:
        elsewhere = make_world(beside=world).browser()
        elsewhere.cookies.update(anna.cookies)
        assert (await elsewhere.post("/auth/logout")).status_code == 303
        assert (await anna.get("/")).status_code == 302
    assert held not in tokens_in_memory()
