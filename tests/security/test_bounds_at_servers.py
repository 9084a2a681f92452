"""Sizes that no honest browser or server sends, over real sockets, at servers of both kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from cm_auth_middleware.testing import Simulator
from tests.helpers.browser import log_in

from .held import REFRESH, WSGI, HeldSite

pytestmark = pytest.mark.slow

CAMERAS, USER = "/rest/v2.4/cameras", "/rest/v2.3/users/self"
NAME = "cm_auth"


@pytest.fixture(scope="module", params=["uvicorn", *WSGI])
def site(request: pytest.FixtureRequest) -> Iterator[HeldSite]:
    """One site for all tests here, which leave its simulator as it was."""
    with ExitStack() as stack:
        yield HeldSite(request.param, stack)


class RawUser:
    """The simulator, but for a member of the user, whose JSON is given as bytes."""

    def __init__(self, simulator: Simulator, value: bytes) -> None:
        self._simulator = simulator
        self._body = b'{"userId": 10003, "email": "anna@example.com", "x": %s}' % value

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != USER:
            await self._simulator(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


def test_a_token_of_a_megabyte_is_a_clear_error_and_the_next_login_works(site: HeldSite) -> None:
    """67: it is not kept, and no worker breaks."""
    token = {"token_type": "bearer", "expires_in": 600, "access_token": "a" * 1_000_000}
    site.simulator.fail_token((200, token))
    visitor = site.visitor()
    answer = visitor.get(site.callback_url(visitor.get("/auth/login")))
    assert answer.status_code == 502, answer.text
    assert "CameraManager" in answer.text
    assert not visitor.get("/auth/session").json()["authenticated"]
    log_in(visitor, site.simulator)


@pytest.mark.parametrize("value", [b"NaN", b"1e999", b"-Infinity"])
def test_a_number_that_is_none_is_null_to_a_browser_of_a_server(
    site: HeldSite, value: bytes
) -> None:
    """67: the session's JSON is read as a browser reads it."""
    known = site.calls.simulator
    site.calls.simulator = RawUser(site.simulator, value)  # type: ignore[assignment]
    try:
        visitor = site.visitor()
        log_in(visitor, site.simulator)
        text = visitor.get("/auth/session").text
    finally:
        site.calls.simulator = known

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(text, parse_constant=refuse)["user"]["x"] is None


def test_eight_cookies_of_our_name_are_looked_at_by_a_server(site: HeldSite) -> None:
    """64: the first four and the last four, of as many as fit into 8 kB of headers."""
    ours = f"{NAME}={site.user().cookies[NAME]}"
    junk = "; ".join(f"{NAME}={'A' * 86}.{number:042d}A" for number in range(25))
    statuses = {}
    for place, line in {
        "first": f"{ours}; {junk}",
        "last": f"{junk}; {ours}",
        "among": f"{junk}; {ours}; {junk}",
    }.items():
        assert len(line) < 8_000
        statuses[place] = site.visitor().get("/", headers={"Cookie": line}).status_code
    assert statuses == {"first": 200, "last": 200, "among": 302}


def test_a_path_that_always_says_401_costs_one_refresh_at_a_server(site: HeldSite) -> None:
    """59: R5: the 401 is handed on, and each call is no refresh of its own."""
    user = site.user()
    before = len(site.simulator.token_calls(REFRESH))
    site.simulator.fail_api(401, times=100, path=CAMERAS)
    try:
        for _ in range(10):
            assert user.get("/api/x").json()["status"] == 401
    finally:
        site.simulator.forget_failures()
    assert len(site.simulator.token_calls(REFRESH)) - before == 1
    assert user.get("/api/x").json()["status"] == 200
