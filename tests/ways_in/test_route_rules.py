"""A rule for some routes: `require` of FastAPI and of Flask, and the 403 that refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import flask
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import PlainTextResponse
from starlette.applications import Starlette
from starlette.routing import Route

from cm_auth_middleware import CMAuthMiddleware, ForbiddenError, SessionExpiredError
from cm_auth_middleware.fastapi import CMSession, require
from cm_auth_middleware.flask import CMAuth, cm_session
from cm_auth_middleware.flask import require as flask_require
from tests.helpers.browser import BOB, Socket, ws_headers
from tests.helpers.world import APP, JSON, World
from tests.matrix.server_processes import needs
from tests.ways_in.conftest import Read

pytestmark = pytest.mark.anyio

Guarded = Callable[..., World]


def is_bob(user: dict[str, Any]) -> bool:
    return user["accountId"] == 502


async def is_bob_async(user: dict[str, Any]) -> bool:
    return is_bob(user)


def fastapi_site(rule: Any) -> FastAPI:
    app = FastAPI(default_response_class=PlainTextResponse)
    router = APIRouter(prefix="/team", dependencies=[Depends(require(rule))])

    @app.get("/")
    async def home(session: CMSession) -> str:
        return session.user["email"]

    @app.api_route("/admin", methods=["GET", "POST"], dependencies=[Depends(require(rule))])
    def admin() -> str:
        return "the admin's page"

    @router.get("/plans")
    async def plans() -> str:
        return "the team's plans"

    @app.get("/cameras/{number}")
    def camera(number: int) -> str:
        raise ForbiddenError

    app.include_router(router)
    return app


def answering(text: str, status: int) -> Any:
    """Return a handler of errors, for FastAPI."""

    async def answer(request: Any, error: Any) -> PlainTextResponse:
        return PlainTextResponse(text, status)

    return answer


def flask_site(rule: Any) -> flask.Flask:
    app = flask.Flask(__name__)
    blueprint = flask.Blueprint("team", __name__, url_prefix="/team")

    @app.get("/")
    def home() -> str:
        return cm_session.user["email"]

    @app.route("/admin", methods=["GET", "POST"])
    @flask_require(rule)
    def admin() -> str:
        return "the admin's page"

    @blueprint.before_request
    @flask_require(rule)
    def only_some() -> None:
        """Admit whom the rule admits."""

    @blueprint.get("/plans")
    def plans() -> str:
        return "the team's plans"

    @app.get("/cameras/<int:number>")
    def camera(number: int) -> str:
        raise ForbiddenError

    app.register_blueprint(blueprint)
    return app


@pytest.fixture
def guarded(make_world, side: str) -> Guarded:
    """Make a site with a home for all, and a page and a subtree for whom a rule admits."""

    def make(rule: Any, answers: Any = None, **options: Any) -> World:
        world: World = make_world(**options)
        if side == "asgi":
            app = fastapi_site(rule)
            app.add_middleware(CMAuthMiddleware, engine=world.engine)
            for error, answer in (answers or {}).items():
                app.add_exception_handler(error, answering(*answer))
            world.net.add(APP, app)
        else:
            site = flask_site(rule)
            CMAuth(site, engine=world.engine)
            for error, answer in (answers or {}).items():
                site.register_error_handler(error, lambda _, answer=answer: answer)
            world.net.add_wsgi(APP, site)
        return world

    return make


@pytest.mark.parametrize("rule", [is_bob, is_bob_async])
async def test_a_rule_admits_some_users_to_a_route_and_to_a_part(guarded: Guarded, rule) -> None:
    world = guarded(rule)
    bob, anna = await world.login(BOB), await world.login()
    assert (await bob.get("/admin")).text == "the admin's page"
    assert (await bob.get("/team/plans")).text == "the team's plans"
    for path in ("/admin", "/team/plans"):
        refused = await anna.get(path)
        assert refused.status_code == 403
        assert "<h1>You have no access to this page</h1>" in refused.text
        assert '<a class="go" href="/">' in refused.text
    assert (await anna.get("/")).text == "anna@example.com"  # she stays logged in


async def test_a_handler_may_refuse_by_itself(guarded: Guarded) -> None:
    """Where the rule is about more than the user."""
    world = guarded(is_bob)
    refused = await (await world.login(BOB)).get("/cameras/7")
    assert refused.status_code == 403
    assert "You have no access to this page" in refused.text


async def test_each_refusal_is_in_the_audit_log_once(guarded: Guarded, audited: Read) -> None:
    """Also where the framework answers 500 first, and where the handler refuses by itself."""
    world = guarded(is_bob)
    anna = await world.login()
    about = {**audited()[0], "event": "request_denied", "reason": "rule"}
    for path in ("/admin", "/team/plans", "/cameras/7"):
        assert (await anna.get(path)).status_code == 403
        assert audited() == [about]
    answered = guarded(is_bob, {ForbiddenError: ("ask Bob", 418)})
    anna = await answered.login()
    audited()
    assert (await anna.get("/admin")).status_code == 418
    assert audited() == []  # that answer is the application's


def framework_of(side: str, error: Exception) -> Any:
    """Return an application whose handlers raise, inside of a framework that answers 500."""

    async def home(request: Any) -> PlainTextResponse:
        return PlainTextResponse("home")

    async def raises(request: Any) -> PlainTextResponse:
        raise error

    def raises_in_a_thread(request: Any) -> PlainTextResponse:
        raise error

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        try:
            if environ["PATH_INFO"] != "/":
                raise error
            start_response("200 OK", [("Content-Type", "text/plain")])
        except Exception:
            headers = [("Content-Type", "text/plain")]
            start_response("500 Internal Server Error", headers, sys.exc_info())
        return [b"of the framework"]

    if side == "wsgi":
        return wsgi
    routes = [Route("/", home), Route("/one", raises), Route("/two", raises_in_a_thread)]
    return Starlette(routes=routes)


async def test_a_framework_that_answers_500_inside_of_the_middleware_hides_no_refusal(
    make_world, side: str, audited: Read
) -> None:
    """As Starlette does in CMAuthMiddleware(Starlette(…)); Litestar, too."""
    world = make_world(app=framework_of(side, ForbiddenError()))
    browser = await world.login()
    audited()
    for path in ("/one", "/two"):
        refused = await browser.get(path)
        assert refused.status_code == 403
        assert "You have no access to this page" in refused.text
        assert [event["reason"] for event in audited()] == ["rule"]


@pytest.mark.matrix
@pytest.mark.parametrize("side", ["asgi"])
async def test_litestar_hides_none_either(make_world) -> None:
    needs("litestar")
    import litestar

    async def admin(request: Any) -> str:
        raise ForbiddenError

    admin.__annotations__ = {"request": litestar.Request[Any, Any, Any], "return": str}
    app = litestar.Litestar([litestar.get("/admin")(admin)], openapi_config=None)
    refused = await make_world(app=app).browser().login("/admin")
    assert refused.status_code == 403
    assert "You have no access to this page" in refused.text


async def test_nor_does_it_hide_that_the_session_is_over(make_world, side: str) -> None:
    world = make_world(app=framework_of(side, SessionExpiredError()))
    browser = await world.login()
    world.clock.tick(61)  # past the minute in which a lost session means lost cookies
    for path in ("/one", "/two"):
        assert (await browser.get(path)).status_code == 302


async def test_what_is_an_error_of_the_application_stays_one(make_world, side: str) -> None:
    world = make_world(app=framework_of(side, ValueError("no such table")))
    browser = await world.login()
    with pytest.raises(ValueError, match="no such table"):
        await browser.get("/one")


async def test_a_program_is_refused_with_a_problem_and_no_login(guarded: Guarded) -> None:
    world = guarded(is_bob)
    anna = await world.login()
    refused = await anna.post("/admin", headers=JSON)
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/problem+json"
    assert "login_url" not in refused.json()  # another login would not help


async def test_a_visitor_of_an_exempt_route_with_a_rule_is_sent_to_the_login(guarded) -> None:
    world = guarded(is_bob, exempt=["/admin", "/team/*"])
    for path in ("/admin", "/team/plans"):
        assert (await world.browser().get(path)).status_code == 302
        assert (await world.browser(**JSON).get(path)).status_code == 401


async def test_a_rule_that_fails_is_an_error_of_the_route(guarded: Guarded, side: str) -> None:
    def fails(user: Any) -> bool:
        raise RuntimeError("no such table")

    world = guarded(fails)
    browser = await world.login()
    if side == "wsgi":
        assert (await browser.get("/admin")).status_code == 500
        return
    with pytest.raises(Exception, match="no such table"):
        await browser.get("/admin")


async def test_the_applications_own_answer_to_the_refusal_wins(guarded: Guarded) -> None:
    world = guarded(is_bob, {ForbiddenError: ("ask Bob", 418)})
    refused = await (await world.login()).get("/admin")
    assert (refused.status_code, refused.text) == (418, "ask Bob")


async def test_a_catch_all_handler_does_not_hide_the_refusal(guarded: Guarded) -> None:
    world = guarded(is_bob, {Exception: ("caught", 500)}, exempt=["/team/*"])
    assert (await (await world.login()).get("/admin")).status_code == 403
    assert (await world.browser().get("/team/plans")).status_code == 302


@pytest.mark.slow
@pytest.mark.parametrize("side", ["wsgi"])
async def test_an_async_view_of_flask_has_its_rule_too(guarded: Guarded) -> None:
    needs("asgiref")  # which Flask's async views need
    world = guarded(is_bob)
    app = flask.Flask(__name__)

    @app.get("/")
    @flask_require(is_bob_async)
    async def home() -> str:
        return "for Bob"

    CMAuth(app, engine=world.engine)
    world.net.add_wsgi(APP, app)
    assert (await (await world.login(BOB)).get("/")).text == "for Bob"
    browser = world.browser()
    assert (await browser.login("/")).status_code == 403


@pytest.mark.parametrize("side", ["asgi"])
async def test_a_websocket_is_refused_before_it_is_accepted(make_world, audited: Read) -> None:
    app = FastAPI()
    world = make_world(app=app)

    @app.get("/")
    async def home() -> str:
        return "home"

    @app.websocket("/ws", dependencies=[Depends(require(is_bob))])
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()

    headers = await ws_headers(world)
    about = {**audited()[0], "event": "request_denied", "reason": "rule"}
    sent = await Socket(world, headers).run()
    assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 403)
    plain = await Socket(world, headers, denial=False).run()
    assert plain == [{"type": "websocket.close", "code": 4403}]
    assert audited() == [about, about]


@pytest.mark.parametrize("side", ["asgi"])
@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([ForbiddenError()], 403),
        ([ForbiddenError(), SessionExpiredError()], 302),
        ([ForbiddenError(), ValueError()], None),
    ],
    ids=["refused", "and the session is over", "and a fault of the route"],
)
async def test_errors_of_calls_side_by_side_have_one_answer(make_world, errors, status) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ExceptionGroup("side by side", errors)

    world = make_world(app=app)
    browser = world.browser()
    url = browser.callback_url((await browser.get("/")).headers["location"])
    assert (await browser.get(url)).status_code == 302
    if status is None:
        with pytest.raises(Exception, match="side by side"):
            await browser.get("/")
    else:
        # Past the minute in which a lost session means lost cookies.
        world.clock.tick(61)
        assert (await browser.get("/")).status_code == status
