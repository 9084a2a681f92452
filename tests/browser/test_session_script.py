"""``session.js`` in a real Chromium, behind both sides, under a strict Content-Security-Policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import AppServer, SimulatorServer
from tests.helpers.servers import WSGIServer
from tests.helpers.world import SECRET_KEY, Clock

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FETCH = "fetch('/data').then(() => {})"
XHR = "{ const request = new XMLHttpRequest(); request.open('GET', '/data'); request.send() }"
SOCKET = "{ new WebSocket(location.origin.replace('http', 'ws') + '/socket') }"


def page_of(engine: AuthEngine) -> tuple[str, dict[str, str]]:
    """A page with the script, twice, and headers that allow nothing else."""
    digest = engine.session_script_hash
    script = f'<script src="/auth/session.js" integrity="{digest}" data-warn="120"></script>'
    html = (
        f'<!doctype html><html lang="en"><head><title>App</title>{script}{script}</head>'
        "<body><main><h1>App</h1><textarea aria-label='Note'></textarea></main></body></html>"
    )
    policy = f"default-src 'none'; script-src '{digest}'; connect-src 'self'"
    return html, {"Content-Security-Policy": policy}


def asgi_app(engine: AuthEngine) -> Starlette:
    html, headers = page_of(engine)

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=headers)

    return Starlette(routes=[Route(path, page) for path in ("/", "/open", "/data")])


def wsgi_app(engine: AuthEngine) -> flask.Flask:
    html, headers = page_of(engine)
    app = flask.Flask(__name__)
    for path in ("/", "/open", "/data"):
        app.add_url_rule(path, path, lambda: (html, headers))
    return app


class Site:
    """A page with the script; time passes in the browser and on the server alike."""

    def __init__(self, context: BrowserContext, clock: Clock) -> None:
        self.context = context
        self.clock = clock
        self.page: Page = context.new_page()
        self.looks: list[str] = []
        self.page.on("request", self._note)
        self.page.clock.install()

    def _note(self, request: Any) -> None:
        if request.url.endswith("/auth/session"):
            self.looks.append(request.method)

    def log_in(self, path: str = "/") -> None:
        page = self.page
        page.goto("/")
        page.get_by_label("E-mail").fill("anna@example.com")
        page.get_by_label("Password").fill("cameras")
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("button", name="Allow").click()
        expect(page.get_by_role("heading", name="App")).to_be_visible()
        self.looks.clear()
        page.goto(path)
        page.wait_for_load_state("networkidle")

    def log_out_elsewhere(self) -> None:
        answer = self.context.request.post("/auth/logout", max_redirects=0)
        assert answer.status == 303

    def tick(self, seconds: int) -> None:
        """Let time pass; longer than 30 seconds, so that a look is due."""
        assert seconds > 30
        self.clock.tick(seconds)
        with self.page.expect_response("**/auth/session"):
            self.page.clock.fast_forward(1000 * seconds)


@pytest.fixture(params=["asgi", "wsgi"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


Make = Callable[..., Site]


@pytest.fixture
def make_site(side: str, browser: Browser, cm: SimulatorServer) -> Iterator[Make]:
    clock = Clock()
    engine = AuthEngine(
        clock=clock,
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
        exempt=["/open"],
        idle_timeout=1000,
        absolute_timeout=2500,
    )
    if side == "asgi":
        server: Any = AppServer(CMAuthMiddleware(asgi_app(engine), engine=engine))
    else:
        server = WSGIServer(CMAuthWSGIMiddleware(wsgi_app(engine), engine=engine))
    contexts: list[BrowserContext] = []

    def make(**options: Any) -> Site:
        contexts.append(browser.new_context(base_url=server.url, **options))
        contexts[-1].set_default_timeout(15_000)
        return Site(contexts[-1], clock)

    with server:
        yield make
        for context in contexts:
            context.close()


@pytest.fixture
def site(make_site: Make) -> Site:
    site = make_site()
    site.log_in()
    return site


# -- before the end ----------------------------------------------------------------------------


def test_it_warns_two_minutes_before_the_end_and_lets_the_person_stay(site: Site) -> None:
    page = site.page
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(845)
    expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(40)
    expect(page.get_by_role("alert")).to_contain_text("logged out in 2 min.")
    page.get_by_role("button", name="Stay logged in").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert site.looks.count("POST") == 1
    site.tick(500)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_warning_leaves_the_focus_with_a_person_who_types(site: Site) -> None:
    page = site.page
    page.get_by_label("Note").focus()
    site.tick(900)
    expect(page.get_by_role("alert")).to_be_visible()
    page.keyboard.type("still here")
    expect(page.get_by_label("Note")).to_have_value("still here")


def test_it_says_so_when_staying_is_of_no_use(site: Site) -> None:
    page = site.page
    for _ in range(2):
        site.tick(890)
        page.get_by_role("button", name="Stay logged in").click()
        expect(page.get_by_role("alert")).to_have_count(0)
    site.tick(610)
    page.get_by_role("button", name="Stay logged in").click()
    expect(page.get_by_role("alert")).to_contain_text("longest time")
    expect(page.get_by_role("link", name="Log in again")).to_be_visible()


def test_looks_do_not_keep_the_session_of_an_absent_person_alive(site: Site) -> None:
    for _ in range(10):
        site.tick(95)
    expect(site.page.get_by_role("alert")).to_contain_text("logged out in 1 min.")
    site.tick(60)
    expect(site.page.get_by_role("alert")).to_contain_text("You are logged out")


# -- after it ----------------------------------------------------------------------------------


def test_it_leads_to_the_login_and_back_to_the_very_page(make_site: Make) -> None:
    site = make_site()
    site.log_in("/?camera=3&name=a%20b#zone")
    page, url = site.page, site.page.url
    site.log_out_elsewhere()
    site.tick(31)
    expect(page.get_by_role("alert")).to_contain_text("You are logged out")
    with page.expect_navigation(url=url):  # CameraManager remembers the person
        page.get_by_role("link", name="Log in again").click()
    page.wait_for_load_state("networkidle")
    expect(page.get_by_role("heading", name="App")).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.parametrize("sign", [FETCH, XHR, SOCKET], ids=["fetch", "xhr", "socket"])
def test_a_sign_of_the_end_is_followed_up_at_once(site: Site, sign: str) -> None:
    page = site.page
    site.log_out_elsewhere()
    page.evaluate(f"() => {sign}")
    expect(page.get_by_role("alert")).to_contain_text("You are logged out", timeout=10_000)


def test_a_response_without_a_session_is_no_end_if_there_is_one(site: Site) -> None:
    page = site.page
    page.route("**/data", lambda route: route.fulfill(status=401))
    with page.expect_response("**/auth/session"):
        page.evaluate(f"() => {FETCH}")
    page.wait_for_timeout(500)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_many_signs_make_one_look_a_second(site: Site) -> None:
    page = site.page
    page.route("**/data", lambda route: route.fulfill(status=401))
    page.wait_for_timeout(1_500)
    site.looks.clear()
    began = time.monotonic()
    for _ in range(20):
        page.evaluate(f"() => {FETCH}")
    page.wait_for_timeout(500)
    assert 1 <= len(site.looks) <= time.monotonic() - began + 1


@pytest.mark.parametrize("status", [None, 503])
def test_an_outage_is_no_end(site: Site, status: int | None) -> None:
    page = site.page
    asked: list[str] = []

    def fail(route: Any) -> None:
        asked.append(route.request.url)
        route.abort() if status is None else route.fulfill(status=status)

    page.route("**/auth/session", fail)
    for _ in range(3):
        page.clock.fast_forward(31_000)
        page.wait_for_timeout(300)
    assert len(asked) >= 3
    expect(page.get_by_role("alert")).to_have_count(0)
    page.unroute("**/auth/session")
    site.log_out_elsewhere()
    site.tick(31)
    expect(page.get_by_role("alert")).to_contain_text("You are logged out")


def test_escape_leaves_the_box_in_the_corner_and_gives_the_page_back(site: Site) -> None:
    page = site.page
    page.get_by_label("Note").fill("not saved yet")
    site.log_out_elsewhere()
    site.tick(31)
    link = page.get_by_role("link", name="Log in again")
    expect(link).to_be_focused()
    page.keyboard.press("Escape")
    expect(link).to_be_visible()
    page.get_by_label("Note").click()
    expect(page.get_by_label("Note")).to_be_focused()
    expect(page.get_by_label("Note")).to_have_value("not saved yet")


# -- who sees it, and how ----------------------------------------------------------------------


def test_a_dialog_of_a_framework_does_not_make_the_link_inert(site: Site) -> None:
    """Streamlit's "connection lost" makes all that is beside it inert, as React Aria does it."""
    page = site.page
    site.log_out_elsewhere()
    site.tick(31)
    again = page.get_by_role("link", name="Log in again")
    expect(again).to_be_visible()
    page.evaluate("for (const one of [...document.body.children, document.body]) one.inert = true")
    page.evaluate("document.querySelector('cm-session').inert = true")
    again.click()
    expect(page.get_by_role("heading", name="App")).to_be_visible()


def test_a_visitor_of_an_open_page_is_told_nothing(make_site: Make) -> None:
    site = make_site()
    site.page.goto("/open")
    site.page.evaluate(f"() => {FETCH}")
    site.tick(31)
    site.tick(31)
    expect(site.page.get_by_role("alert")).to_have_count(0)


def test_a_page_that_loads_it_twice_asks_once(site: Site) -> None:
    assert site.looks == ["GET"]


def test_it_speaks_the_language_of_the_browser(make_site: Make) -> None:
    site = make_site(locale="nl-BE")
    site.log_in()
    site.tick(900)
    expect(site.page.get_by_role("alert")).to_contain_text("uitgelogd")
    expect(site.page.get_by_role("button", name="Ingelogd blijven")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(make_site: Make, scheme: Any) -> None:
    site = make_site(color_scheme=scheme)
    site.log_in()
    site.tick(900)
    expect(site.page.get_by_role("alert")).to_be_visible()
    before = Axe().run(site.page)
    assert before.violations_count == 0, before.generate_report()
    site.log_out_elsewhere()
    site.tick(31)
    expect(site.page.get_by_role("link", name="Log in again")).to_be_visible()
    after = Axe().run(site.page)
    assert after.violations_count == 0, after.generate_report()
