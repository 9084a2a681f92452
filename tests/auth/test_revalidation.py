"""A session is one application's, and its user is read anew while it lives."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest

from cm_auth_middleware import SessionExpiredError
from tests.helpers.world import HTML, JSON, World, both_providers

pytestmark = pytest.mark.anyio


class Rule:
    """An application's `allow`, which counts how often it is asked."""

    def __init__(self, answer: bool = True) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def __call__(self, user: Any) -> bool:
        self.asked.append(user["email"])
        return self.answer


async def settled(world: World) -> None:
    """Let what goes on beside requests come to its end."""
    await world.on_its_side(world.engine.close)


def elsewhere(make_world: Any, world: World, **options: Any) -> World:
    """Another application with the same key, store and cookie name."""
    other: World = make_world(beside=world, **options)
    return other


def cookie_of(browser: Any) -> dict[str, str]:
    return {"Cookie": f"cm_auth={browser.named('cm_auth')[0]}"}


@pytest.mark.parametrize(
    "options", [{"client_id": "another"}, {"scope": "read"}, {"client_id": "a", "scope": "read"}]
)
async def test_a_session_of_another_application_is_nobody(make_world, options) -> None:
    world = make_world()
    browser = await world.login()
    handle = (await browser.get("/export")).text
    other = elsewhere(make_world, world, **options)
    stranger = other.browser(**cookie_of(browser))
    assert (await stranger.get("/")).status_code == 302
    assert (await stranger.get("/auth/session")).json()["authenticated"] is False
    await stranger.post("/auth/logout")
    with pytest.raises(SessionExpiredError):
        await other.client_for(handle)
    assert (await browser.get("/")).status_code == 200  # and nothing happened to it


@both_providers
async def test_applications_with_one_key_store_client_and_scope_share_a_login(make_world) -> None:
    world = make_world()
    browser = await world.login()
    other = elsewhere(make_world, world)
    assert (await other.browser(**cookie_of(browser)).get("/")).status_code == 200


@both_providers
@pytest.mark.parametrize("answer", [True, False])
async def test_a_session_that_another_opened_is_asked_for_once(make_world, answer: bool) -> None:
    world = make_world()
    browser = await world.login()
    rule = Rule(answer)
    other = elsewhere(make_world, world, allow=rule)
    stranger = other.browser(**cookie_of(browser))
    for _ in range(3):
        page = await stranger.get("/")
        assert page.status_code == (200 if answer else 403)
    assert rule.asked == ["anna@example.com"]
    assert (await stranger.get("/cameras", headers=JSON)).status_code == (200 if answer else 403)
    assert (await stranger.get("/auth/session")).json()["authenticated"] is answer
    assert (await browser.get("/")).status_code == 200  # it is the other one's rule


@both_providers
@pytest.mark.slow
async def test_lists_of_addresses_hold_for_sessions_that_another_opened(make_world) -> None:
    world = make_world()
    anna, bob = await world.login(), await world.login("bob@example.com")
    other = elsewhere(make_world, world, allow_emails=["bob@example.com"])
    assert (await other.browser(**cookie_of(anna)).get("/")).status_code == 403
    assert (await other.browser(**cookie_of(bob)).get("/")).status_code == 200


@both_providers
async def test_an_exempt_path_shows_no_session_that_is_not_admitted(make_world) -> None:
    world = make_world()
    browser = await world.login()
    other = elsewhere(make_world, world, allow=Rule(answer=False), exempt=["/", "/health"])
    assert (await other.browser(**cookie_of(browser)).get("/health")).status_code == 200
    page = await other.browser(**cookie_of(browser)).get("/auth/session")
    assert page.json()["user"] is None


async def test_a_rule_that_raises_lets_nobody_of_another_in(make_world) -> None:
    world = make_world()
    browser = await world.login()

    def broken(user: Any) -> bool:
        raise RuntimeError("the directory is down")

    other = elsewhere(make_world, world, allow=broken)
    assert (await other.browser(**cookie_of(browser)).get("/")).status_code == 403
    assert (await browser.get("/")).status_code == 200


@both_providers
async def test_the_rule_is_not_asked_again_after_its_own_login(make_world) -> None:
    rule = Rule()
    world = make_world(allow=rule)
    browser = await world.login()
    await browser.get("/")
    assert rule.asked == ["anna@example.com"]


@both_providers
async def test_a_user_is_read_anew_after_a_quarter_of_an_hour(make_world) -> None:
    rule = Rule()
    world = make_world(allow=rule)
    browser = await world.login()
    world.sim.users[0].first_name = "Hannah"
    world.clock.tick(890)
    await browser.get("/")
    await settled(world)
    assert len(world.sim.calls(world.user_path)) == 1
    world.clock.tick(20)
    assert (await browser.get("/")).status_code == 200
    await settled(world)
    assert len(world.sim.calls(world.user_path)) == 2
    assert (await browser.get("/auth/session")).json()["user"]["firstName"] == "Hannah"
    await browser.get("/")
    await settled(world)
    assert len(world.sim.calls(world.user_path)) == 2
    assert rule.asked == ["anna@example.com"] * 2


@both_providers
async def test_a_user_who_may_no_longer_come_in_is_logged_out(make_world, caplog) -> None:
    """R23: somebody who was taken off the list."""
    rule, ended = Rule(), []
    world = make_world(allow=rule, on_logout=ended.append)
    caplog.set_level(logging.INFO)
    browser = await world.login()
    rule.answer = False
    world.clock.tick(3600)
    await browser.get("/")
    await settled(world)
    cookie = cookie_of(browser)
    program = await world.browser(**cookie).get("/cameras", headers=JSON)
    assert program.status_code == 403
    page = await browser.get("/")
    assert page.status_code == 403
    assert "You have no access" in page.text
    assert (await browser.get("/")).status_code == 302  # told once: the cookie is gone
    assert len(ended) == 1
    [revocation] = world.logouts()
    assert revocation in (200, 204)
    assert "session_denied" in caplog.text
    assert (await browser.get("/auth/session")).json()["authenticated"] is False


@both_providers
async def test_without_a_period_a_user_is_read_anew_at_each_refresh(make_world) -> None:
    rule = Rule()
    world = make_world(allow=rule, revalidate=None)
    browser = await world.login()
    world.clock.tick(40_000)
    await browser.get("/")
    await settled(world)
    assert len(world.sim.calls(world.user_path)) == 1
    rule.answer = False
    world.clock.tick(4_000)
    await browser.get("/")  # refreshes
    await settled(world)
    assert (await browser.get("/")).status_code == 403


@both_providers
@pytest.mark.parametrize("failure", [503, 401, "html", "drop", (200, [])])
async def test_while_the_user_cannot_be_read_nothing_changes(make_world, failure) -> None:
    rule = Rule()
    world = make_world(allow=rule, timeout=1)
    browser = await world.login()
    rule.answer = False
    world.clock.tick(1000)
    world.sim.fail_api(failure, times=100, path=world.user_path)
    for _ in range(5):
        assert (await browser.get("/")).status_code == 200
        await settled(world)
    tries = 2 if failure == 401 else 1  # the second with a new access token
    assert (
        len(world.sim.calls(world.user_path)) == 1 + tries
    )  # and it is not asked at every request
    world.clock.tick(61)
    assert (await browser.get("/")).status_code == 200
    await settled(world)
    assert len(world.sim.calls(world.user_path)) == 1 + 2 * tries
    assert rule.asked == ["anna@example.com"]


async def test_a_rule_that_raises_ends_nothing(make_world) -> None:
    answers = [True]

    def rule(user: Any) -> bool:
        if not answers:
            raise RuntimeError("the directory is down")
        return answers.pop()

    world = make_world(allow=rule)
    browser = await world.login()
    world.clock.tick(1000)
    await browser.get("/")
    await settled(world)
    assert (await browser.get("/")).status_code == 200


@both_providers
@pytest.mark.slow
async def test_a_logout_while_the_user_is_read_stays_one(make_world) -> None:
    world = make_world()
    browser = await world.login()
    cookie = cookie_of(browser)
    world.clock.tick(1000)
    world.sim.settings.latency = 0.2
    await browser.get("/")
    await world.browser(**cookie).post("/auth/logout")
    await anyio.sleep(0.5)
    assert (await world.browser(**cookie).get("/", headers=HTML)).status_code == 302


@both_providers
async def test_a_job_ends_when_its_user_may_no_longer_come_in(make_world) -> None:
    rule = Rule()
    world = make_world(allow=rule)
    browser = await world.login()
    handle = (await browser.get("/export")).text
    rule.answer = False
    world.clock.tick(1000)
    client = await world.client_for(handle)
    with pytest.raises(SessionExpiredError):
        await world.on_its_side(lambda: client.get(f"{world.root}/cameras"))


@both_providers
@pytest.mark.slow
async def test_several_processes_read_a_user_once(make_world) -> None:
    world = make_world()
    browser = await world.login()
    others = [elsewhere(make_world, world) for _ in range(3)]
    world.clock.tick(1000)
    world.sim.settings.latency = 0.1
    async with anyio.create_task_group() as group:
        for one in [world, *others]:
            group.start_soon(one.browser(**cookie_of(browser)).get, "/")
    await anyio.sleep(0.3)
    assert len(world.sim.calls(world.user_path)) == 2


async def test_a_user_whose_shared_tokens_ended_with_a_denial_is_out_too(make_world) -> None:
    """One account in two browsers: the first end revokes the tokens that both hold."""
    rule = Rule()
    world = make_world(allow=rule)
    one, two = await world.login(), await world.login()
    rule.answer = False
    world.clock.tick(1000)
    await one.get("/")
    await settled(world)
    assert (await one.get("/")).status_code == 403
    await two.get("/")  # its token is refused, and so is the refresh: that is an answer
    await settled(world)
    assert (await two.get("/")).status_code in (302, 403)


@both_providers
@pytest.mark.parametrize("rule", [{"allow": lambda _: False}, {"allow_accounts": ["7"]}])
async def test_a_handle_opens_nothing_for_an_application_that_does_not_admit_its_user(
    make_world, rule
) -> None:
    world = make_world()
    handle = (await (await world.login()).get("/export")).text
    other = elsewhere(make_world, world, **rule)
    with pytest.raises(SessionExpiredError):
        await other.client_for(handle)
    assert await world.client_for(handle)
