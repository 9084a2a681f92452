"""The middleware twice around one application, by mistake."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import Socket, ws_headers
from tests.helpers.world import APP, CM, SECRET_KEY, MakeWorld, World

pytestmark = pytest.mark.anyio


def twice(world: World, engine: AuthEngine) -> None:
    """Put another middleware between that of a world and its application."""
    if world.side == "asgi":
        inner: Any = CMAuthMiddleware(make_app(), engine=engine)
        world.app = CMAuthMiddleware(inner, engine=world.engine)
    else:
        inner = CMAuthWSGIMiddleware(make_wsgi_app(), engine=engine)
        world.app = CMAuthWSGIMiddleware(inner, engine=world.engine)
    world.net.apps.pop(APP)
    world.net.add(APP, world.app)


def another_engine(world: World) -> AuthEngine:
    return AuthEngine(
        transport=world.net, clock=world.clock, client_id=world.sim.client_id,
        client_secret=world.sim.client_secret, secret_key=SECRET_KEY, base_url=CM,
    )  # fmt: skip


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


async def test_two_of_them_are_warned_of_once(make_world: MakeWorld, caplog) -> None:
    world = make_world()
    browser = await world.login()
    twice(world, another_engine(world))
    for _ in range(3):
        assert (await browser.get("/cameras")).status_code == 302
    assert warnings(caplog) == [
        "two_middlewares: add it once, or give both the same engine; users are sent to a second "
        "login"
    ]


async def test_two_with_one_engine_are_as_good_as_one(make_world: MakeWorld, caplog) -> None:
    world = make_world()
    browser = await world.login()
    twice(world, world.engine)
    assert (await browser.get("/cameras")).status_code == 200
    assert (await world.browser().get("/cameras")).status_code == 302
    assert warnings(caplog) == []


async def test_a_visitor_is_no_sign_of_two(make_world: MakeWorld, caplog) -> None:
    world = make_world()
    twice(world, another_engine(world))
    assert (await world.browser().get("/cameras")).status_code == 302
    assert warnings(caplog) == []


async def test_two_around_a_websocket_are_warned_of(caplog) -> None:
    world = World()
    headers = await ws_headers(world)
    twice(world, another_engine(world))
    sent = await Socket(world, headers).run()
    assert sent[0]["status"] == 401
    assert [text.partition(":")[0] for text in warnings(caplog)] == ["two_middlewares"]
    await world.close()
