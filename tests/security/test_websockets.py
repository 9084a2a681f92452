"""WebSockets over WSGI servers, which a handler takes over from a GET with ``Upgrade``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.world import HTML, World

pytestmark = pytest.mark.anyio

UPGRADE = {
    **HTML,
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def app(environ: Any, start_response: Any) -> list[bytes]:
    """Say whose session it was given, as a handler would that takes the socket over."""
    session = environ["cm_auth.session"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [session.user["email"].encode() if session else b"a visitor"]


@pytest.fixture
def side() -> str:
    return "wsgi"  # on ASGI it is a scope of its own, which test_asgi asks for


@pytest.mark.slow
@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.sub.example"}, 403),
        ({"Origin": "http://evil.localhost:8000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:9000", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({}, 200),  # no browser
    ],
)
async def test_a_websocket_of_another_origin_is_refused_over_wsgi(
    make_world, upgrade: str, headers: dict[str, str], status: int
) -> None:
    """52: R16: although the cookie came along, the application is not reached."""
    world = make_world(app=app)
    browser = await world.login()
    sent: dict[str, Any] = {**UPGRADE, "Upgrade": upgrade, **headers}
    answer = await browser.get("/", headers=sent)
    assert answer.status_code == status
    assert ("anna@example.com" in answer.text) == (status == 200)


async def test_a_websocket_without_a_session_is_no_navigation_over_wsgi(world: World) -> None:
    """52: it is refused with 401, whatever its handshake accepts, and starts no login."""
    answer = await world.browser().get("/", headers={**UPGRADE, "Sec-Fetch-Mode": "navigate"})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_an_exempt_websocket_gets_no_session_of_who_was_lured_over_wsgi(make_world) -> None:
    """52: an exempt path is open to everybody, but not with somebody's cookie."""
    world = make_world(app=app, exempt=["/state"])
    browser = await world.login()
    own = await browser.get("/state", headers={**UPGRADE, "Origin": "http://localhost:8000"})
    assert "anna@example.com" in own.text
    lured = await browser.get("/state", headers={**UPGRADE, "Origin": "https://evil.example"})
    assert lured.status_code == 200
    assert "anna@example.com" not in lured.text
