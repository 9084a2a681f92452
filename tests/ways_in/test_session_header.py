"""The header that carries the session, for frameworks that hide the request."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cm_auth_middleware import CMAuthError, CMSessionHeader, SessionExpiredError
from tests.helpers.browser import BOB, Socket, ws_headers
from tests.helpers.world import JSON, World, both_providers

pytestmark = pytest.mark.anyio

SPELLINGS = ("x-cm-session", "X-CM-Session", "x_cm_session", "X-Cm_Session")


@pytest.fixture
def side() -> str:
    return "asgi"


async def cookies(request: Request) -> Response:
    return JSONResponse(request.headers.getlist("cookie"))


async def handles(request: Request) -> Response:
    """What an application sees by any spelling of the header's name."""
    return JSONResponse(
        [
            value.decode()
            for name, value in request.scope["headers"]
            if name.lower().replace(b"_", b"-") == b"x-cm-session"
        ]
    )


@pytest.fixture
def world(make_world) -> World:
    routes = [Route("/", handles), Route("/open", handles), Route("/cookies", cookies)]
    app = Starlette(routes=routes)
    return make_world(app=CMSessionHeader(app), exempt=["/open"])


async def handle_of(browser: Any, path: str = "/", **headers: str) -> str:
    (handle,) = (await browser.get(path, headers=headers)).json()
    return str(handle)


@both_providers
async def test_a_callback_finds_its_user_and_client_by_the_header_alone(
    world: World, provider: str
) -> None:
    engine = world.engine
    path = "/users/self" if provider == "eagleeye" else "/rest/v2.3/users/self"
    for email in ("anna@example.com", BOB):
        handle = await handle_of(await world.login(email))
        assert (await engine.session_for(handle)).user["email"] == email
        cm = await engine.client_for(handle)
        assert (await cm.get(path)).json()["email"] == email

        def in_a_thread(handle: str = handle) -> Any:
            user = engine.sync_session_for(handle).user
            return user, engine.sync_client_for(handle).get(path).json()

        user, fetched = await anyio.to_thread.run_sync(in_a_thread)
        assert user["email"] == fetched["email"] == email


@pytest.mark.parametrize("name", SPELLINGS)
async def test_a_visitor_cannot_send_the_header(world: World, name: str) -> None:
    stolen = await handle_of(await world.login())
    visitor = world.browser(**JSON, **{name: stolen})
    assert (await visitor.get("/open")).json() == []
    assert (await visitor.get("/")).status_code == 401
    bob = await world.login(BOB)
    sent = await handle_of(bob, **{name: stolen})
    assert (await world.engine.session_for(sent)).user["email"] == BOB


async def test_the_application_does_not_get_the_session_cookie(world: World) -> None:
    """Panel and Reflex tell the page which cookies came, and so any script in it."""
    browser = await world.login()
    assert (await browser.get("/cookies")).json() == []
    browser.cookies.set("theme", "dark")
    browser.cookies.set("cm_authors", "7")
    (line,) = (await browser.get("/cookies")).json()
    assert sorted(line.split("; ")) == ["cm_authors=7", "theme=dark"]


async def test_an_exempt_path_has_the_header_of_who_is_logged_in(world: World) -> None:
    assert await handle_of(await world.login(), "/open")


async def test_a_websocket_has_the_header_too(make_world) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await Response()(scope, receive, send)
            return
        seen.extend(scope["headers"])
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    world = make_world(app=CMSessionHeader(app))
    headers = await ws_headers(world)
    await Socket(world, {**headers, "X-CM-Session": "forged"}).run()
    (handle,) = [value for name, value in seen if name == b"x-cm-session"]
    session = await world.engine.session_for(handle.decode())
    assert session.user["email"] == "anna@example.com"


@both_providers
async def test_the_handle_is_dead_after_the_logout(world: World) -> None:
    browser = await world.login()
    handle = await handle_of(browser)
    cm = await world.engine.client_for(handle)
    await browser.post("/auth/logout")
    for use in (world.engine.session_for, world.engine.client_for, lambda _: cm.get("/rest/x")):
        with pytest.raises(SessionExpiredError):
            await use(handle)


async def test_outside_of_the_login_it_says_so() -> None:
    app = CMSessionHeader(Starlette())
    for scope in ({"type": "http", "headers": []}, {"type": "websocket", "state": {}}):
        with pytest.raises(CMAuthError, match="inside of CMAuthMiddleware"):
            await app(scope, None, None)
