"""What the proxies keep of the API's answers: for whom, for how long, and what is never kept."""

from __future__ import annotations

import gc
import gzip
import re
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import ConfigError, MemoryStore
from cm_auth_middleware.errors import StoreError
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.proxy_cache import MOST_KEPT, ProxyCache
from tests.helpers.apps import make_app, make_wsgi_app, names
from tests.helpers.browser import ANNA, BOB, Browser
from tests.helpers.world import World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SNAPSHOT = "/rest/v2.4/cameras/2001/snapshot"
ALLOW = ["GET /rest/v2.4/cameras", "GET /rest/v2.4/cameras/*", "GET /odd/*", "POST /odd/*"]
CACHE = {"/rest/v2.4/cameras/*/snapshot": 10, "GET /rest/v2.4/cameras": 10, "/odd/*": 10}
SNAPSHOT_V3 = "/media/liveImage.jpeg"
ALLOW_V3 = ["GET /cameras", f"GET {SNAPSHOT_V3}", "GET /odd/*", "POST /odd/*"]
CACHE_V3 = {SNAPSHOT_V3: 10, "GET /cameras": 10, "/odd/*": 10}
FETCH = {"Accept": "*/*", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}
JPEG = [("Content-Type", "image/jpeg")]


@pytest.fixture
def make_cached(make_world: Callable[..., World], side: str, provider: str) -> Callable[..., World]:
    allow, cache = (ALLOW_V3, CACHE_V3) if provider == "eagleeye" else (ALLOW, CACHE)

    def make(*, proxy: dict[str, Any] | None = None, **options: Any) -> World:
        given = {"allow": allow, "cache": cache, **(proxy or {})}
        if side == "asgi":
            app: Any = make_app([Mount("/cm", CMProxy(**given))])
        else:
            app = DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(**given)})
        return make_world(app=app, **options)

    return make


@pytest.fixture
def cached(make_cached: Callable[..., World]) -> World:
    return make_cached()


class Odd:
    """A server in front of the simulator that gives any answer under /odd, and counts.

    Attributes:
        bodies: of the answers; the last one is repeated.
        refused: the bearer tokens that get 403.
        calls: the headers of each request.
        gate: what each answer waits for.
    """

    def __init__(self, world: World, **values: Any) -> None:
        self.status = 200
        self.headers = JPEG
        self.bodies = [b"picture"]
        self.refused: set[str] = set()
        self.calls: list[dict[str, str]] = []
        self.gate: anyio.Event | None = None
        self._simulator = world.sim
        self.__dict__.update(values)
        world.put_before_the_server(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "/odd/" not in scope["path"]:
            await self._simulator(scope, receive, send)
            return
        given = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.calls.append(given)
        # An event of another event loop, on the WSGI side.
        await until(lambda: self.gate is None or self.gate.is_set())
        is_refused = given["authorization"].removeprefix("Bearer ") in self.refused
        status = 403 if is_refused else self.status
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        body = self.bodies.pop(0) if len(self.bodies) > 1 else self.bodies[0]
        body = b"refused" if is_refused else body
        await send({"type": "http.response.body", "body": body})


def root_of(world: World) -> str:
    """Where the API is below the proxy."""
    return "" if world.api == "/api/v3.0" else world.api


def picture(world: World, query: str = "") -> str:
    """Return the path of the picture of a camera."""
    base = f"{SNAPSHOT}?" if root_of(world) else f"{SNAPSHOT_V3}?deviceId=000007d1&"
    return f"{base}{query}".rstrip("?&")


async def get(browser: Browser, path: str = "", **headers: str) -> httpx2.Response:
    """Ask the proxy; for the picture of a camera if no path is given."""
    path = path or picture(browser.world)
    method = headers.pop("method", "GET")
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    return await browser.request(method, f"/cm{path}", headers={**FETCH, **named})


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that another request or thread does."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - it may be on another event loop
            await anyio.sleep(0.005)


def snapshots(world: World) -> int:
    return len(world.sim.calls(SNAPSHOT) + world.sim.calls(f"/api/v3.0{SNAPSHOT_V3}"))


def colleagues(world: World) -> None:
    """Put Bob into Anna's account, with the same cameras."""
    anna, bob = world.sim.users
    bob.account_id, bob.cameras = anna.account_id, list(anna.cameras)


def token_of(world: World, email: str) -> str:
    """Return the access token of the last login of a user."""
    tokens = [name for name, token in world.sim._tokens.access.items() if token.email == email]
    return str(tokens[-1])


# -- kept, and for how long ---------------------------------------------------------------------


@both_providers
async def test_a_snapshot_is_made_once_for_all_sessions_of_a_user(cached: World) -> None:
    browsers = [await cached.login() for _ in range(3)]
    first = await get(browsers[0])
    assert (first.status_code, first.headers["content-type"]) == (200, "image/jpeg")
    cached.clock.tick(4)
    for browser in browsers:
        answer = await get(browser)
        assert answer.content == first.content
        assert answer.headers["age"] == "4"
        assert answer.headers["etag"] == first.headers["etag"]
        assert answer.headers["last-modified"] == first.headers["last-modified"]
        assert answer.headers["content-length"] == str(len(first.content))
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "no-store" in answer.headers["cache-control"]
        assert "Cookie" in answer.headers["vary"]
    assert "age" not in first.headers
    assert snapshots(cached) == 1


@both_providers
async def test_a_picture_is_kept_for_its_seconds(cached: World) -> None:
    browser = await cached.login()
    odd = Odd(cached, bodies=[b"one", b"two", b"three"])
    assert (await get(browser, "/odd/x")).content == b"one"
    cached.clock.tick(9.9)
    assert (await get(browser, "/odd/x")).content == b"one"
    cached.clock.tick(0.2)
    assert (await get(browser, "/odd/x")).content == b"two"
    cached.clock.tick(-3600)  # the clock of the machine was set
    assert (await get(browser, "/odd/x")).content == b"three"
    assert len(odd.calls) == 3


@both_providers
@pytest.mark.slow
async def test_another_query_is_another_picture(cached: World) -> None:
    browser = await cached.login()
    for _ in range(2):
        small = await get(browser, picture(cached, "resolution=320x180"))
        large = await get(browser, picture(cached, "resolution=640x360"))
        assert small.content != large.content
    assert snapshots(cached) == 2


@both_providers
@pytest.mark.slow
async def test_what_no_rule_names_is_not_kept(make_cached: Callable[..., World]) -> None:
    world = make_cached(proxy={"cache": {"/odd/kept": 10}})
    browser = await world.login()
    odd = Odd(world)
    for path, calls in (("/odd/kept", 1), ("/odd/other", 2)):
        odd.calls.clear()
        for _ in range(2):
            assert (await get(browser, path)).content == b"picture"
        assert len(odd.calls) == calls


@both_providers
@pytest.mark.slow
async def test_without_cache_nothing_is_kept(make_cached: Callable[..., World]) -> None:
    world = make_cached(proxy={"cache": None})
    browser = await world.login()
    for _ in range(2):
        assert "age" not in (await get(browser)).headers
    assert snapshots(world) == 2


@both_providers
async def test_a_write_is_neither_kept_nor_answered_from_what_is_kept(cached: World) -> None:
    browser = await cached.login()
    odd = Odd(cached)
    await get(browser, "/odd/x")
    for _ in range(2):
        answer = await browser.post(
            "/cm/odd/x", headers={**FETCH, "Origin": "http://localhost:8000"}
        )
        assert answer.status_code == 200
    assert len(odd.calls) == 3


@both_providers
async def test_browsers_that_take_anything_share_and_others_do_not(cached: World) -> None:
    browser = await cached.login()
    odd = Odd(cached)
    chrome = "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8"
    firefox = "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5"
    for accept in (chrome, firefox, "*/*", "text/html, */* ; q=0.1"):
        await get(browser, "/odd/x", accept=accept, accept_language="nl", accept_encoding="br")
    assert len(odd.calls) == 1
    assert (odd.calls[0]["accept"], odd.calls[0]["accept-encoding"]) == ("*/*", "identity")
    assert "accept-language" not in odd.calls[0]
    for accept in ("image/jpeg", "application/json", "image/png, */*;q=0"):
        for _ in range(2):
            await get(browser, "/odd/x", accept=accept)
    assert [call["accept"] for call in odd.calls[1:]] == [
        "image/jpeg", "application/json", "image/png, */*;q=0",
    ]  # fmt: skip


@both_providers
@pytest.mark.slow
async def test_the_age_of_a_cache_before_this_one_counts(cached: World) -> None:
    browser = await cached.login()
    Odd(cached, headers=[*JPEG, ("Age", "100"), ("ETag", 'W/"7"'), ("Last-Modified", "x")])
    await get(browser, "/odd/x")
    cached.clock.tick(2)
    answer = await get(browser, "/odd/x")
    assert answer.headers["age"] == "102"
    assert (answer.headers["etag"], answer.headers["last-modified"]) == ('W/"7"', "x")


@both_providers
@pytest.mark.slow
async def test_cookies_of_the_api_are_not_kept(cached: World) -> None:
    browser = await cached.login()
    odd = Odd(
        cached, headers=[*JPEG, ("Set-Cookie", "a=b"), ("Cache-Control", "no-cache, no-store")]
    )
    for _ in range(2):
        answer = await get(browser, "/odd/x")
        assert "set-cookie" not in answer.headers
        assert answer.headers["cache-control"] == "private, no-cache, no-store"
    assert len(odd.calls) == 1


# -- one call for all who wait ------------------------------------------------------------------


async def at_once(odd: Odd, calls: list[Callable[[], Any]]) -> list[httpx2.Response]:
    """Begin some requests; let the server answer once one has arrived and all others wait."""
    odd.gate = anyio.Event()
    answers: dict[int, httpx2.Response] = {}

    async def ask(number: int) -> None:
        answers[number] = await calls[number]()

    async with anyio.create_task_group() as group:
        for number in range(len(calls)):
            group.start_soon(ask, number)
        await until(lambda: odd.calls)
        await anyio.sleep(0.2)
        odd.gate.set()
    return [answers[number] for number in range(len(calls))]


@both_providers
async def test_twenty_viewers_cost_one_call(cached: World) -> None:
    browsers = [await cached.login() for _ in range(4)]
    odd = Odd(cached)
    calls = [lambda browser=browser: get(browser, "/odd/x") for browser in browsers * 5]
    answers = await at_once(odd, calls)
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"picture")] * 20
    assert len(odd.calls) == 1
    assert sorted(answer.headers.get("age", "new") for answer in answers) == ["0"] * 19 + ["new"]


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_is_too_busy_is_asked_once_and_nothing_is_kept(
    cached: World, status: int
) -> None:
    browsers = [await cached.login() for _ in range(2)]
    odd = Odd(cached, status=status, headers=[("Retry-After", "3")], bodies=[b"busy"])
    answers = await at_once(odd, [lambda b=b: get(b, "/odd/x") for b in browsers * 3])
    assert {(a.status_code, a.headers["retry-after"], a.content) for a in answers} == {
        (status, "3", b"busy")
    }
    assert len(odd.calls) == 1
    odd.status, odd.bodies = 200, [b"picture"]
    assert (await get(browsers[0], "/odd/x")).content == b"picture"


@both_providers
@pytest.mark.slow
async def test_only_200_is_kept(cached: World) -> None:
    browser = await cached.login()
    for status in (201, 204, 206, 400, 403, 404, 302, 429, 500, 503, 401):
        odd = Odd(cached, status=status, bodies=[b"" if status == 204 else b"odd"])
        first, second = [await get(browser, f"/odd/{status}") for _ in range(2)]
        assert first.status_code == second.status_code == (502 if status in (401, 302) else status)
        assert "age" not in second.headers
        assert ("content-length" in second.headers) is (status != 204)
        assert len(odd.calls) >= 2
        odd = Odd(cached)
        assert (await get(browser, f"/odd/{status}")).content == b"picture"
        assert len(odd.calls) == 1


@both_providers
@pytest.mark.slow
async def test_a_call_that_fails_fails_for_all_who_wait_and_is_not_kept(cached: World) -> None:
    browsers = [await cached.login() for _ in range(2)]
    calls = 0

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(0.3)
        raise httpx2.ConnectError("down")

    cached.put_before_the_server(broken)
    statuses: list[int] = []

    async def ask(browser: Browser) -> None:
        statuses.append((await get(browser)).status_code)

    async with anyio.create_task_group() as group:
        for browser in browsers * 3:
            group.start_soon(ask, browser)
    assert (statuses, calls) == ([502] * 6, 1)
    cached.put_before_the_server(cached.sim)
    assert (await get(browsers[0])).status_code == 200


@both_providers
@pytest.mark.slow
async def test_a_session_that_is_over_does_not_end_those_who_wait_with_it(cached: World) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    odd = Odd(cached)
    for browser in (anna, bob):  # both may read it
        await get(browser, "/odd/x")
    cached.clock.tick(11)
    odd.calls.clear()
    odd.bodies, odd.gate = [b"picture"], anyio.Event()
    answers: dict[str, httpx2.Response] = {}

    async def ask(name: str, browser: Browser) -> None:
        answers[name] = await get(browser, "/odd/x")

    odd.refused = {token_of(cached, ANNA)}
    async with anyio.create_task_group() as group:
        group.start_soon(ask, "anna", anna)
        await until(lambda: odd.calls)
        group.start_soon(ask, "bob", bob)
        await anyio.sleep(0.2)
        odd.gate.set()
    assert answers["anna"].status_code == 403
    assert (answers["bob"].status_code, answers["bob"].content) == (200, b"picture")
    cached.sim.revoke_user(ANNA)
    cached.clock.tick(11)
    assert (await get(anna)).status_code == 401
    assert (await get(bob)).status_code == 200


# -- for whom -----------------------------------------------------------------------------------


@both_providers
async def test_two_accounts_share_nothing(cached: World) -> None:
    odd = Odd(cached, bodies=[b"of anna", b"of bob"])
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    for _ in range(2):
        assert (await get(anna, "/odd/x")).content == b"of anna"
        assert (await get(bob, "/odd/x")).content == b"of bob"
    assert len(odd.calls) == 2


@both_providers
async def test_the_users_of_an_account_share_once_each_may_read_it(cached: World) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    await get(anna)
    await get(bob)
    assert snapshots(cached) == 2  # each with their own token, once
    for second in range(11, 56, 11):
        cached.clock.tick(11)
        made = await get(anna)
        shared = await get(bob)
        assert shared.content == made.content
        assert snapshots(cached) == 2 + second // 11
    cached.clock.tick(30)  # a minute after Bob's own answer
    await get(anna)
    before = snapshots(cached)
    await get(bob)
    assert snapshots(cached) == before + 1


@both_providers
async def test_a_user_who_is_refused_sees_no_picture_of_another_user(cached: World) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    odd = Odd(cached, refused={token_of(cached, BOB)})
    for _ in range(2):
        assert (await get(anna, "/odd/x")).content == b"picture"
        answer = await get(bob, "/odd/x")
        assert (answer.status_code, answer.content) == (403, b"refused")
    assert len(odd.calls) == 3
    odd.refused = set()
    await get(bob, "/odd/x")
    assert (await get(bob, "/odd/x")).content == b"picture"
    odd.refused = {token_of(cached, BOB)}  # his right is taken away
    cached.clock.tick(11)
    assert (await get(bob, "/odd/x")).status_code == 403
    assert (await get(anna, "/odd/x")).content == b"picture"
    assert (await get(bob, "/odd/x")).status_code == 403  # though he might have seen it a while ago
    odd.refused = set()
    assert (await get(bob, "/odd/x")).content == b"picture"
    odd.refused = {token_of(cached, BOB)}  # while the calls of others keep the picture new
    for _ in range(7):
        cached.clock.tick(10)
        await get(anna, "/odd/x")
        refusal = await get(bob, "/odd/x")
    assert refusal.status_code == 403


@both_providers
@pytest.mark.slow
async def test_what_is_no_picture_is_kept_for_its_user_alone(cached: World) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    cached.sim.users[1].cameras = cached.sim.users[1].cameras[:1]
    for _ in range(3):
        assert len(names(await get(anna, f"{root_of(cached)}/cameras"))) == 4
        assert len(names(await get(bob, f"{root_of(cached)}/cameras"))) == 1
    assert len(cached.sim.calls(f"{cached.api}/cameras")) == 2


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(
    "header",
    [
        ("Cache-Control", "max-age=9, Private"),
        ("Cache-Control", 'max-age=9, private="etag"'),
        ("Vary", "Origin, authorization"),
    ],
)
async def test_what_the_api_calls_private_is_kept_for_its_user_alone(
    cached: World, header: tuple[str, str]
) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    odd = Odd(cached, headers=[*JPEG, header], bodies=[b"of anna", b"of bob"])
    for _ in range(3):
        assert (await get(anna, "/odd/x")).content == b"of anna"
        assert (await get(bob, "/odd/x")).content == b"of bob"
    assert len(odd.calls) == 2


@both_providers
@pytest.mark.slow
async def test_no_header_names_what_is_kept_for_another_user(cached: World) -> None:
    colleagues(cached)
    anna, bob = await cached.login(ANNA), await cached.login(BOB)
    odd = Odd(cached, headers=[("Content-Type", "text/plain")], bodies=[b"of anna", b"of bob"])
    await get(anna, "/odd/x")
    user = f"user {cached.user_id()}"
    for accept in (user, f"*/*\t{user}", f"*/* {user}", f"text/plain\t{user}"):
        assert (await get(bob, "/odd/x", accept=accept)).content == b"of bob"
    assert len(odd.calls) == 5


@pytest.mark.slow
async def test_without_an_account_a_user_shares_with_nobody(cached: World) -> None:
    colleagues(cached)
    for number, account in enumerate((None, "", True, {"id": 1}, [501])):
        for user in cached.sim.users:
            user.account_id = account  # type: ignore[assignment]
        browsers = [await cached.login(email) for email in (ANNA, ANNA, BOB)]
        for browser in browsers * 2:
            assert (await get(browser, picture(cached, str(number)))).status_code == 200
        assert snapshots(cached) == 2 * (number + 1)


@pytest.mark.slow
async def test_without_a_user_id_a_session_shares_with_nobody(cached: World) -> None:
    for user in cached.sim.users:
        user.account_id = user.user_id = None  # type: ignore[assignment]
    browsers = [await cached.login() for _ in range(2)]
    for browser in browsers * 2:
        assert (await get(browser)).status_code == 200
    assert snapshots(cached) == 2


# -- not past a logout --------------------------------------------------------------------------


@both_providers
async def test_the_logout_of_the_last_session_drops_all(cached: World) -> None:
    anna, again = await cached.login(), await cached.login()
    await get(anna)
    assert (await anna.post("/auth/logout")).status_code == 303
    # CameraManager's users have one grant, which is over now: only the cache can answer here.
    odd = Odd(cached)
    assert (await get(anna)).status_code == 401
    assert (await again.post("/auth/logout")).status_code == 303
    del odd
    cached.put_before_the_server(cached.sim)
    fresh = await cached.login()
    assert "age" not in (await get(fresh)).headers
    assert snapshots(cached) == 2


@both_providers
@pytest.mark.slow
async def test_a_session_that_stays_keeps_the_pictures(make_cached: Callable[..., World]) -> None:
    world = make_cached()
    world.sim.settings.shared_access_token = False
    anna, again = await world.login(), await world.login()
    await get(anna)
    await get(again)
    await anna.post("/auth/logout")
    assert (await get(again)).headers["age"] == "0"
    assert snapshots(world) == 1


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("how", ["logout", "logout_user", "timeout"])
async def test_however_the_last_session_ends_nothing_is_left(
    make_cached: Callable[..., World], how: str
) -> None:
    world = make_cached(proxy={"cache": {"/odd/*": 100_000}}, idle_timeout=900)
    Odd(world)
    anna = await world.login()
    await get(anna, "/odd/x")
    if how == "logout":
        await anna.post("/auth/logout")
    elif how == "logout_user":
        await world.on_its_side(lambda: world.engine.logout_user(world.user_id()))
    else:
        world.clock.tick(1000)
        await get(anna, "/odd/x")  # the end is noticed
    assert kept(world) == 0
    assert "age" not in (await get(await world.login(), "/odd/x")).headers


@both_providers
async def test_a_call_under_way_leaves_nothing_past_the_logout(cached: World) -> None:
    anna = await cached.login()
    odd = Odd(cached, gate=anyio.Event())
    async with anyio.create_task_group() as group:
        group.start_soon(get, anna, "/odd/x")
        await until(lambda: odd.calls)
        await anna.post("/auth/logout")
        assert odd.gate is not None
        odd.gate.set()
    assert kept(cached) == 0
    assert "age" not in (await get(await cached.login(), "/odd/x")).headers


@both_providers
@pytest.mark.slow
async def test_a_logout_in_another_process_counts_too(make_cached: Callable[..., World]) -> None:
    one = make_cached()
    other = make_cached(beside=one)
    anna = await one.login()
    await get(anna)
    elsewhere = other.browser()
    elsewhere.cookies = anna.cookies
    assert (await elsewhere.post("/auth/logout")).status_code == 303
    assert "age" not in (await get(await one.login())).headers
    assert snapshots(one) == 2
    assert "age" in (await get(await one.login())).headers  # with a session that still lives


class Forgetful(MemoryStore):
    """A store that fails for some keys."""

    fails_for: frozenset[str] = frozenset()

    async def get(self, key: str) -> bytes | None:
        if key in self.fails_for:
            raise StoreError("it cannot be asked")
        return await super().get(key)


@both_providers
@pytest.mark.slow
async def test_a_store_that_cannot_say_who_is_logged_in_costs_a_call(
    make_cached: Callable[..., World],
) -> None:
    store = Forgetful()
    world = make_cached(store=store)
    world.sim.settings.shared_access_token = False
    anna, again = await world.login(), await world.login()
    await get(anna)
    store.fails_for = frozenset(cache_of(world)._account_of)
    assert len(store.fails_for) == 1
    assert "age" not in (await get(again)).headers
    assert snapshots(world) == 2


# -- how much -----------------------------------------------------------------------------------


def cache_of(world: World) -> ProxyCache:
    services = world.engine.async_services if world.side == "asgi" else world.engine.thread_services
    found = [one for one in gc.get_objects() if isinstance(one, ProxyCache)]
    [cache] = [cache for cache in found if cache._runtime is services.runtime]
    return cache


def kept(world: World) -> int:
    """Return how many answers are in memory."""
    return len(cache_of(world)._answers)


@both_providers
@pytest.mark.slow
async def test_what_is_too_old_leaves_the_memory_by_itself(cached: World) -> None:
    browser = await cached.login()
    await get(browser)
    assert kept(cached) == 1
    cached.clock.tick(11)
    await until(lambda: not kept(cached))


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("says", [True, False])
async def test_a_large_answer_streams_and_is_not_kept(cached: World, says: bool) -> None:
    browser = await cached.login()
    body = b"x" * (MOST_KEPT + 1)
    length = [("Content-Length", str(len(body)))] if says else [("Transfer-Encoding", "chunked")]
    odd = Odd(cached, headers=[*JPEG, *length], bodies=[body])
    for _ in range(2):
        answer = await get(browser, "/odd/x")
        assert (answer.status_code, len(answer.content)) == (200, len(body))
        assert "age" not in answer.headers
    assert len(odd.calls) == 3  # one showed how large it is
    part = await get(browser, "/odd/x", range="bytes=0-1")
    assert odd.calls[-1]["range"] == "bytes=0-1"
    assert part.status_code == 200
    cached.clock.tick(61)
    odd.bodies, odd.headers = [b"small"], [*JPEG, ("Content-Length", "5")]
    for _ in range(2):
        assert (await get(browser, "/odd/x")).content == b"small"
    assert len(odd.calls) == 5


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(
    "header", [("Vary", "*"), ("Vary", "Accept, *"), ("Content-Encoding", "gzip")]
)
async def test_what_other_browsers_might_not_want_is_not_kept(
    cached: World, header: tuple[str, str]
) -> None:
    browser = await cached.login()
    body = gzip.compress(b"picture") if header[1] == "gzip" else b"picture"
    odd = Odd(cached, headers=[*JPEG, header], bodies=[body])
    for _ in range(2):
        answer = await get(browser, "/odd/x")
        assert answer.content == b"picture"
        assert "age" not in answer.headers
    assert len(odd.calls) == (2 if header[1] == "gzip" else 3)  # one showed that it is for one


@both_providers
@pytest.mark.slow
async def test_a_coding_that_nobody_asked_for_goes_to_those_who_wait(cached: World) -> None:
    browsers = [await cached.login() for _ in range(2)]
    headers = [*JPEG, ("Content-Encoding", "gzip")]
    odd = Odd(cached, headers=headers, bodies=[gzip.compress(b"picture")])
    answers = await at_once(odd, [lambda b=b: get(b, "/odd/x") for b in browsers * 3])
    assert [a.content for a in answers] == [b"picture"] * 6
    assert {a.headers["content-encoding"] for a in answers} == {"gzip"}
    assert len(odd.calls) == 1
    assert not kept(cached)


@pytest.mark.slow
async def test_pictures_share_the_memory_of_the_other_caches(
    make_cached: Callable[..., World],
) -> None:
    world = make_cached(cache_size=1_000_000)
    browser = await world.login()
    odd = Odd(world, headers=[*JPEG, ("Content-Length", "300000")], bodies=[bytes(300_000)])
    for number in range(8):
        assert len((await get(browser, f"/odd/{number}")).content) == 300_000
        assert world.engine._cache_memory.used <= 1_000_000
    assert kept(world) == 3
    await get(browser, "/odd/7")
    assert len(odd.calls) == 8


# -- conditions and ranges ----------------------------------------------------------------------

BODY = bytes(range(100))


CONDITIONS: list[tuple[dict[str, str], int, bytes | None]] = [
    ({"if_none_match": '"1"'}, 304, b""),
    ({"if_none_match": 'W/"1"'}, 304, b""),
    ({"if_none_match": '"0", "1"'}, 304, b""),
    ({"if_none_match": "*"}, 304, b""),
    ({"if_none_match": '"2"'}, 200, BODY),
    ({"if_none_match": "1"}, 200, BODY),
    ({"if_modified_since": "Wed, 01 Jan 2025 00:00:00 GMT"}, 304, b""),
    ({"if_modified_since": "Thu, 02 Jan 2025 00:00:00 GMT"}, 304, b""),
    ({"if_modified_since": "Tue, 31 Dec 2024 00:00:00 GMT"}, 200, BODY),
    ({"if_modified_since": "yesterday"}, 200, BODY),
    ({"if_modified_since": "Wed, 99 Jan 99999999999 00:00:00 GMT"}, 200, BODY),
    ({"if_none_match": '"2"', "if_modified_since": "Thu, 02 Jan 2025 00:00:00 GMT"}, 200, BODY),
    ({"if_match": '"1"'}, 200, BODY),
    ({"if_match": "*"}, 200, BODY),
    ({"if_match": '"2"'}, 412, None),
    ({"if_match": 'W/"1"'}, 412, None),
    ({"if_unmodified_since": "Wed, 01 Jan 2025 00:00:00 GMT"}, 200, BODY),
    ({"if_unmodified_since": "Tue, 31 Dec 2024 00:00:00 GMT"}, 412, None),
    ({"range": "bytes=10-19"}, 206, BODY[10:20]),
    ({"range": "bytes=90-"}, 206, BODY[90:]),
    ({"range": "bytes=-5"}, 206, BODY[95:]),
    ({"range": "bytes=-500"}, 206, BODY),
    ({"range": "bytes=50-999"}, 206, BODY[50:]),
    ({"range": "bytes=100-"}, 416, None),
    ({"range": "bytes=-0"}, 416, None),
    ({"range": "bytes=5-4"}, 200, BODY),
    ({"range": "bytes=-"}, 200, BODY),
    ({"range": "bytes=0-1,5-6"}, 200, BODY),
    ({"range": "pages=0-1"}, 200, BODY),
    ({"range": "bytes=a-b"}, 200, BODY),
    ({"range": "bytes=0-1", "if_range": '"1"'}, 206, BODY[:2]),
    ({"range": "bytes=0-1", "if_range": "Wed, 01 Jan 2025 00:00:00 GMT"}, 206, BODY[:2]),
    ({"range": "bytes=0-1", "if_range": '"2"'}, 200, BODY),
    ({"range": "bytes=0-1", "if_none_match": '"1"'}, 304, b""),
    ({"method": "HEAD"}, 200, b""),
    ({"method": "HEAD", "range": "bytes=0-1"}, 200, b""),
    ({"method": "HEAD", "if_none_match": '"1"'}, 304, b""),
]


@both_providers
async def test_conditions_and_ranges_are_answered_here(cached: World) -> None:
    browser = await cached.login()
    validators = [("ETag", '"1"'), ("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")]
    odd = Odd(cached, headers=[*JPEG, *validators], bodies=[BODY])
    for number, (headers, status, body) in enumerate(CONDITIONS):
        for _ in range(2):  # of what has just come, and of what is kept
            answer = await get(browser, f"/odd/{number}", **headers)
            assert answer.status_code == status, headers
            if body is not None:
                assert answer.content == body, headers
                assert (answer.headers["etag"], answer.headers["accept-ranges"]) == ('"1"', "bytes")
            if status == 206 and body is not None:
                start = BODY.index(body)
                wanted = f"bytes {start}-{start + len(body) - 1}/100"
                assert answer.headers["content-range"] == wanted
            if status == 416:
                assert answer.headers["content-range"] == "bytes */100"
            if status == 304:
                assert "content-type" not in answer.headers
            elif headers.get("method") == "HEAD":
                assert answer.headers["content-length"] == "100"
    assert len(odd.calls) == len(CONDITIONS)
    assert not {"if-none-match", "range", "if-range"} & {name for c in odd.calls for name in c}


# -- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", [CMProxy, CMWSGIProxy])
@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"rest": 10}, "cache has the rule"),
        ({"POST /odd/*": 10}, "no rule of allow"),
        ({"/rest/v2.4/users/*": 10}, "no rule of allow"),
        ({"/odd/*": 0}, "number of seconds"),
        ({"/odd/*": -1}, "number of seconds"),
        ({"/odd/*": True}, "number of seconds"),
        ({"/odd/*": "10"}, "number of seconds"),
        ({"/odd/*": float("inf")}, "number of seconds"),
        ({"/odd/*": float("nan")}, "number of seconds"),
        ({3: 10}, "cache has the rule"),
    ],
)
def test_a_wrong_rule_is_refused_at_start_up(proxy: Any, cache: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        proxy(allow=ALLOW, cache=cache)
