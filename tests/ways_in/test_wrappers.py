"""R28: what is put around an application and serves paths of its own, as Socket.IO does."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import PlainTextResponse

from cm_auth_middleware.flask import CMAuth
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import Socket
from tests.helpers.world import APP, World

pytestmark = pytest.mark.anyio

PATH = "/socket.io/?EIO=4&transport=polling"


class Polling:
    """Serves ``/socket.io/``, and hands on all else: as ``socketio.ASGIApp(sio, app)``."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" and scope["path"].startswith("/socket.io/"):
            await send({"type": "websocket.accept"})
        elif scope["type"] == "http" and scope["path"].startswith("/socket.io/"):
            await PlainTextResponse("handshake")(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class WSGIPolling:
    """The same as ``socketio.WSGIApp(sio, app.wsgi_app)``."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith("/socket.io/"):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"handshake"]
        return self.app(environ, start_response)


async def test_a_wrapper_that_was_put_first_is_behind_the_login(make_world, side: str) -> None:
    """The order that the documentation says."""
    if side == "asgi":
        world: World = make_world(app=Polling(make_app()))
    else:
        world = make_world()
        app = make_wsgi_app()
        app.wsgi_app = WSGIPolling(app.wsgi_app)  # type: ignore[method-assign]
        CMAuth(app, engine=world.engine)
        world.net.add_wsgi(APP, app)
    program = {"Accept": "*/*"}
    assert (await world.browser(**program).get(PATH)).status_code == 401
    browser = await world.login()
    assert (await browser.get(PATH, headers=program)).text == "handshake"


@pytest.mark.parametrize("side", ["asgi"])
async def test_so_is_its_websocket(make_world) -> None:
    world = make_world(app=Polling(make_app()))
    socket = Socket(world, {"Host": "localhost:8000"})
    socket.scope["path"] = "/socket.io/"
    assert (await socket.run())[0]["status"] == 401


async def test_one_that_was_put_around_the_login_takes_its_path_before(make_world, side) -> None:
    """Why the order matters."""
    world: World = make_world()
    if side == "asgi":
        world.net.add(APP, Polling(world.app))
    else:
        world.net.add_wsgi(APP, WSGIPolling(world.app))
    visitor = world.browser(Accept="*/*")
    assert (await visitor.get(PATH)).text == "handshake"
    assert (await visitor.get("/cameras")).status_code == 401
