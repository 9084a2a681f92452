"""Refreshes that others get in the way of: processes, logouts, logins, and a store that fails.

A second `World` beside the first is another process of the same site.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import httpx2
import pytest

from cm_auth_middleware import MemoryStore, Session, UnavailableError
from cm_auth_middleware.sessions.cookie import TicketSigner
from cm_auth_middleware.testing import Settings
from cm_auth_middleware.tokens import refresh
from cm_auth_middleware.tokens.circuit_breaker import CircuitBreaker
from tests.helpers.browser import Browser
from tests.helpers.stores import CountingStore, Hold
from tests.helpers.world import JSON, SECRET_KEY, Clock, World, both_providers

pytestmark = pytest.mark.anyio

LIFETIME = 43_199
STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}


def two_processes(
    settings: Settings | None = None, skew: float = 0.0, **options: Any
) -> tuple[World, World]:
    store = CountingStore(MemoryStore())
    one = World(store=store, settings=settings, **options)
    store.memory._clock = one.clock
    return one, World(beside=one, skew=skew, **options)


def same(browser: Browser, world: World) -> Browser:
    """The same browser at another process."""
    return world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")


def store_of(world: World) -> CountingStore:
    store = world.engine.store
    assert isinstance(store, CountingStore)
    return store


async def refreshing(group: Any, world: World, browser: Browser, into: list[int]) -> Hold:
    """Let a request refresh; return when it has its new tokens in hand and has told nobody."""
    world.sim.settings.token_latency = 0.05
    calls = len(world.sim.token_calls("refresh_token"))
    group.start_soon(ask, browser, into)
    while len(world.sim.token_calls("refresh_token")) == calls:  # noqa: ASYNC110 - the simulator tells nobody
        await anyio.sleep(0.001)
    held = store_of(world).hold("get", "gone.")  # the next look at the store after the answer
    await held.reached.wait()
    return held


async def ask(browser: Browser, into: list[int], path: str = "/cameras") -> None:
    into.append((await browser.get(path, headers=JSON)).status_code)


# -- a refresh and another process ---------------------------------------------------------


@pytest.mark.slow
async def test_who_comes_late_does_not_overwrite_what_a_successor_brought_home() -> None:
    one, two = two_processes()
    browser = await one.login()
    one.clock.tick(LIFETIME)
    statuses: list[int] = []
    held = store_of(one).hold("put", "grant.")
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses)
        await held.reached.wait()  # process one has its tokens in hand, and freezes
        one.clock.tick(60)  # its lease ends
        assert (await same(browser, two).get("/cameras")).status_code == 200
        held.released.set()
    assert statuses == [200]
    calls = len(one.sim.token_calls("refresh_token"))
    for world in (one, two, one):
        assert (await same(browser, world).get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == calls == 2


@pytest.mark.slow
async def test_who_comes_late_before_keeping_its_tokens_takes_those_of_the_successor() -> None:
    one, two = two_processes()
    browser, neighbour = await one.login(), await one.login()  # of one account
    one.clock.tick(LIFETIME)
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        held = await refreshing(group, one, browser, statuses)
        one.clock.tick(60)  # its lease ends
        assert (await same(browser, two).get("/cameras")).status_code == 200
        held.released.set()
    assert statuses == [200]
    assert (await neighbour.get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 2


@both_providers
async def test_who_comes_late_takes_its_lease_again_before_it_keeps_its_tokens(
    provider: str,
) -> None:
    one, two = two_processes(Settings(**STRICT), provider=provider)
    browser = await one.login()
    one.clock.tick(LIFETIME)
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        held = await refreshing(group, one, browser, statuses)
        one.clock.tick(60)  # its lease ends, and nobody has noticed
        keeping = store_of(one).hold("put", "grant.")
        held.released.set()
        await keeping.reached.wait()
        group.start_soon(ask, same(browser, two), statuses)
        await anyio.sleep(0.1)
        keeping.released.set()
    assert statuses == [200, 200]
    assert len(one.sim.token_calls("refresh_token")) == 1


async def test_a_refusal_does_not_count_when_somebody_else_has_brought_newer_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(refresh, "_LAPSED_PATIENCE", 0.0)  # the one that stood still comes later
    one, two = two_processes(Settings(rotate_refresh_tokens=True))
    browser, neighbour = await one.login(), await one.login()
    one.clock.tick(LIFETIME)
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        held = await refreshing(group, one, browser, statuses)
        one.clock.tick(60)
        one.sim.settings.token_latency = 0.2
        group.start_soon(ask, same(neighbour, two), statuses)  # offers the same refresh token
        await anyio.sleep(0.1)
        held.released.set()
    assert statuses == [200, 200]
    assert [c.status for c in one.sim.token_calls("refresh_token")] == [200, 400]


@both_providers
async def test_a_refusal_does_not_count_when_the_session_itself_has_newer_tokens(
    provider: str,
) -> None:
    one, two = two_processes(provider=provider)
    browser = await one.login()
    one.clock.tick(LIFETIME)
    one.sim.settings.token_latency = 0.2
    one.sim.fail_token({"error": "invalid_grant"})
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses, "/")
        await anyio.sleep(0.1)
        sessions = two.engine.async_services.sessions
        ticket = TicketSigner((SECRET_KEY,)).load(browser.named("cm_auth")[0])
        assert ticket is not None
        session = await sessions.load_record(ticket[0].record_id, ticket[0].cookie_key)
        assert session is not None
        until = one.clock.now + LIFETIME
        tokens = replace(session.record.tokens, access_token="x:1", expires_at=until)
        await sessions.update(session, lambda record: replace(record, tokens=tokens))
    assert statuses == [200]


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(("what", "status"), [(503, 503), ({"error": "invalid_grant"}, 401)])
async def test_who_waited_for_a_refresh_shares_its_failure(what, status, provider: str) -> None:
    one, two = two_processes(provider=provider)
    browser = await one.login()
    one.clock.tick(LIFETIME)
    one.sim.settings.token_latency = 0.3
    one.sim.fail_token(what, times=10)
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses)
        await anyio.sleep(0.1)
        group.start_soon(ask, same(browser, two), statuses)
    assert statuses == [status, status]
    assert len(one.sim.token_calls("refresh_token")) == 1


@both_providers
async def test_a_token_that_another_process_replaced_at_once_is_caught_up_with(
    provider: str,
) -> None:
    async def in_between(session: Session) -> None:
        one.sim.expire_access_tokens()
        assert (await same(browser, two).get("/cameras")).status_code == 200

    store = CountingStore(MemoryStore())
    one = World(store=store, on_refresh=in_between, provider=provider)
    two = World(beside=one, provider=provider)
    browser = await one.login()
    one.sim.expire_access_tokens()
    assert (await browser.get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 2


@pytest.mark.slow
async def test_two_sessions_of_a_grant_with_different_tokens_need_one_refresh() -> None:
    one, _ = two_processes()
    behind, ahead = await one.login(), await one.login()
    one.clock.tick(LIFETIME)
    assert (await ahead.get("/cameras")).status_code == 200
    one.sim.expire_access_tokens()
    statuses: list[int] = []
    before = len(one.sim.calls("/rest/v2.4/cameras"))
    held = store_of(one).hold("get", "grant.")
    async with anyio.create_task_group() as group:
        group.start_soon(ask, behind, statuses)
        await held.reached.wait()
        group.start_soon(ask, ahead, statuses)
        await anyio.sleep(0.1)
        held.released.set()
    assert statuses == [200, 200]
    assert len(one.sim.token_calls("refresh_token")) == 2
    refused = [c.status for c in one.sim.calls("/rest/v2.4/cameras")[before:]].count(401)
    assert refused <= 2


async def test_a_session_is_not_handed_newer_tokens_that_have_expired_too(make_world) -> None:
    world = make_world()
    active, asleep = await world.login(), await world.login()
    world.clock.tick(LIFETIME)
    await active.get("/cameras")
    world.clock.tick(LIFETIME)
    state = (await asleep.get("/state")).json()
    assert state["expires_at"] == world.clock.now + LIFETIME


@both_providers
async def test_a_clock_that_is_off_costs_a_second_refresh_and_no_session(provider: str) -> None:
    settings = Settings(**STRICT, access_token_lifetime=40)
    one, two = two_processes(settings, skew=90, provider=provider)
    browser = await one.login()
    for expiry in range(1, 6):
        one.clock.tick(41)
        for world in (one, two) * 10:
            assert (await same(browser, world).get("/cameras")).status_code == 200
        assert len(one.sim.token_calls("refresh_token")) <= 2 * expiry


@pytest.mark.slow
async def test_a_session_that_slept_through_many_rotations_catches_up() -> None:
    years = {"idle_timeout": 10**8, "absolute_timeout": 10**8}
    one, two = two_processes(Settings(**STRICT), **years)
    active, asleep = await one.login(), await two.login()
    for _ in range(100):
        one.clock.tick(LIFETIME)
        assert (await active.get("/cameras")).status_code == 200
    assert (await asleep.get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 100


# -- a refresh and a store that fails ------------------------------------------------------


@both_providers
async def test_new_tokens_are_saved_when_a_store_that_failed_is_back(provider: str) -> None:
    one, two = two_processes(Settings(**STRICT), provider=provider)
    store, browser = store_of(one), await one.login()
    one.clock.tick(LIFETIME)
    statuses: list[int] = []
    one.sim.settings.token_latency = 0.1
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses)
        await anyio.sleep(0.05)
        store.broken |= {"get", "put", "replace", "acquire", "delete", "release"}
        await anyio.sleep(0.3)
        store.broken.clear()
    assert statuses == [200]
    assert (await same(browser, two).get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 1


@both_providers
async def test_new_tokens_outlive_a_long_failure_of_the_store(
    monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    monkeypatch.setattr(refresh, "_SAVE_PATIENCE", 0.2)
    world, _ = two_processes(Settings(**STRICT), provider=provider)
    store, browser = store_of(world), await world.login()
    world.clock.tick(LIFETIME)
    statuses: list[int] = []
    world.sim.settings.token_latency = 0.1
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses)
        await anyio.sleep(0.05)
        store.broken |= {"get", "put", "replace", "acquire", "delete", "release"}
    assert statuses == [503]
    store.broken.clear()
    world.clock.tick(60)
    assert (await browser.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1


# -- a refresh and logins ------------------------------------------------------------------


async def test_a_login_that_ends_after_a_rotation_cuts_nobody_off() -> None:
    one, two = two_processes(Settings(**STRICT))
    browser = await one.login()
    # CameraManager gives the second login the tokens of the first; then they are rotated.
    start = await two.browser().get("/")
    newcomer = two.browser()
    newcomer.cookies.update(start.cookies)
    held = store_of(one).hold("get", "gone.")
    answers: list[httpx2.Response] = []

    async def log_in() -> None:
        answers.append(await newcomer.finish(start.headers["location"]))

    async with anyio.create_task_group() as group:
        group.start_soon(log_in)
        await held.reached.wait()
        one.sim.expire_access_tokens()
        assert (await browser.get("/cameras")).status_code == 200
        held.released.set()
    assert answers[0].status_code == 200
    for somebody in (newcomer, browser, same(newcomer, one), same(browser, two)):
        assert (await somebody.get("/cameras")).status_code == 200
    assert len(one.sim.token_calls("refresh_token")) == 1


async def test_a_login_while_a_grant_is_refreshed_that_a_logout_had_named() -> None:
    one, two = two_processes(skew=LIFETIME)  # so that it refreshes what others still use
    first, second = await one.login(), await one.login()
    one.sim.fail_api(503, times=9, path="/rest/*/tokens/current")
    await first.post("/auth/logout")  # CameraManager does not hear of it
    one.sim.settings.token_latency = 0.2
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, same(second, two), statuses)
        await anyio.sleep(0.1)
        one.sim.settings.token_latency = 0.0
        third = await one.login()
    assert statuses == [200]
    for browser in (second, third):
        assert (await browser.get("/cameras")).status_code == 200


# -- a refresh and logouts -----------------------------------------------------------------


@pytest.mark.parametrize("rotates", [False, True], ids=["lasting", "rotating"])
async def test_a_logout_with_old_tokens_ends_the_grant(make_world, rotates) -> None:
    world = make_world(settings=Settings(rotate_refresh_tokens=rotates))
    one, two = await world.login(), await world.login()
    world.clock.tick(LIFETIME)
    assert (await two.get("/cameras")).status_code == 200
    assert (await one.post("/auth/logout")).status_code == 303  # has not seen the new ones
    assert (await two.get("/cameras", headers=JSON)).status_code == 401
    assert world.sim.refresh_tokens == 0


@both_providers
async def test_a_logout_when_the_access_token_has_expired_ends_the_grant(make_world) -> None:
    world = make_world()
    browser = await world.login()
    world.clock.tick(LIFETIME)
    assert (await browser.post("/auth/logout")).status_code == 303
    assert world.sim.refresh_tokens == 0


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("settings", [Settings(), Settings(**STRICT)], ids=["lasting", "rotating"])
async def test_logout_user_in_a_refresh_revokes_what_it_brings_home(
    settings, provider: str
) -> None:
    one, two = two_processes(settings, provider=provider)
    browser = await one.login()
    one.clock.tick(LIFETIME)
    one.sim.settings.token_latency = 0.2
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, browser, statuses)
        await anyio.sleep(0.1)
        assert await two.engine.logout_user(two.user_id()) == 1
    assert statuses == [401]
    assert one.sim.refresh_tokens == 0


# -- a server that is down -----------------------------------------------------------------


@both_providers
@pytest.mark.slow
async def test_one_request_at_a_time_finds_out_whether_the_server_is_back(provider: str) -> None:
    world = World(provider=provider)
    users = ("anna@example.com", "bob@example.com")
    browsers = [await world.login(user) for user in users]
    world.clock.tick(LIFETIME)
    world.sim.fail_token(503, times=2)
    for browser in browsers:
        assert (await browser.get("/cameras", headers=JSON)).status_code == 503
    world.clock.tick(2)
    world.sim.settings.token_latency = 0.2
    statuses: list[int] = []
    async with anyio.create_task_group() as group:
        for browser in browsers:
            group.start_soon(ask, browser, statuses)
    assert sorted(statuses) == [200, 503]
    assert len(world.sim.token_calls("refresh_token")) == 3
    for browser in browsers:
        assert (await browser.get("/cameras")).status_code == 200


@pytest.mark.parametrize("side", ["wsgi"])
async def test_a_process_at_its_limit_of_threads_still_refreshes(
    make_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(exempt=("/health",))
    browser = await world.login()
    world.clock.tick(LIFETIME)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("cm_auth") or isinstance(thread, threading.Timer):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert (await browser.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1
    world.engine.thread_services.sessions.is_at_hand = False  # as with a store elsewhere
    assert (await browser.get("/health")).status_code == 200


async def test_retry_after_is_rounded_up(make_world: Any) -> None:
    """Who comes back as soon as it says must not be refused again."""
    world = make_world()
    users = ("anna@example.com", "bob@example.com")
    browsers = [await world.login(user) for user in users]
    world.clock.tick(LIFETIME)
    world.sim.fail_token(503, times=2)
    for browser in browsers:
        assert (await browser.get("/cameras", headers=JSON)).status_code == 503
    world.clock.tick(0.6)  # of two seconds, for the one that failed last
    answer = await browsers[1].get("/cameras", headers=JSON)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    world.clock.tick(1.4)
    assert (await browsers[1].get("/cameras")).status_code == 200


async def never(seconds: float) -> None:
    raise AssertionError(f"waits {seconds} s")


async def test_after_one_failure_a_request_waits_for_a_moment_and_after_more_it_fails() -> None:
    clock, waits = Clock(), []
    breaker = CircuitBreaker(clock)

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    await breaker.wait("a", never)
    breaker.failed("a", 1.0)
    await breaker.wait("a", sleep)
    assert waits == [0.25]
    breaker.enter("a", 10)
    breaker.failed("a", 1.0)
    with pytest.raises(UnavailableError) as caught:
        await breaker.wait("a", never)
    assert caught.value.retry_after == 1.0
    clock.tick(1)
    await breaker.wait("a", never)
    breaker.enter("a", 10)
    with pytest.raises(UnavailableError):
        breaker.enter("a", 10)
    breaker.succeeded()
    breaker.enter("a", 10)
    breaker.enter("a", 10)


async def test_the_server_s_own_retry_after_counts_and_a_clock_that_is_set_back_does_not() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    breaker.failed("a", 30.0)
    assert breaker.retry_in("a") == 30.0
    clock.tick(-3600)
    assert breaker.retry_in("a") == 0.0
    with suppress(UnavailableError):
        await breaker.wait("a", never)


async def test_only_the_grant_that_fails_waits_until_another_fails_too() -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    breaker.failed("a", 1.0)
    breaker.failed("a", 1.0)
    assert (breaker.retry_in("a"), breaker.retry_in("b")) == (1.0, 0.0)
    breaker.failed("b", 1.0)
    assert breaker.retry_in("c") == 1.0
    assert breaker.retry_in("b") == 2.0  # the others first
    clock.tick(1)
    assert breaker.retry_in("c") == 0.0
    breaker.enter("c", 10)
    with pytest.raises(UnavailableError):
        breaker.enter("d", 10)
    breaker.succeeded()
    assert breaker.retry_in("b") == 0.0
