"""The ASGI side: WebSockets, mounts, lifespan, unknown scopes, FastAPI."""

from __future__ import annotations

import asyncio
import logging

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.websockets import WebSocket

from cm_auth_middleware import CMAuthMiddleware, ConfigError, UnavailableError
from cm_auth_middleware.auth import connections
from cm_auth_middleware.fastapi import CMClient, CMSession
from tests.helpers.apps import make_app
from tests.helpers.browser import Socket, ws_headers
from tests.helpers.world import APP, HTML, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def side() -> str:
    return "asgi"


async def test_a_websocket_without_a_session_is_denied_before_accept(world: World) -> None:
    sent = await Socket(world, {"Host": "localhost:8000"}).run()
    assert sent[0]["type"] == "websocket.http.response.start"
    assert sent[0]["status"] == 401
    plain = await Socket(world, {"Host": "localhost:8000"}, denial=False).run()
    assert plain == [{"type": "websocket.close", "code": 4401}]


async def test_a_websocket_with_a_session_is_let_in(world: World) -> None:
    sent = await Socket(world, await ws_headers(world)).run()
    assert [m["type"] for m in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "anna@example.com"


async def test_a_websocket_from_another_site_is_refused_although_the_cookie_came(world) -> None:
    headers = await ws_headers(world)
    sent = await Socket(world, {**headers, "Origin": "http://evil.example"}).run()
    assert sent[0]["status"] == 403
    sent = await Socket(world, {**headers, "Origin": "http://localhost:8000"}).run()
    assert sent[0]["type"] == "websocket.accept"


async def test_an_open_websocket_closes_after_a_logout(world: World, monkeypatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY", 0.05)
    headers = await ws_headers(world)

    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await world.browser(Cookie=headers["Cookie"]).post("/auth/logout")
        message = await receive()
        while message["type"] != "websocket.disconnect":
            message = await receive()
        await send({"type": "websocket.send", "text": "too late"})

    inner = world.app.app
    world.app.app = app
    sent = await Socket(world, headers).run()
    world.app.app = inner
    assert sent == [{"type": "websocket.accept"}, {"type": "websocket.close", "code": 4401}]


def end_under_it(world: World, how: str) -> None:
    """Let the next call of a handler find its session over, or its token not to be renewed."""
    if how == "over":
        world.sim.revoke_user("anna@example.com")
    else:
        world.sim.fail_api(401, times=9)
        world.sim.fail_token(503, times=9)


@pytest.mark.parametrize(("how", "status", "code"), [("over", 401, 4401), ("down", 503, 1013)])
async def test_a_websocket_is_told_why_it_ends_under_its_handler(how, status, code) -> None:
    accepts = True

    async def app(scope, receive, send) -> None:
        if accepts:
            await receive()
            await send({"type": "websocket.accept", "subprotocol": "chat"})
        await scope["state"]["cm"].get("/rest/v2.4/cameras")

    world = World(app=app)
    browser = world.browser()
    start = await browser.get("/auth/login")
    await browser.get(browser.callback_url(start.headers["location"]))
    headers = {"Host": "localhost:8000", "Cookie": f"cm_auth={browser.named('cm_auth')[0]}"}
    end_under_it(world, how)
    accept = {"type": "websocket.accept", "subprotocol": "chat"}
    assert await Socket(world, headers).run() == [accept, {"type": "websocket.close", "code": code}]
    if how == "down":
        accepts = False
        sent = await Socket(world, headers).run()
        assert [(m["type"], m.get("status")) for m in sent] == [
            ("websocket.http.response.start", status),
            ("websocket.http.response.body", None),
        ]
        plain = await Socket(world, headers, denial=False).run()
        assert plain == [{"type": "websocket.close", "code": code}]
    await world.close()


async def test_a_websocket_that_closed_already_is_told_nothing() -> None:
    async def app(scope, receive, send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})
        raise UnavailableError("down")

    world = World(app=app, exempt=["/ws"])
    sent = await Socket(world, {"Host": "localhost:8000"}).run()
    assert sent == [{"type": "websocket.accept"}, {"type": "websocket.close", "code": 1000}]


async def test_a_visitors_websocket_that_needs_a_login_is_told_so() -> None:
    app = FastAPI()

    @app.websocket("/ws")
    async def socket(websocket: WebSocket, session: CMSession) -> None:
        raise AssertionError("there is nobody")

    world = World(app=app, exempt=["/ws"])
    sent = await Socket(world, {"Host": "localhost:8000"}).run()
    assert sent[0]["status"] == 401


async def test_a_websocket_handlers_own_error_is_the_servers_to_handle() -> None:
    async def app(scope, receive, send) -> None:
        raise ZeroDivisionError

    world = World(app=app, exempt=["/ws"])
    with pytest.raises(ZeroDivisionError):
        await Socket(world, {"Host": "localhost:8000"}).run()


@pytest.mark.parametrize(("how", "status"), [("over", 302), ("down", 503)])
async def test_calls_side_by_side_that_fail_alike_are_answered_as_one(how, status) -> None:
    async def overview(request: Request) -> Response:
        cm = request.state.cm
        async with asyncio.TaskGroup() as group:
            async with asyncio.TaskGroup() as inner:
                inner.create_task(cm.get("/rest/v2.4/cameras"))
                inner.create_task(cm.get("/rest/v2.4/cameras"))
            group.create_task(cm.get("/rest/v2.4/cameras"))
        return JSONResponse([])

    async def mixed(request: Request) -> Response:
        raise ExceptionGroup("of several kinds", [UnavailableError("down"), ZeroDivisionError()])

    world = World(app=make_app([Route("/overview", overview), Route("/mixed", mixed)]))
    browser = await world.login()
    with pytest.raises(ExceptionGroup):
        await browser.get("/mixed")
    end_under_it(world, how)
    assert (await browser.get("/overview")).status_code == status
    await world.close()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/ui/static/x", 200),
        ("/static/x", 401),  # took a proxy the mount off, or was it never for this mount?
        ("/ui/static/ui/x", 200),
        ("/static/ui/data", 401),  # Litestar routes /data
        ("/static/uidata", 401),
    ],
)
async def test_a_mount_in_the_middle_of_a_path_exempts_nothing(path: str, status: int) -> None:
    world = World(exempt=["/static/*"])
    transport = httpx2.ASGITransport(world.app, root_path="/ui")
    async with httpx2.AsyncClient(transport=transport, base_url=APP) as client:
        assert (await client.get(path)).status_code == status


async def test_a_mounted_app_logs_in_under_its_root_path() -> None:
    world = World()
    world.net.add("http://localhost:8000", Starlette(routes=[Mount("/sub", app=world.app)]))
    browser = world.browser()
    start = await browser.get("/sub/deep/x?q=1")
    assert (
        "redirect_uri=http%3A%2F%2Flocalhost%3A8000%2Fsub%2Fauth%2Fcallback"
        in (start.headers["location"])
    )
    page = await browser.finish(start.headers["location"])
    assert str(page.url) == "http://localhost:8000/sub/deep/x?q=1"


async def test_an_unknown_scope_type_is_refused(world: World) -> None:
    with pytest.raises(RuntimeError, match="unknown ASGI scope"):
        await world.app({"type": "webtransport"}, None, None)


async def test_lifespan_reaches_the_app_and_closes_connections_before_it_ends(world) -> None:
    order = []

    async def app(scope, receive, send) -> None:
        order.append(scope["type"])
        await send({"type": "lifespan.shutdown.complete"})

    async def close() -> None:
        order.append("closed")

    async def send(message) -> None:
        order.append(message["type"])

    world.app.app, world.engine.close = app, close
    await world.app({"type": "lifespan"}, None, send)
    assert order == ["lifespan", "closed", "lifespan.shutdown.complete"]


def fastapi_world() -> World:
    app = FastAPI()

    @app.get("/me")
    async def me(session: CMSession, cm: CMClient) -> dict:
        cameras = (await cm.get("/rest/v2.4/cameras")).json()
        return {"email": session.user["email"], "cameras": len(cameras)}

    return World(app=app, exempt=["/docs", "/openapi.json"])


async def test_fastapi_gets_client_and_session_by_injection() -> None:
    world = fastapi_world()
    browser = world.browser()
    page = await browser.login("/me")
    assert page.json() == {"email": "anna@example.com", "cameras": 4}


async def test_fastapi_docs_work_and_show_the_security_scheme() -> None:
    world = fastapi_world()
    browser = world.browser()
    assert "swagger" in (await browser.get("/docs")).text
    schema = (await browser.get("/openapi.json")).json()
    scheme = schema["components"]["securitySchemes"]["CameraManager"]
    assert scheme["in"] == "cookie"
    assert schema["paths"]["/me"]["get"]["security"] == [{"CameraManager": []}]


async def test_fastapi_on_an_exempt_path_asks_for_a_login() -> None:
    world = World(exempt=["/me"])
    app = fastapi_world().app.app
    app.add_middleware(CMAuthMiddleware, engine=world.engine)
    world.net.add("http://localhost:8000", app)
    assert (await world.browser().get("/me")).status_code == 302
    assert (await world.browser(Accept="*/*").get("/me")).status_code == 401


async def test_fastapi_without_the_middleware_says_what_is_missing() -> None:
    world = fastapi_world()
    world.net.add("http://localhost:8000", world.app.app)
    with pytest.raises(Exception, match="add_middleware"):
        await world.browser().get("/me")


async def test_add_middleware_is_all_that_an_app_needs() -> None:
    world = World()
    app = make_app()
    app.add_middleware(CMAuthMiddleware, engine=world.engine)
    world.net.add("http://localhost:8000", app)
    browser = world.browser()
    assert (await browser.login("/cameras")).status_code == 200
    world.sim.revoke_user("anna@example.com")
    world.clock.tick(60)
    assert (await browser.get("/cameras")).status_code == 302


async def test_a_whole_life_leaves_no_secret_in_the_logs(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    world = World()
    world.sim.settings.repeat_tokens_in_errors = True
    browser = await world.login()
    cookies = browser.named("cm_auth")
    world.sim.expire_access_tokens()
    await browser.get("/cameras")
    world.clock.tick(43300)
    await browser.get("/cameras")
    await browser.post("/auth/logout")
    assert "login session=" in caplog.text
    secrets = [*cookies, world.sim.client_secret]
    for call in world.sim.requests:
        secrets.append(call.headers.get("authorization", "").partition(" ")[2])
        secrets += [call.form.get(name, "") for name in ("code_verifier", "refresh_token")]
    ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("cm_auth"))
    for secret in filter(None, secrets):
        assert secret not in ours
    for page in (await browser.get("/auth/callback?code=x", headers=HTML),):
        assert page.status_code == 400


async def test_a_handlers_own_answer_to_an_outage_is_left_alone() -> None:
    async def handler(request: Request) -> Response:
        try:
            await request.state.cm.get("/rest/v2.4/cameras")
        except UnavailableError:
            return JSONResponse({"mine": True}, 503)
        return JSONResponse({})

    world = World(app=make_app([Route("/mine", handler)]))
    browser = await world.login()
    world.sim.expire_access_tokens()
    world.sim.fail_token(503)
    assert (await browser.get("/mine")).json() == {"mine": True}


async def test_fastapi_inside_of_the_middleware_asks_for_a_login_on_an_exempt_path() -> None:
    app = FastAPI()

    @app.get("/me")
    async def me(session: CMSession) -> str:
        return session.reference

    world = World(app=app, exempt=["/me"])
    transport = httpx2.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url=APP) as visitor:
        assert (await visitor.get("/me", headers=HTML)).status_code == 302
        assert (await visitor.get("/me")).status_code == 401


async def test_a_wrong_option_is_logged_where_a_server_may_swallow_it(caplog) -> None:
    with pytest.raises(ConfigError, match="client_id, client_secret and secret_key are missing"):
        CMAuthMiddleware(make_app())
    assert "client_id, client_secret and secret_key are missing" in caplog.text
    assert caplog.records[-1].levelname == "CRITICAL"
