"""The snippet that warns before a session ends, behind both sides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flask
import pytest
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import AppServer, SimulatorServer
from tests.helpers.servers import WSGIServer
from tests.helpers.world import SECRET_KEY, Clock

pytestmark = [pytest.mark.browser, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPT = (EXAMPLES / "dashboard" / "static" / "session-warning.js").read_text()
PAGE = """<!doctype html><html lang="en"><title>App</title><h1>App</h1>
<script src="/warning.js" data-warn="120" defer></script></html>"""


def asgi_app() -> Starlette:
    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE)

    async def script(request: Request) -> Response:
        return Response(SCRIPT, media_type="text/javascript")

    return Starlette(routes=[Route("/", page), Route("/warning.js", script)])


def wsgi_app() -> flask.Flask:
    app = flask.Flask(__name__)
    app.add_url_rule("/", "page", lambda: PAGE)
    app.add_url_rule(
        "/warning.js", "script", lambda: flask.Response(SCRIPT, mimetype="text/javascript")
    )
    return app


class Site:
    """A page with the snippet; time passes in the browser and on the server alike."""

    def __init__(self, page: Page, clock: Clock, sim: Any) -> None:
        self.page = page
        self.clock = clock
        self.sim = sim
        page.clock.install()
        page.goto("/")
        page.get_by_label("E-mail").fill("anna@example.com")
        page.get_by_label("Password").fill("cameras")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Allow").click()
        expect(page.get_by_role("heading", name="App")).to_be_visible()
        page.wait_for_load_state("networkidle")

    def tick(self, seconds: int) -> None:
        self.clock.tick(seconds)
        self.page.clock.fast_forward(1000 * seconds)


@pytest.fixture(params=["asgi", "wsgi"])
def site(request, browser: Browser, cm: SimulatorServer) -> Iterator[Site]:
    clock = Clock()
    engine = AuthEngine(
        clock=clock,
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
        idle_timeout=1000,
        absolute_timeout=2500,
    )
    if request.param == "asgi":
        server: Any = AppServer(CMAuthMiddleware(asgi_app(), engine=engine))
    else:
        server = WSGIServer(CMAuthWSGIMiddleware(wsgi_app(), engine=engine))
    with server:
        context = browser.new_context(base_url=server.url)
        context.set_default_timeout(15_000)
        yield Site(context.new_page(), clock, cm.simulator)
        context.close()


def test_it_warns_two_minutes_before_the_end_and_lets_the_person_stay(site: Site) -> None:
    page = site.page
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(870)
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(15)
    expect(page.get_by_role("alert")).to_contain_text("logged out in 2 min.")
    page.get_by_role("button", name="Stay logged in").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(500)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_it_says_so_when_the_session_is_over(site: Site) -> None:
    page = site.page
    site.tick(881)
    expect(page.get_by_role("alert")).to_contain_text("logged out in")
    site.tick(121)
    expect(page.get_by_role("alert")).to_contain_text("You are logged out.")
    page.get_by_role("link", name="Log in again").click()
    expect(page.get_by_role("heading", name="App")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_it_says_so_when_staying_is_of_no_use(site: Site) -> None:
    page = site.page
    for _ in range(2):
        site.tick(890)
        page.get_by_role("button", name="Stay logged in").click()
        expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(610)
    page.get_by_role("button", name="Stay logged in").click()
    expect(page.get_by_role("alert")).to_contain_text("longest time")
