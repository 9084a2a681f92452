"""What is logged: stable names, one record each with its fields, and never a secret."""

from __future__ import annotations

import json
import logging
import re
import runpy
from pathlib import Path

import pytest

import cm_auth_middleware
from cm_auth_middleware import MemoryStore, StoreError, events
from tests.helpers.world import CM, World, both_providers

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
SOURCES = list(Path(cm_auth_middleware.__file__).parent.rglob("*.py"))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture):
    """The events that were logged, with their fields."""
    caplog.set_level(logging.DEBUG, logger="cm_auth_middleware")
    plain = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def read() -> list[dict[str, object]]:
        records = [r for r in caplog.records if r.name == "cm_auth_middleware"]
        caplog.clear()
        return [{k: v for k, v in vars(r).items() if k not in plain} for r in records]

    return read


def test_every_event_is_documented_and_used() -> None:
    hook = runpy.run_path(str(DOCS / "_hooks" / "events.py"))
    page = hook["on_page_markdown"]((DOCS / "signals.md").read_text())
    documented = dict(re.findall(r"^\| `(\w+)` \| ([A-Z]+) \| .+ \|$", page, re.MULTILINE))
    levels = {name: logging.getLevelName(event.level) for name, event in events.EVENTS.items()}
    assert documented == levels
    code = "\n".join(path.read_text() for path in SOURCES)
    used = set(re.findall(r'\blog\(\s*"(\w+)"', code))
    assert used == set(events.EVENTS)


def test_every_field_is_documented() -> None:
    code = "\n".join(path.read_text() for path in SOURCES if path.name != "events.py")
    for name, arguments in re.findall(r'\blog\(\s*"(\w+)"(.*)\)', code):
        for field in set(re.findall(r"(\w+)=", arguments)) - {"exc_info"}:
            assert f"`{field}`" in events.EVENTS[name].description, (name, field)


@both_providers
async def test_a_life_of_a_session_is_a_row_of_events(world: World, logged) -> None:
    browser = await world.login()
    (login,) = logged()
    assert login["event"] == "login"
    assert re.fullmatch(r"[0-9a-f]{8}", str(login["session"]))
    world.clock.tick(43_300)
    await browser.get("/cameras")
    assert logged() == [{"event": "refreshed", "expires_in": world.lifetime}]
    await browser.post("/auth/logout")
    assert logged() == [{"event": "logout", "session": login["session"]}]
    json.dumps(login)


@both_providers
async def test_what_goes_wrong_in_a_login_says_what_and_not_whose(make_world, logged) -> None:
    world = make_world(allow=lambda user: user["email"] != "anna@example.com")
    browser = world.browser()
    await browser.login()
    assert logged() == [{"event": "login_denied"}]
    await browser.get("/auth/callback?code=abcdef&state=x")
    assert logged() == [{"event": "login_stale"}]
    for error, named in (("access_denied", "access_denied"), ("x%0aFAKE=1", "another")):
        start = await browser.get("/")
        url = browser.callback_url(start.headers["location"])
        await browser.get(re.sub(r"code=\w+", f"error={error}", url))
        assert logged() == [{"event": "login_cancelled", "error": named}]
    start = await browser.get("/")
    world.sim.fail_token({"error": "invalid_client"})
    await browser.get(browser.callback_url(start.headers["location"]))
    key, failed = logged()
    assert key == {"event": "api_key_refused", "error": "invalid_client"}
    assert failed == {
        "event": "login_failed",
        "reason": "the server answered invalid_client",
    }


@both_providers
async def test_what_goes_wrong_later_does_so_too(world: World, logged, caplog) -> None:
    browser = await world.login()
    reference = logged()[0]["session"]
    world.clock.tick(43_300)
    del world.net.apps[CM]
    await browser.get("/cameras")
    failed, unavailable = logged()
    assert failed["event"] == "refresh_failed"
    assert unavailable["event"] == "unavailable"
    assert failed["reason"] == unavailable["reason"]
    world.net.add(CM, world.sim)
    world.clock.tick(5)
    world.sim.revoke_user("anna@example.com")
    await browser.get("/cameras")
    assert logged() == [
        {"event": "refresh_refused", "error": "invalid_grant"},
        {"event": "session_ended", "session": reference},
    ]


class BrokenStore(MemoryStore):
    async def replace(self, *_: object) -> bool:
        raise StoreError("read-only")


async def test_a_touch_that_fails_is_logged_and_nobody_notices(make_world, logged) -> None:
    world = make_world(store=BrokenStore())
    browser = await world.login()
    reference = logged()[0]["session"]
    world.clock.tick(61)
    assert (await browser.get("/")).status_code == 200
    assert logged() == [{"event": "touch_failed", "session": reference, "reason": "read-only"}]


async def test_a_hook_that_raises_is_logged_with_its_traceback(make_world, caplog) -> None:
    def on_login(session) -> None:
        raise RuntimeError("the hook's own")

    await make_world(on_login=on_login).login()
    (record,) = [r for r in caplog.records if getattr(r, "event", "") == "hook_failed"]
    assert (record.levelname, record.hook) == ("ERROR", "on_login")
    assert "the hook's own" in caplog.text


async def test_silenced_events_are_not_built(world: World, caplog) -> None:
    caplog.set_level(logging.ERROR, logger="cm_auth_middleware")
    await world.login()
    assert [r for r in caplog.records if r.name == "cm_auth_middleware"] == []
