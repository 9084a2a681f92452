"""What the token endpoint may answer, at a login and at a refresh."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.responses import PlainTextResponse, Response

from cm_auth_middleware.testing import Settings
from cm_auth_middleware.tokens.provider import find_provider
from tests.helpers.world import CM, World, both_providers

from .visits import NAME, is_logged_in, session_of, started, stored
from .wired import Wired, clocked, dripping

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

Change = Callable[[dict[str, Any]], Any]


def without(name: str) -> Change:
    return lambda answer: {k: v for k, v in answer.items() if k != name}


def having(**members: Any) -> Change:
    return lambda answer: {**answer, **members}


def literally(name: str, text: str) -> Change:
    """The member as JSON text that Python would not write."""
    return lambda answer: json.dumps({**answer, name: "@"}).replace('"@"', text).encode()


def raw(body: bytes, status: int = 200, **headers: str) -> Change:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda answer: Response(body, status, headers)


WORKS = {
    "expires_in missing": without("expires_in"),
    "expires_in a string": having(expires_in="43199"),
    "expires_in 0": having(expires_in=0),
    "expires_in negative": having(expires_in=-1),
    "expires_in 10^12": having(expires_in=10**12),
    "expires_in 10^400": literally("expires_in", "1" + "0" * 400),
    "expires_in 1e999": literally("expires_in", "1e999"),
    "expires_in -1e999": literally("expires_in", "-1e999"),
    "expires_in NaN": literally("expires_in", "NaN"),
    "expires_in null": having(expires_in=None),
    "expires_in soon": having(expires_in="soon"),
    "expires_in nan": having(expires_in="nan"),
    "expires_in inf": having(expires_in="inf"),
    "expires_in true": having(expires_in=True),
    "expires_in a list": having(expires_in=[43199]),
    "expires_in an object": having(expires_in={"seconds": 1}),
    "expires_in a fraction": having(expires_in=0.5),
    "token_type Bearer": having(token_type="Bearer"),
    "token_type BEARER": having(token_type="BEARER"),
    "token_type missing": without("token_type"),
    "token_type null": having(token_type=None),
    "scope narrower": having(scope="read"),
    "scope missing": without("scope"),
    "scope empty": having(scope=""),
    "scope a list": having(scope=["write"]),
    "scope a surrogate": literally("scope", '"\\ud800"'),
    "members of no use": having(jti="x", extra={"a": [1, 2]}, user_id=10003),
    "a byte order mark": lambda answer: b"\xef\xbb\xbf" + json.dumps(answer).encode(),
    "utf-16": lambda answer: json.dumps(answer).encode("utf-16"),
    "spaces around": lambda answer: b" " * 1_000 + json.dumps(answer).encode() + b"\n" * 1_000,
    "another media type": lambda answer: Response(json.dumps(answer), media_type="text/plain"),
}
NO_REFRESH_TOKEN = {
    "missing": without("refresh_token"),
    "null": having(refresh_token=None),
    "empty": having(refresh_token=""),
    "a number": having(refresh_token=7),
    "a list": having(refresh_token=["x"]),
    "a surrogate": literally("refresh_token", '"\\ud800"'),
}
FAILS = {
    "token_type mac": having(token_type="mac"),
    "token_type a list": having(token_type=["bearer"]),
    "access_token missing": without("access_token"),
    "access_token null": having(access_token=None),
    "access_token empty": having(access_token=""),
    "access_token a number": having(access_token=7),
    "access_token with a line end": having(access_token="a\r\nX-Evil: 1"),
    "access_token with a space": having(access_token="a b"),
    "access_token not ASCII": having(access_token="tökén"),
    "access_token a surrogate": literally("access_token", '"\\ud800"'),
    "access_token a NUL": having(access_token="a\0b"),
    "everything empty": lambda answer: dict.fromkeys(answer, ""),
    "nothing": raw(b""),
    "an empty object": raw(b"{}"),
    "a list": raw(b"[]"),
    "a list of objects": raw(b'[{"access_token": "x"}]'),
    "a string": raw(b'"x"'),
    "null": raw(b"null"),
    "a number": raw(b"1"),
    "a number of 10 000 digits": raw(b"1" * 10_000),
    "10 MB": raw(b'{"access_token": "' + b"x" * 10_000_000 + b'"}'),
    "deep": raw(b"[" * 200_000),
    "deep inside": raw(b'{"access_token": "x", "a": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    "not JSON": raw(b"access_token=x&token_type=bearer"),
    "cut": raw(b'{"access_token": "x'),
    "not UTF-8": raw(b'{"access_token": "\xff\xfe"}'),
    "XML": raw(b"<oauth><access_token>x</access_token></oauth>", content_type="application/xml"),
    "HTML 200": raw(b"<html><h1>Maintenance</h1></html>", content_type="text/html"),
    "204": raw(b"", 204),
    "205": raw(b"", 205),
    "201": lambda answer: Response(json.dumps(answer), 201),
    "206": lambda answer: Response(json.dumps(answer), 206),
    "304": raw(b"", 304),
    "400 without a word": raw(b"", 400),
    "404 HTML": raw(b"<h1>Not Found</h1>", 404),
    "418": raw(b"{}", 418),
    "a bomb": raw(gzip.compress(bytes(50_000_000)), content_encoding="gzip"),
    "error null": raw(b'{"error": null}', 400),
    "error a list": raw(b'{"error": ["invalid_grant"]}', 400),
    "error an object": raw(b'{"error": {"code": 1}}', 400),
    "error unknown": raw(b'{"error": "teapot"}', 400),
    "error with HTML": raw(b'{"error": "<script>alert(1)</script>"}', 400),
    **{
        f"{status} to elsewhere": raw(b"", status, location="http://evil.example/oauth/token")
        for status in (301, 302, 303, 307, 308)
    },
    "302 to itself": raw(b"", 302, location="token"),
    "302 to nowhere": raw(b"", 302),
}
REFUSALS = {
    "400 without a word",
    "error null",
    "error a list",
    "error an object",
    "error unknown",
    "error with HTML",
}
"""Those of them that API v3 would end a session with."""


class Answering:
    """The server, with a token endpoint whose answers a test changes.

    Args:
        serves: False if calls that are answered so come to nothing at the server.

    Attributes:
        calls: how many were answered so.
    """

    def __init__(self, world: World, *, serves: bool = True) -> None:
        self.world, self.serves = world, serves
        self.change: Change | None = None
        self.calls = 0
        world.net.add(CM, self)
        world.net.add("http://evil.example", self.evil)
        self.evil_seen = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.change is None or scope["path"] != self.world.token_path:
            await self.world.sim(scope, receive, send)
            return
        self.calls += 1
        sent: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            sent.append(message)

        if self.serves:
            await self.world.sim(scope, receive, keep)
        answer = json.loads(b"".join(m.get("body", b"") for m in sent) or b"{}")
        changed = self.change(answer)
        if isinstance(changed, dict):
            changed = json.dumps(changed)
        if not isinstance(changed, Response):
            changed = Response(changed, media_type="application/json")
        await changed(scope, receive, send)

    async def evil(self, scope: Any, receive: Any, send: Any) -> None:
        self.evil_seen += 1
        await PlainTextResponse("thanks")(scope, receive, send)


@both_providers
@pytest.mark.parametrize("what", WORKS)
async def test_at_a_login_it_works_all_the_same(world: World, what: str) -> None:
    """39: whatever is odd about what a session does not need."""
    server = Answering(world)
    server.change = WORKS[what]
    browser = await world.login()
    server.change = None
    for _ in range(3):
        assert (await browser.get("/cameras")).status_code == 200
    state = (await browser.get("/state")).json()
    assert state["scope"] == ("read" if what == "scope narrower" else state["scope"])
    assert len(world.sim.token_calls()) <= 2
    await browser.post("/auth/logout")


@both_providers
@pytest.mark.parametrize("what", WORKS)
async def test_at_a_refresh_it_works_all_the_same(world: World, what: str) -> None:
    """39: and does not make every request ask for new tokens again."""
    server = Answering(world)
    browser = await world.login()
    world.clock.tick(43_300)
    server.change = WORKS[what]
    for _ in range(5):
        assert (await browser.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1


@both_providers
@pytest.mark.parametrize("what", NO_REFRESH_TOKEN)
async def test_without_a_refresh_token_the_session_lives_as_long_as_the_token(
    world: World, what: str
) -> None:
    """39: then a login is asked for, without an error."""
    server = Answering(world)
    server.change = NO_REFRESH_TOKEN[what]
    browser = await world.login()
    assert (await browser.get("/cameras")).status_code == 200
    world.clock.tick(43_300)
    assert (await browser.get("/cameras")).status_code == 302
    assert world.sim.token_calls("refresh_token") == []
    assert (await browser.login("/cameras")).status_code == 200
    assert (await browser.post("/auth/logout")).status_code == 303


@both_providers
@pytest.mark.parametrize("what", NO_REFRESH_TOKEN)
async def test_a_refresh_that_brings_no_refresh_token_keeps_the_old_one(
    world: World, what: str
) -> None:
    """39: RFC 6749 §6."""
    world.sim.settings.rotate_refresh_tokens = False  # API v3 has such keys, too
    server = Answering(world)
    browser = await world.login()
    server.change = NO_REFRESH_TOKEN[what]
    for n in range(1, 4):
        world.clock.tick(43_300)
        assert (await browser.get("/cameras")).status_code == 200
        assert len(world.sim.token_calls("refresh_token")) == n


@both_providers
@pytest.mark.parametrize("what", FAILS)
async def test_at_a_login_it_is_a_clear_error(world: World, what: str, caplog) -> None:
    """39: a page of ours, no session, nothing kept, nothing of theirs shown or followed."""
    server = Answering(world)
    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    server.change = FAILS[what]
    answer = await browser.get(url)
    assert answer.status_code in (400, 502)
    assert "Try again" in answer.text
    assert "alert(1)" not in answer.text
    assert "alert(1)" not in caplog.text
    assert browser.named(NAME) == []
    assert stored(world) == {}
    assert server.evil_seen == 0
    assert len(world.sim.token_calls()) == 1
    server.change = None
    assert (await browser.login("/cameras")).status_code == 200


@pytest.mark.parametrize("what", FAILS)
async def test_at_a_refresh_it_is_a_clear_error_and_the_session_stays(
    world: World, what: str
) -> None:
    """39: 503 with Retry-After; a moment later, with a sound answer, the page."""
    await _fails_at_a_refresh(world, FAILS[what], serves=True, found=[503, 200])


@pytest.mark.parametrize("provider", ["eagleeye"])
@pytest.mark.parametrize("serves", [False, True], ids=["not served", "served"])
@pytest.mark.parametrize("what", FAILS)
async def test_at_a_refresh_of_api_v3_it_is_a_clear_error_or_a_login(
    world: World, what: str, *, serves: bool
) -> None:
    """39: a refusal ends the session there; so does an answer that is lost: tokens rotate."""
    found = [302, 302] if what in REFUSALS else [503, 302 if serves else 200]
    await _fails_at_a_refresh(world, FAILS[what], serves=serves, found=found)


async def _fails_at_a_refresh(
    world: World, change: Change, *, serves: bool, found: list[int]
) -> None:
    server = Answering(world, serves=serves)
    browser = await world.login()
    world.clock.tick(43_300)
    server.change = change
    answer = await browser.get("/cameras")
    assert answer.status_code == found[0]
    assert "alert(1)" not in answer.text
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1
    assert (server.calls, server.evil_seen) == (1, 0)
    server.change = None
    world.clock.tick(5)
    assert (await browser.get("/cameras")).status_code == found[1]


@both_providers
@pytest.mark.parametrize("call", ["user", "logout"])
@pytest.mark.parametrize("what", ["nothing", "a list", "10 MB", "deep", "not JSON", "204", "a bomb",
                                  "302 to elsewhere", "307 to elsewhere", "404 HTML"])  # fmt: skip
async def test_the_two_other_calls_of_our_own_survive_the_same(
    world: World, call: str, what: str
) -> None:
    """39: users/self at the login, the end of the tokens at the logout."""
    logout_path = find_provider(world.engine.config.provider).logout_path
    path = world.user_path if call == "user" else logout_path
    server = Answering(world)
    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])

    async def changed(scope: Any, receive: Any, send: Any) -> None:
        app = FAILS[what]({}) if scope["path"] == path else world.sim
        await app(scope, receive, send)

    world.put_before_the_server(changed)
    answer = await browser.get(url)
    if call == "user":
        assert answer.status_code == 502
        assert stored(world) == {}
    else:
        assert answer.status_code == 302
        cookie = f"{NAME}={session_of(browser)}"
        assert (await browser.post("/auth/logout")).status_code == 303
        assert not await is_logged_in(world, cookie)
    assert server.evil_seen == 0


@both_providers
@pytest.mark.parametrize(
    "user",
    [b'{"userId": null}', b'{"userId": {"a": 1}}', b'{"userId": "\\ud800"}', b'{"userId": 1e999}',
     b'{"userId": "' + b"9" * 5_000 + b'"}', b'{"userId": true, "email": ["x"]}', b"{}",
     b'{"userId": 1, "email": "\\u0000\\r\\n<script>"}', b'{"userId": 1, "a": NaN}'],
)  # fmt: skip
async def test_a_user_may_be_called_anything(world: World, user: bytes) -> None:
    """39: users/self with odd members is a session that works."""
    user = user.replace(b"userId", world.user_id_field.encode())

    async def changed(scope: Any, receive: Any, send: Any) -> None:
        is_user = scope["path"].endswith("/users/self")
        app = Response(user, media_type="application/json") if is_user else world.sim
        await app(scope, receive, send)

    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    world.put_before_the_server(changed)
    assert (await browser.get(url)).status_code == 302
    assert (await browser.get("/cameras")).status_code == 200
    assert b'"authenticated":true' in (await browser.get("/auth/session")).content


@both_providers
@pytest.mark.parametrize("error", ["invalid_grant", "invalid_token"])
async def test_a_refused_grant_ends_the_session(world: World, error: str) -> None:
    """40: and the user is asked to log in, without an error page."""
    browser = await world.login()
    cookie = f"{NAME}={session_of(browser)}"
    world.clock.tick(43_300)
    world.sim.fail_token({"error": error, "error_description": "gone"})
    assert (await browser.get("/cameras")).status_code == 302
    assert not await is_logged_in(world, cookie)


@both_providers
async def test_a_refused_grant_ends_nothing_if_the_store_has_newer_tokens(
    make_world, tmp_path
) -> None:
    """40: another process refreshed while ours was being refused."""
    store = f"sqlite:///{tmp_path}/s.db"
    settings = Settings(rotate_refresh_tokens=True)
    one, two = make_world(store=store, settings=settings), make_world(store=store)
    two.put_before_the_server(one.sim)
    browser = await one.login()
    other = two.browser(Cookie=f"{NAME}={session_of(browser)}")
    for world in (one, two):
        world.clock.tick(43_300)
    refused: list[int] = []

    async def late(scope: Any, receive: Any, send: Any) -> None:
        """What `two` asks comes to the server after `one` has been served."""
        if scope["path"] == one.token_path and not refused:
            refused.append(1)
            await anyio.to_thread.run_sync(_end_leases, tmp_path / "s.db")
            assert (await browser.get("/cameras")).status_code == 200
        await one.sim(scope, receive, send)

    two.net.add(CM, late)
    assert (await other.get("/cameras")).status_code == 200
    assert refused
    [served, dead] = [call.status for call in one.sim.token_calls("refresh_token")]
    assert served == 200
    assert dead in (400, 401)


def _end_leases(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM leases")


@pytest.mark.parametrize(
    ("provider", "error"),
    [
        ("cameramanager", "invalid_client"),
        ("cameramanager", "unauthorized"),
        ("cameramanager", "unauthorized_client"),
        ("eagleeye", "invalid_client"),
        ("eagleeye", "unauthorized_client"),
    ],
)
async def test_a_refused_api_key_is_the_operators_affair(world: World, error, caplog) -> None:
    """40: logged loudly, and every session is kept."""
    browser = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token({"error": error}, times=1)
    assert (await browser.get("/cameras")).status_code == 503
    loud = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert any("client_id" in line for line in loud)
    world.clock.tick(5)
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
@pytest.mark.parametrize("what", [500, 502, 503, 504, "drop", "lost", "hang", "truncated"])
async def test_an_outage_keeps_the_session(make_world, what) -> None:
    """40: 5xx, resets and timeouts: 503 now, the page later."""
    world = make_world(timeout=0.3)
    browser = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(what)
    assert (await browser.get("/cameras")).status_code == 503
    world.clock.tick(5)
    # API v3 has ended the old refresh token by then, and the new one is lost.
    is_lost = what == "lost" and world.sim.settings.rotate_refresh_tokens
    assert (await browser.get("/cameras")).status_code == (302 if is_lost else 200)


@both_providers
@pytest.mark.parametrize(
    ("retry_after", "least"),
    [("30", 30), ("9" * 400, 60), ("Wed, 21 Oct 2099 07:28:00 GMT", 1), ("-5", 1), ("x", 1),
     ("0", 1),
     ("\u0663", 1)],
)  # fmt: skip
async def test_retry_after_is_obeyed_within_reason(world: World, retry_after, least: int) -> None:
    """40: 429: nobody asks again before, nobody waits for ever, and nobody is logged out."""
    server = Answering(world, serves=False)
    browser = await world.login()
    world.clock.tick(43_300)
    header = retry_after.encode().decode("latin-1")
    server.change = raw(b'{"error": "slow_down"}', 429, retry_after=header)
    answer = await browser.get("/cameras")
    assert answer.status_code == 503
    assert least <= int(answer.headers["retry-after"]) <= 60
    if least > 1:
        world.clock.tick(least - 5)
        assert (await browser.get("/cameras")).status_code == 503
    assert server.calls == 1
    server.change = None
    world.clock.tick(6)
    assert (await browser.get("/cameras")).status_code == 200


_BODY = b"x" * 5_000
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n"


@pytest.mark.parametrize("what", ["head", "headers", "body", "chunks"])
@pytest.mark.parametrize("call", ["exchange", "refresh", "revoke"])
async def test_an_answer_that_drips_is_bounded_in_total(side: str, what: str, call: str) -> None:
    """41: over a real socket: the whole call takes `timeout`, not each read of it."""
    whole = _HEAD + b"\r\n" + _BODY
    answer, head_at_once = {
        "head": (whole, 0),
        "headers": (_HEAD + b"X-A: 1\r\n" * 600 + b"\r\n" + _BODY, len(_HEAD)),
        "body": (whole, len(_HEAD) + 2),
        "chunks": (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1_000,
            50,
        ),
    }[what]
    with dripping(answer, head_at_once=head_at_once) as dripper:
        sim = clocked()
        world = Wired(side, sim, dripper.url, timeout=0.5)
        browser = world.browser()
        if call == "exchange":
            url = browser.callback_url((await started(browser)).headers["location"])
            assert (await browser.get(url)).status_code == 502
        else:
            good = World(side=side, store=world.engine.store)
            good.clock.now = world.clock.now
            cookie = f"{NAME}={session_of(await good.login())}"
            browser = world.browser(Cookie=cookie)
            if call == "refresh":
                world.clock.tick(43_300)
                assert (await browser.get("/cameras")).status_code == 503
            else:
                assert (await browser.post("/auth/logout")).status_code == 303
                assert not await is_logged_in(world, cookie)
            await good.close()
        await world.close()
        with anyio.fail_after(30):
            while dripper.cut == 0:
                await anyio.sleep(0.02)
        assert dripper.finished == 0
