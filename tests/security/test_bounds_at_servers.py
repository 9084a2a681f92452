"""Sizes that no honest browser or server sends, over real sockets, at servers of both kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from cm_auth_middleware.testing import Simulator
from tests.helpers.browser import log_in
from tests.helpers.servers import until

from .held import REFRESH, WSGI, HeldSite

pytestmark = pytest.mark.slow

CAMERAS, USERS = "*/cameras", ("/rest/v2.3/users/self", "/api/v3.0/users/self")
NAME = "cm_auth"
PROVIDERS = ("cameramanager", "eagleeye")
NAMES = {"cameramanager": "CameraManager", "eagleeye": "Eagle Eye"}


@pytest.fixture(
    scope="module",
    params=[(server, kind) for server in ("uvicorn", *WSGI) for kind in PROVIDERS],
    ids="-".join,
)
def site(request: pytest.FixtureRequest) -> Iterator[HeldSite]:
    """One site for all tests here, which leave its simulator as it was."""
    server, provider = request.param
    with ExitStack() as stack:
        yield HeldSite(server, stack, provider=provider)


class RawUser:
    """The simulator, but for a member of the user, whose JSON is given as bytes."""

    def __init__(self, simulator: Simulator, value: bytes) -> None:
        self._simulator = simulator
        ids = b'"userId": 10003' if simulator.settings.provider != "eagleeye" else b'"id": "2713"'
        self._body = b'{%s, "email": "anna@example.com", "x": %s}' % (ids, value)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in USERS:
            await self._simulator(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})


@contextmanager
def user_with(site: HeldSite, value: bytes) -> Iterator[None]:
    """Let the user have a member ``x`` of any JSON."""
    known = site.calls.simulator
    site.calls.simulator = RawUser(site.simulator, value)  # type: ignore[assignment]
    try:
        yield
    finally:
        site.calls.simulator = known


def token(site: HeldSite, size: int) -> dict[str, Any]:
    """Return a token answer with an access token of so many bytes."""
    api = urlsplit(site.api)
    host = {"httpsBaseUrl": {"hostname": api.hostname, "port": api.port}}
    return {"token_type": "bearer", "expires_in": 600, "access_token": "a" * size, **host}


@pytest.mark.parametrize("size", [8_193, 1_000_000])
def test_a_token_that_is_too_long_is_a_clear_error_and_the_next_login_works(
    site: HeldSite, size: int
) -> None:
    """67: it is not kept, and no worker breaks."""
    site.simulator.fail_token((200, token(site, size)))
    visitor = site.visitor()
    answer = visitor.get(site.callback_url(visitor.get("/auth/login")))
    assert answer.status_code == 502, answer.text
    assert NAMES[site.simulator.settings.provider] in answer.text
    assert not visitor.get("/auth/session").json()["authenticated"]
    log_in(visitor, site.simulator)


@pytest.mark.parametrize("size", [8_193, 1_000_000])
def test_a_token_that_is_too_long_ends_no_session_at_a_server(site: HeldSite, size: int) -> None:
    """67: at a refresh it is an outage, and the next attempt succeeds."""
    user = site.user()
    site.simulator.expire_access_tokens()
    site.simulator.fail_token((200, token(site, size)))
    assert user.get("/cameras").status_code == 503
    until(lambda: user.get("/cameras").status_code == 200)


@pytest.mark.parametrize(
    "value", [b"9" * 5_000, b"[" * 40_000 + b"]" * 40_000, b'"' + b"x" * 100_000 + b'"']
)
def test_a_user_that_cannot_be_kept_is_a_clear_error_at_a_server(
    site: HeldSite, value: bytes
) -> None:
    """67: nobody is logged in with half a user, and the next login works."""
    visitor = site.visitor()
    with user_with(site, value):
        answer = visitor.get(site.callback_url(visitor.get("/auth/login")))
    assert answer.status_code == 502, answer.text
    assert not visitor.get("/auth/session").json()["authenticated"]
    log_in(visitor, site.simulator)


@pytest.mark.parametrize("value", [b"NaN", b"1e999", b"-Infinity"])
def test_a_number_that_is_none_is_null_to_a_browser_of_a_server(
    site: HeldSite, value: bytes
) -> None:
    """67: the session's JSON is read as a browser reads it."""
    visitor = site.visitor()
    with user_with(site, value):
        log_in(visitor, site.simulator)
        text = visitor.get("/auth/session").text

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
