"""The audit log: who logged in and out, from where, and who was refused; in a logger of its own."""

from __future__ import annotations

import json
import logging
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

import cm_auth_middleware
from cm_auth_middleware import audit_log
from cm_auth_middleware.events import JSONFormatter
from tests.helpers.world import MakeWorld, World, both_providers
from tests.ways_in.conftest import Lines, Read

pytestmark = pytest.mark.anyio

ANNA = "10003"
DOCS = Path(__file__).parents[2] / "docs"
SOURCES = list(Path(cm_auth_middleware.__file__).parent.rglob("*.py"))


def test_every_event_is_documented_and_used() -> None:
    hook = runpy.run_path(str(DOCS / "_hooks" / "events.py"))
    page = hook["on_page_markdown"]((DOCS / "signals.md").read_text())
    assert "<!-- audit events -->" not in page
    for name, description in audit_log.AUDIT_EVENTS.items():
        assert f"| `{name}` | {description} |" in page
    code = "\n".join(path.read_text() for path in SOURCES)
    assert set(re.findall(r'\baudit\(\s*"(\w+)"', code)) == set(audit_log.AUDIT_EVENTS)


@both_providers
async def test_a_login_and_a_logout_name_the_user_and_the_address(
    world: World, audited: Read
) -> None:
    browser = await world.login()
    (login,) = audited()
    assert re.fullmatch("[0-9a-f]{8}", login["session"])
    user_id = str(world.user_id())
    about = {"user_id": user_id, "address": "127.0.0.1", "session": login["session"]}
    assert login == {"event": "login", **about}
    await browser.post("/auth/logout")
    assert audited() == [{"event": "logout", **about}]


@both_providers
async def test_a_user_who_is_refused_is_named(make_world: MakeWorld, audited: Read) -> None:
    world = make_world(allow_emails=["bob@example.com"])
    await world.browser().login()
    about = {"user_id": str(world.user_id()), "address": "127.0.0.1"}
    assert audited() == [{"event": "login_denied", **about}]


@both_providers
async def test_a_login_as_another_user_is_a_logout_of_the_first(
    world: World, audited: Read
) -> None:
    browser = await world.login()
    first = audited()[0]["session"]
    await browser.login("/auth/login", "bob@example.com")
    logout, login = audited()
    annas, bobs = str(world.user_id()), str(world.user_id("bob@example.com"))
    assert (logout["event"], logout["user_id"], logout["session"]) == ("logout", annas, first)
    assert (login["event"], login["user_id"]) == ("login", bobs)


@both_providers
async def test_requests_that_are_refused_are_named(make_world: MakeWorld, audited: Read) -> None:
    world = make_world()
    browser = await world.login()
    about = {**audited()[0], "event": "request_denied"}
    await browser.post("/", headers={"Origin": "http://evil.example"})
    assert audited() == [{**about, "reason": "cross_site"}]

    def nobody(user: Any) -> bool:
        return False

    other = make_world(beside=world, allow=nobody)
    stranger = other.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")
    assert (await stranger.get("/")).status_code == 403
    assert audited() == [{**about, "reason": "allow"}]


@both_providers
async def test_a_session_that_allow_ends_is_named(make_world: MakeWorld, audited: Read) -> None:
    admitted = [True]

    def allow(user: Any) -> bool:
        return admitted[0]

    world = make_world(background=False, allow=allow)
    browser = await world.login()
    about = {name: value for name, value in audited()[0].items() if name != "event"}
    admitted[0] = False
    world.clock.tick(901)
    await browser.get("/")
    denied, logout = audited()
    assert denied == {"event": "session_denied", **about}
    assert logout == {"event": "logout", **about}


@both_providers
async def test_a_session_that_the_server_ends_is_named(world: World, audited: Read) -> None:
    browser = await world.login()
    about = {**audited()[0], "event": "session_ended"}
    world.clock.tick(43_300)
    world.sim.revoke_user("anna@example.com")
    await browser.get("/cameras")
    assert audited() == [about]


@both_providers
async def test_the_end_of_all_sessions_of_a_user_is_named(world: World, audited: Read) -> None:
    for _ in range(2):
        await world.login()
    audited()

    async def end(user_id: int | str) -> None:
        if world.side == "asgi":
            await world.engine.logout_user(user_id)
        else:
            await anyio.to_thread.run_sync(world.engine.logout_user, user_id)

    await end(world.user_id())
    assert audited() == [
        {"event": "logout_everywhere", "user_id": str(world.user_id()), "sessions": 2}
    ]
    await end(world.user_id())
    assert audited() == []


@both_providers
@pytest.mark.parametrize("name", ["cm_auth_middleware", ""])
async def test_other_loggers_get_nothing_of_it(world: World, caplog, name: str) -> None:
    caplog.set_level(logging.DEBUG, logger="cm_auth_middleware")
    handler, logger = Lines(), logging.getLogger(name)  # caplog listens to all loggers
    logger.addHandler(handler)
    try:
        await world.login()
    finally:
        logger.removeHandler(handler)
    assert any("login session=" in line for line in handler.lines)
    assert not any("audit" in line or str(world.user_id()) in line for line in handler.lines)


@both_providers
async def test_without_a_handler_nothing_is_written(world: World, capfd) -> None:
    await world.login()
    assert str(world.user_id()) not in "".join(capfd.readouterr())


def test_a_user_id_writes_no_line_of_its_own(audited: Read) -> None:
    audit_log.audit("login", "1\nlogin user_id=2", address="", session="")
    (event,) = audited()
    assert event["user_id"] == "1\\nlogin user_id=2"


# -- the formatter ---------------------------------------------------------------------------


def test_a_line_of_json_has_time_level_logger_message_and_fields() -> None:
    record = logging.getLogger("x").makeRecord(
        "x", logging.WARNING, "f.py", 1, "lost %d", (3,), None, extra={"event": "e", "odd": {1}}
    )
    record.created = 1_800_000_000.25
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2027-01-15T08:00:00.250+00:00",
        "level": "WARNING",
        "logger": "x",
        "message": "lost 3",
        "event": "e",
        "odd": "{1}",
    }


def test_a_line_of_json_has_the_exception() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f.py", 1, "failed", (), sys.exc_info()
        )
    line = JSONFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: bad\nthing")


CONFIGURED = """
import json, logging.config, sys

logging.config.dictConfig(json.load(sys.stdin))
from cm_auth_middleware.audit_log import audit

audit("login", "10003", address="203.0.113.7", session="1f0c93ab")
"""


@pytest.mark.slow
def test_the_configuration_in_the_documentation_works(tmp_path: Path) -> None:
    page = (DOCS / "signals.md").read_text()
    (text,) = re.findall(r'```json title="logging.json"\n(.*?)```', page, re.DOTALL)
    command = [sys.executable, "-c", CONFIGURED]
    done = subprocess.run(
        command, input=text, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "audit.log").read_text())["user_id"] == ANNA
