"""The pages in a real Chromium: nothing that a screen reader trips over, nothing that CSP stops."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.asgi import ASGIRequest
from cm_auth_middleware.testing import AppServer, SimulatorServer
from cm_auth_middleware.web.messages import LANGUAGES, MESSAGES
from cm_auth_middleware.web.pages import Pages
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.servers import WSGIServer
from tests.helpers.world import SECRET_KEY

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DOCS = Path(__file__).parents[2] / "docs"


def gallery(engine: AuthEngine) -> Starlette:
    """Every page, drawn and headed as the flow does it."""
    services = engine.async_services
    options = engine.config
    pages = Pages(
        options.error_handler,
        services.runtime,
        services.gate.origins,
        "CameraManager",
        options.app_name,
        options.app_logo,
    )

    async def show(request: Request) -> Response:
        kind = request.path_params["kind"]
        method = "post" if kind == "log_out" else "get"
        asked = ASGIRequest(request.scope)
        answer = await pages.show(asked, 200, kind, "/next", method=method)
        return Response(answer.body, 200, dict(answer.headers))

    return Starlette(routes=[Route("/{kind}", show)])


@pytest.fixture(scope="module")
def shown() -> Iterator[AppServer]:
    engine = AuthEngine(client_id="a", client_secret="b", secret_key=SECRET_KEY)
    with AppServer(gallery(engine)) as server:
        yield server


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_has_a_barrier(browser: Browser, shown: AppServer, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    for kind in MESSAGES:
        page.goto(f"{shown.url}/{kind}")
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    assert [text for text in complaints if "Content Security Policy" in text] == []
    context.close()


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_browser_is_spoken_to_in_its_language(browser: Browser, shown, language: str) -> None:
    context = browser.new_context(locale=language)
    page = context.new_page()
    for kind, messages in MESSAGES.items():
        page.goto(f"{shown.url}/{kind}")
        expect(page).to_have_title(messages[language].title)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    context.close()


def test_pages_fit_a_telephone(browser: Browser, shown: AppServer) -> None:
    context = browser.new_context(viewport={"width": 320, "height": 568}, locale="de")
    page = context.new_page()
    for kind in MESSAGES:
        page.goto(f"{shown.url}/{kind}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, kind
    context.close()


@pytest.fixture(scope="module")
def named() -> Iterator[AppServer]:
    """The pages of an application that has a long name and a wide picture."""
    picture = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 10"><path d="M0 0h90v9z"/></svg>'
    )
    engine = AuthEngine(
        client_id="a",
        client_secret="b",
        secret_key=SECRET_KEY,
        app_name="W" * 100,
        app_logo=f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}",
    )
    with AppServer(gallery(engine)) as server:
        yield server


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_name_and_a_picture_are_shown_and_fit(browser: Browser, named, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": 320, "height": 568}, color_scheme=scheme, locale="de"
    )
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    for kind in MESSAGES:
        page.goto(f"{named.url}/{kind}")
        expect(page.locator("main .app")).to_have_text("W" * 100)
        assert page.locator("main img").evaluate("(picture) => picture.naturalWidth") > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, kind
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
    assert [text for text in complaints if "Content Security Policy" in text] == []
    context.close()


def test_the_way_back_from_the_logout_leads_into_the_application(page: Page, site) -> None:
    page.goto("/deep/x?q=1")
    page.get_by_role("link", name="Inloggen met CameraManager").click()
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    page.goto("/auth/logout")
    page.get_by_role("link", name="Annuleren").click()
    expect(page).to_have_url(f"{site.url}/")
    expect(page.get_by_text("anna@example.com")).to_be_visible()


def test_a_style_that_somebody_slips_in_is_stopped(browser: Browser, shown: AppServer) -> None:
    page = browser.new_page()
    page.goto(f"{shown.url}/denied")
    page.evaluate(
        "document.head.append(Object.assign(document.createElement('style'),"
        "{textContent: 'h1{display:none}'}))"
    )
    expect(page.get_by_role("heading")).to_be_visible()
    page.context.close()


@pytest.fixture(params=["asgi", "wsgi"])
def site(request, cm: SimulatorServer) -> Iterator[AppServer | WSGIServer]:
    engine = AuthEngine(
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
        auto_login=False,
    )
    if request.param == "asgi":
        server = AppServer(CMAuthMiddleware(make_app(), engine=engine))
    else:
        server = WSGIServer(CMAuthWSGIMiddleware(make_wsgi_app(), engine=engine))
    with server:
        yield server


@pytest.fixture
def page(browser: Browser, site) -> Iterator[Page]:
    context = browser.new_context(base_url=site.url, locale="nl-NL")
    context.set_default_timeout(15_000)
    yield context.new_page()
    context.close()


def test_a_person_walks_from_page_to_page(page: Page, site) -> None:
    page.goto("/deep/x?q=1")
    page.get_by_role("link", name="Inloggen met CameraManager").click()
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    expect(page).to_have_url(f"{site.url}/deep/x?q=1")
    page.goto("/auth/logout")
    page.get_by_role("button", name="Uitloggen").click()
    expect(page.get_by_role("heading", name="U bent uitgelogd")).to_be_visible()
    page.get_by_role("link", name="Opnieuw inloggen").click()
    expect(page).to_have_url(f"{site.url}/")  # CameraManager remembers the person
    page.goto("/auth/signed-out")
    expect(page).to_have_url(f"{site.url}/")


@pytest.mark.parametrize(
    "address", ["/deep/x?q=1#cam=3&zoom=2", "/deep/x#/live/5?a=%20b", "/deep/x?next=/y#a'%22<b>"]
)
def test_the_fragment_of_the_address_survives_the_login(page: Page, site, address: str) -> None:
    """R32: no server sees it; the landing page's script puts it into the link."""
    page.goto(address)
    before = page.url
    page.get_by_role("link", name="Inloggen met CameraManager").click()
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    expect(page).to_have_url(before)
    assert page.evaluate("location.href") == before


def test_trying_again_keeps_the_fragment(browser: Browser, shown: AppServer) -> None:
    """R32: the page of an outage stands in between, too. One that leads elsewhere does not."""
    page = browser.new_page()
    for kind, link in (
        ("unavailable", "/next%23cam%3D3"),
        ("log_in", "/next%23cam%3D3"),
        ("signed_out", "/next"),
    ):
        page.goto(f"{shown.url}/{kind}#cam=3")
        assert page.locator("a.go").get_attribute("href").removeprefix(shown.url) == link
    page.context.close()


def own_page(page: Page, body: str, policy: str = "") -> None:
    """Open a page of the application's, which a browser kept from before the session ended.

    Args:
        policy: its Content-Security-Policy.
    """
    headers = {"content-type": "text/html", "content-security-policy": policy}
    page.route("**/kept", lambda route: route.fulfill(headers=headers, body=body))
    page.goto("/kept")


@pytest.mark.parametrize("path", ["/deep/x", "/auth/login?next=/deep/x"])
def test_the_page_in_a_frame_opens_the_login_at_the_top(page: Page, site, cm, path: str) -> None:
    """R33: CameraManager is not asked for within the frame."""
    own_page(page, f'<iframe src="{path}"></iframe>')
    frame = page.frame_locator("iframe")
    frame.get_by_role("link", name="Inloggen met CameraManager").click()
    expect(page.get_by_label("E-mail")).to_be_visible()
    assert page.url.startswith(cm.url)


def test_a_form_that_came_too_late_gets_a_page(page: Page, site) -> None:
    """R19: and its link leads to the login."""
    own_page(page, "<form method=post action=/data><input name=a><button>Send</button></form>")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("heading", name="Het formulier is niet verzonden")).to_be_visible()


def test_a_logout_whose_redirects_lead_to_another_origin_is_not_stopped(page, cm) -> None:
    page.goto("/auth/logout?next=/auth/login")
    page.get_by_role("button", name="Uitloggen").click()
    expect(page.get_by_label("E-mail")).to_be_visible()
    assert page.url.startswith(cm.url)


def test_the_documented_logout_form_works_under_a_strict_policy(page: Page, site) -> None:
    """R41: Chromium applies form-action to the redirects after a form, too."""
    page.goto("/deep/x")
    page.get_by_role("link", name="Inloggen met CameraManager").click()
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    expect(page).to_have_url(f"{site.url}/deep/x")
    found = re.search("```html\n(<form.*?</form>)\n```", (DOCS / "pages.md").read_text(), re.DOTALL)
    assert found is not None
    own_page(page, found[1], "default-src 'self'; form-action 'self'")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="U bent uitgelogd")).to_be_visible()
    page.goto("/deep/x")
    expect(page.get_by_role("link", name="Inloggen met CameraManager")).to_be_visible()
