"""Tokens and users of any size, and numbers that are none."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from cm_auth_middleware.tokens.provider import find_provider
from tests.helpers.world import CM, HTML, JSON, MakeWorld, World, both_providers

from .test_memory_bounds import Crowd
from .visits import stored

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

USER = "/rest/v2.3/users/self"
ANNA = b'{"userId": 1, "accountId": 501, "email": "anna@example.com", "x": %s}'


class RawUser:
    """The simulator, but for the user, whose JSON a test gives as bytes."""

    def __init__(self, world: World) -> None:
        self.simulator = world.sim
        self.body: bytes | None = None
        world.net.add(CM, self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != USER or self.body is None:
            await self.simulator(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def strict(text: str) -> Any:
    """Read JSON as a browser does."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


TOO_LONG = [
    {"access_token": "a" * 8_193},
    {"access_token": "a" * 900_000},
    {"access_token": "a" * 1_100_000},
    {"access_token": "a", "refresh_token": "r" * 8_193},
    {"access_token": "a", "scope": "s" * 8_193},
]


@both_providers
@pytest.mark.parametrize("answer", TOO_LONG, ids=range(len(TOO_LONG)))
async def test_a_token_that_is_too_long_is_a_clear_error_at_the_login(
    world: World, answer: dict[str, str]
) -> None:
    """67: no server would take it in a header, and the session would not fit into the store."""
    api = urlsplit(world.sim.origins(CM)[-1])
    host = {"httpsBaseUrl": {"hostname": api.hostname, "port": api.port}}
    world.sim.fail_token((200, {"token_type": "bearer", "expires_in": 600, **host, **answer}))
    browser = world.browser(**HTML)
    response = await browser.login()
    assert response.status_code == 502
    assert world.sim.calls(world.user_path) == []  # nobody tries such a token
    assert find_provider(world.engine.config.provider).name in response.text
    assert not (await browser.get("/auth/session", headers=JSON)).json()["authenticated"]
    assert not any(len(value) > 5_000 for value in stored(world).values())
    assert (await browser.login("/")).status_code == 200


@both_providers
@pytest.mark.parametrize("answer", TOO_LONG, ids=range(len(TOO_LONG)))
async def test_a_token_that_is_too_long_ends_no_session(
    world: World, answer: dict[str, str]
) -> None:
    """67: at a refresh it is an outage: 503, and the next attempt may succeed."""
    browser = await world.login()
    world.sim.expire_access_tokens()
    world.sim.fail_token((200, {"token_type": "bearer", "expires_in": 600, **answer}))
    assert (await browser.get("/cameras")).status_code == 503
    world.clock.tick(2)
    assert (await browser.get("/cameras")).status_code == 200


async def test_a_token_of_eight_kilobytes_is_kept(make_world: MakeWorld) -> None:
    """67: JSON Web Tokens may be long."""
    world = make_world()
    long = {"access_token": "a" * 8_192, "refresh_token": "r" * 8_192, "scope": "s" * 1_000}
    world.sim.fail_token((200, {"token_type": "bearer", "expires_in": 600, **long}))
    raw = RawUser(world)
    raw.body = ANNA % b"1"
    browser = world.browser(**HTML)
    assert (await browser.login()).status_code == 200
    assert (await browser.get("/state")).json()["scope"] == "s" * 1_000


NO_NUMBERS = [
    (b"NaN", None),
    (b"Infinity", None),
    (b'[1, {"y": -Infinity}]', [1, {"y": None}]),
    (b"1e999", None),
    (b"-1e999", None),
    (b"[[1e400]]", [[None]]),
    (b"1.5", 1.5),
]


@pytest.mark.parametrize(("sent", "shown"), NO_NUMBERS)
async def test_a_number_that_is_none_is_null_to_a_browser(
    world: World, sent: bytes, shown: Any
) -> None:
    """67: at the login, and when the user is read anew."""
    raw = RawUser(world)
    raw.body = ANNA % sent
    browser = world.browser(**HTML)
    assert (await browser.login()).status_code == 200
    assert strict((await browser.get("/auth/session")).text)["user"]["x"] == shown
    raw.body = ANNA % (b"[2, %s]" % sent)
    world.clock.tick(901)
    assert (await browser.get("/cameras")).status_code == 200
    await world.close()  # which waits for what runs beside requests
    assert strict((await browser.get("/auth/session")).text)["user"]["x"] == [2, shown]


TOO_MUCH = [
    b"9" * 5_000,  # digits: Python refuses them
    b"[" * 33 + b"]" * 33,
    b'{"y":' * 900 + b"1" + b"}" * 900,
    b"[" * 40_000 + b"]" * 40_000,
    b'"' + b"x" * 100_000 + b'"',
    b'"' + "\N{SNOWMAN}".encode() * 20_000 + b'"',  # 60 kB, and 120 kB in ASCII
]


@pytest.mark.parametrize("value", TOO_MUCH, ids=range(len(TOO_MUCH)))
async def test_a_user_that_cannot_be_kept_is_a_clear_error_at_the_login(
    world: World, value: bytes
) -> None:
    """67: nobody is logged in with half a user, and nothing breaks later."""
    raw = RawUser(world)
    raw.body = ANNA % value
    browser = world.browser(**HTML)
    assert (await browser.login()).status_code == 502
    session = (await browser.get("/auth/session", headers=JSON)).text
    assert strict(session) == {"authenticated": False, "user": None, "expires_in": 0}


@pytest.mark.parametrize("value", TOO_MUCH, ids=range(len(TOO_MUCH)))
async def test_a_user_that_cannot_be_kept_changes_nothing_later(world: World, value: bytes) -> None:
    """67: when the user is read anew, the one that is known stays."""
    raw = RawUser(world)
    browser = await world.login()
    known = strict((await browser.get("/auth/session")).text)["user"]
    raw.body = ANNA % value
    world.clock.tick(901)
    assert (await browser.get("/cameras")).status_code == 200
    await world.close()  # which waits for what runs beside requests
    assert strict((await browser.get("/auth/session")).text)["user"] == known


ODD = [b"1e308", b"-0.0", b"1e-999", b'"\\ud800"', b"[" * 31 + b"]" * 31, b'"NaN"', b"null"]


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
async def test_odd_values_that_are_json_come_through(world: World, value: bytes) -> None:
    """67: what is JSON is shown as it is."""
    raw = RawUser(world)
    raw.body = ANNA % value
    browser = world.browser(**HTML)
    assert (await browser.login()).status_code == 200
    assert strict((await browser.get("/auth/session")).text)["user"]["x"] == json.loads(value)


async def test_a_session_of_an_older_release_with_nan_in_its_user_is_json(world: World) -> None:
    """67: Python wrote it into the record, and a browser could not read the answer."""
    crowd = await Crowd.of(world)
    for user in ('{"userId":1,"email":"a@b.c","x":NaN}', '{"userId":1,"x":[Infinity,{"y":NaN}]}'):
        cookie = (await crowd.join(user=user)).decode()
        answer = await world.browser(Cookie=cookie).get("/auth/session")
        assert strict(answer.text)["authenticated"]
        assert strict(answer.text)["user"]["x"] in (None, [None, {"y": None}])
