"""The user, as frameworks expect one: `request.user`, `request.auth` and `REMOTE_USER`."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    SimpleUser,
    requires,
)
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from tests.helpers.browser import BOB, Socket, ws_headers
from tests.helpers.world import APP, MakeWorld, World, both_providers

pytestmark = pytest.mark.anyio

asgi = pytest.mark.parametrize("side", ["asgi"])
wsgi = pytest.mark.parametrize("side", ["wsgi"])


# -- request.user and request.auth -------------------------------------------------------------


async def who(request: Request) -> JSONResponse:
    user = request.user
    told = [user.is_authenticated, user.display_name, user.identity, request.auth.scopes]
    request.auth.scopes.append("admin")  # which must not reach the next request
    return JSONResponse([*told, repr(user)])


@requires("read")
async def read(request: Request) -> PlainTextResponse:
    return PlainTextResponse("read")


@requires(["authenticated", "write"])
def write(request: Request) -> PlainTextResponse:
    return PlainTextResponse("written")


@requires("read")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(websocket.user.identity)
    await websocket.close()


def site() -> Starlette:
    routes = [Route("/", who), Route("/read", read), Route("/write", write)]
    return Starlette(routes=[*routes, WebSocketRoute("/ws", socket)])


@asgi
@both_providers
async def test_starlettes_request_has_the_user_and_the_scopes(make_world, provider: str) -> None:
    world = make_world(app=site(), exempt=["/"])
    is_v3 = provider == "eagleeye"
    browser = await world.login(path="/auth/login")
    session = (await browser.get("/auth/session")).json()
    assert session["user"]["id" if is_v3 else "userId"] == world.user_id()
    for _ in range(2):
        *told, shown = (await browser.get("/")).json()
        scopes = ["authenticated", *(["vms.all"] if is_v3 else ["write", "read"])]
        assert told == [True, "Anna Jansen", str(world.user_id()), scopes]
        assert shown.startswith("<CMUser ")
        assert "Anna" not in shown
    visitor = (await world.browser().get("/")).json()
    assert visitor == [False, "", "", [], "<CMUser>"]


@asgi
@pytest.mark.parametrize(("scope", "status"), [("read", 403), ("write", 200)])
async def test_requires_goes_by_the_granted_scope(make_world, scope: str, status: int) -> None:
    world = make_world(app=site(), scope=scope)
    browser = await world.login(path="/read")
    assert (await browser.get("/write")).status_code == status


@asgi
async def test_requires_refuses_a_visitor_of_an_exempt_path(make_world: MakeWorld) -> None:
    world = make_world(app=site(), exempt=["/read"])
    assert (await world.browser().get("/read")).status_code == 403


@asgi
async def test_a_websocket_has_the_user_too(make_world: MakeWorld) -> None:
    world = make_world(app=site())
    sent = await Socket(world, await ws_headers(world)).run()
    assert [message.get("text") for message in sent] == [None, "10003", None]


class Guest(AuthenticationBackend):
    """Another way to log in, as an application may have it."""

    async def authenticate(
        self,
        conn: HTTPConnection,  # noqa: ARG002 - of the base class
    ) -> tuple[AuthCredentials, SimpleUser]:
        return AuthCredentials(["guest"]), SimpleUser("guest")


@asgi
@pytest.mark.parametrize("is_around", [True, False])
async def test_the_user_of_another_middleware_stays(make_world, is_around: bool) -> None:
    world = make_world()
    login = Middleware(CMAuthMiddleware, engine=world.engine)
    other = Middleware(AuthenticationMiddleware, backend=Guest())
    both = [other, login] if is_around else [login, other]

    async def named(request: Request) -> JSONResponse:
        return JSONResponse([request.user.display_name, request.auth.scopes])

    world.net.add(APP, Starlette(routes=[Route("/", named)], middleware=both))
    assert (await (await world.login()).get("/")).json() == ["guest", ["guest"]]


@asgi
async def test_the_user_is_that_of_the_innermost_login(make_world: MakeWorld) -> None:
    outer = make_world(app=None)
    inner = World(side="asgi", app=site(), exempt=["/"], cookie_name="inner")
    outer.app.app = inner.app
    browser = outer.browser()
    found = await browser.login("/")
    assert found.json()[:2] == [False, ""]
    await inner.close()


@asgi
@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [("Anna", None, "Anna"), (None, "Jansen", "Jansen"), ("", "", "anna@example.com")],
)
async def test_a_user_without_a_name_is_called_by_the_address(
    make_world, first: Any, last: Any, shown: str
) -> None:
    world = make_world(app=site())
    world.sim.users[0].first_name, world.sim.users[0].last_name = first, last
    browser = await world.login()
    assert (await browser.get("/")).json()[1] == shown


# -- REMOTE_USER ---------------------------------------------------------------------------------


def told(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("REMOTE_USER", "nobody").encode("latin-1")]


@wsgi
@both_providers
async def test_remote_user_is_the_users_id_and_no_header_sets_it(make_world: MakeWorld) -> None:
    world = make_world(app=told, exempt=["/open"])
    anna, bob = await world.login(), await world.login(BOB)
    annas, bobs = str(world.user_id()), str(world.user_id(BOB))
    for path in ("/", "/open"):
        assert (await anna.get(path)).text == annas
        assert (await bob.get(path, headers={"Remote-User": annas})).text == bobs
    visitor = world.browser(**{"Remote-User": annas, "REMOTE_USER": annas})
    assert (await visitor.get("/open")).text == "nobody"


@wsgi
@pytest.mark.parametrize("user_id", [None, ""])
async def test_a_user_without_an_id_is_nobodys_namesake(make_world, user_id: Any) -> None:
    world = make_world(app=told)
    world.sim.users[0].user_id = user_id
    browser = world.browser()
    assert (await browser.login("/")).text == "nobody"


@wsgi
async def test_what_the_server_has_found_out_by_itself_stays_for_visitors(make_world) -> None:
    """A login of Apache's, for example, at a path that is exempt from this one."""
    world = make_world(app=told, exempt=["/open"])

    def apache(environ: Any, start_response: Any) -> Any:
        return world.app({**environ, "REMOTE_USER": "alice"}, start_response)

    world.net.add_wsgi(APP, apache)
    assert (await world.browser().get("/open")).text == "alice"
    assert (await (await world.login()).get("/open")).text == "10003"


@wsgi
async def test_remote_user_is_that_of_the_innermost_login(make_world: MakeWorld) -> None:
    outer = make_world(app=told)
    inner = World(side="wsgi", app=told, exempt=["/"], cookie_name="inner")
    assert isinstance(inner.app, CMAuthWSGIMiddleware)
    outer.app.app = inner.app
    assert (await outer.browser().login("/")).text == "nobody"
    await inner.close()
