"""A real Chromium at the dashboard: what a person would see."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect

from cm_auth_middleware.testing import AppServer, SimulatorServer
from tests.helpers.world import SECRET_KEY, both_providers

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def dashboard(cm: SimulatorServer):
    path = Path(__file__).parents[2] / "examples" / "dashboard" / "app.py"
    spec = importlib.util.spec_from_file_location("dashboard_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.create_app(
        provider=cm.simulator.settings.provider,
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
    )


@pytest.fixture
def site(cm: SimulatorServer) -> Iterator[AppServer]:
    with AppServer(dashboard(cm)) as server:
        yield server


@pytest.fixture
def context(browser: Browser, site: AppServer) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=site.url)
    context.set_default_timeout(15_000)
    yield context
    context.close()


def log_in(page: Page, path: str = "/") -> None:
    page.goto(path)
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Allow").click()
    page.wait_for_url(lambda url: url.endswith(path))  # loaded: a reload would abort it


def pictures(page: Page) -> list[bool]:
    page.wait_for_function("[...document.images].every(image => image.complete)")
    return page.evaluate("[...document.images].map(image => image.naturalWidth > 0)")


@both_providers
def test_a_person_logs_in_and_sees_every_cameras_picture(context, site) -> None:
    page = context.new_page()
    log_in(page)
    expect(page).to_have_url(f"{site.url}/")
    expect(page.get_by_text("anna@example.com")).to_be_visible()
    assert pictures(page) == [True, True, True]
    expect(page.get_by_text("No picture while")).to_have_count(1)
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert stored == '[{},{},""]'


@both_providers
def test_every_picture_comes_from_a_server_that_makes_few_at_once(context, cm) -> None:
    cm.simulator.settings.snapshot_limit = 2
    cm.simulator.settings.snapshot_latency = 0.3
    page = context.new_page()
    log_in(page)
    assert pictures(page) == [True, True, True]


def test_a_picture_that_does_not_come_says_so(context, cm) -> None:
    cm.simulator.settings.snapshot_limit = 0
    page = context.new_page()
    log_in(page)
    assert pictures(page) == [False, False, False]
    expect(page.get_by_alt_text("No picture just now")).to_have_count(3)


@both_providers
@pytest.mark.slow
def test_a_reload_after_the_access_token_expired_goes_unnoticed(context, cm, site) -> None:
    page = context.new_page()
    log_in(page)
    cm.simulator.expire_access_tokens()
    page.reload()
    expect(page).to_have_url(f"{site.url}/")
    assert all(pictures(page))
    assert len(cm.simulator.token_calls("refresh_token")) == 1


@pytest.mark.slow
def test_two_tabs_log_in_at_once_and_land_on_their_own_pages(context, site) -> None:
    one, two = context.new_page(), context.new_page()
    one.goto("/cameras/2001?from=one")
    two.goto("/cameras/2002?from=two")
    for page in (one, two):
        page.reload()  # both tabs wait at CameraManager; the first login serves the second
        if page.get_by_label("E-mail").count():
            page.get_by_label("E-mail").fill("anna@example.com")
            page.get_by_label("Password").fill("cameras")
            page.get_by_role("button", name="Log in").click()
            page.get_by_role("button", name="Allow").click()
    expect(one).to_have_url(f"{site.url}/cameras/2001?from=one")
    expect(two).to_have_url(f"{site.url}/cameras/2002?from=two")


@pytest.mark.slow
def test_after_logout_back_shows_nothing_private(context, cm, site) -> None:
    page = context.new_page()
    log_in(page)
    page.get_by_role("link", name="Front gate").click()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="You are logged out")).to_be_visible()
    assert cm.simulator.calls("/rest/*/tokens/current", "DELETE")
    # CameraManager may remember the person, who then gets a new login and not an old page.
    page.go_back()
    expect(page.get_by_role("heading", name="Front gate")).to_be_visible()
    assert len(cm.simulator.token_calls("authorization_code")) == 2
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="You are logged out")).to_be_visible()
    context.clear_cookies(name=re.compile("^(?!cm_auth)"))  # now it does not
    page.go_back()
    expect(page.get_by_role("button", name="Log in")).to_be_visible()
    assert not page.url.startswith(site.url)
    page.goto("/")
    expect(page.get_by_label("E-mail")).to_be_visible()


@pytest.mark.slow
def test_the_header_and_the_cards_stand_in_order_on_each_screen(context) -> None:
    page = context.new_page()
    log_in(page)
    page.set_viewport_size({"width": 390, "height": 844})
    nav = page.get_by_role("navigation", name="Pages").bounding_box()
    name = page.locator(".who .name").bounding_box()
    out = page.get_by_role("button", name="Log out").bounding_box()
    assert out["y"] >= nav["y"] + nav["height"]  # in the second row, with the name, at its end
    assert abs(out["y"] + out["height"] / 2 - name["y"] - name["height"] / 2) < 10
    assert out["x"] + out["width"] > 360
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 800})
    tops = page.eval_on_selector_all(
        ".card", "cards => cards.map(card => card.getBoundingClientRect().top)"
    )
    assert len(tops) == 4
    assert len(set(tops)) == 1  # none stands alone in a second row


@pytest.mark.slow
def test_what_is_not_there_is_a_page_with_a_way_back(context) -> None:
    page = context.new_page()
    log_in(page, "/cameras/99")
    expect(page.get_by_role("heading", name="Nothing here")).to_be_visible()
    page.get_by_role("link", name="All cameras").click()
    expect(page.get_by_role("heading", name="Your cameras")).to_be_visible()


@pytest.mark.slow
def test_refusing_consent_is_a_page_with_a_way_back(context) -> None:
    page = context.new_page()
    page.goto("/cameras/2003")
    page.get_by_label("E-mail").fill("anna@example.com")
    page.get_by_label("Password").fill("cameras")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Refuse").click()
    expect(page.get_by_role("heading", name="Login was cancelled")).to_be_visible()
    page.get_by_role("link", name="Try again").click()
    page.get_by_role("button", name="Allow").click()
    expect(page.get_by_role("heading", name="Warehouse")).to_be_visible()


@pytest.mark.slow
def test_the_live_page_refreshes_its_pictures_and_sees_no_token(context, cm) -> None:
    page = context.new_page()
    page.clock.install()
    bodies: list[str] = []
    page.on("response", lambda answer: bodies.append(str(answer.headers)))
    log_in(page, "/live")
    expect(page.get_by_role("heading", name="Live")).to_be_visible()
    expect(page.locator("#live img:visible")).to_have_count(3)
    expect(page.get_by_text("No picture just now")).to_have_count(1)
    first = page.locator("#live img").first.get_attribute("src")
    before = len(cm.simulator.calls("/rest/v2.4/cameras/2001/snapshot"))
    cm.simulator.expire_access_tokens()
    page.clock.fast_forward(11_000)
    expect(page.locator("#live img").first).not_to_have_attribute("src", first)
    deadline = time.monotonic() + 30  # the application's clock goes on as usual
    while len(cm.simulator.calls("/rest/v2.4/cameras/2001/snapshot")) == before:
        assert time.monotonic() < deadline, "the picture is kept for ever"
        page.wait_for_timeout(500)
        page.clock.fast_forward(11_000)
    # Polled: the pictures change one after the other, and one that changes has no size.
    page.wait_for_function("[...document.images].slice(0, 3).every(image => image.naturalWidth)")
    calls = cm.simulator.calls("/rest/*")
    tokens = {call.headers["authorization"].removeprefix("Bearer ") for call in calls}
    assert len(tokens) == 2  # the first, and the one that came with the refresh
    stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])")
    assert stored == '[{},{},""]'
    seen = page.content() + "".join(bodies)
    assert not [token for token in tokens if token in seen]
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


@both_providers
@pytest.mark.slow
def test_a_session_that_ends_on_the_live_page_leads_to_the_login_and_back(
    context, cm, site
) -> None:
    page = context.new_page()
    page.clock.install()
    log_in(page, "/live")
    expect(page.locator("#live img:visible")).to_have_count(3)
    cm.simulator.revoke_user("anna@example.com")
    with page.expect_navigation(url=f"{site.url}/live"):  # CameraManager remembers the person
        page.clock.fast_forward(11_000)
    expect(page.locator("#live img:visible")).to_have_count(3)
    assert len(cm.simulator.token_calls("authorization_code")) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["eagleeye"])
def test_the_live_page_of_api_v3_shows_its_pictures_and_sees_no_token(context, cm) -> None:
    page = context.new_page()
    log_in(page, "/live")
    expect(page.locator("#live img:visible")).to_have_count(3)
    expect(page.get_by_text("No picture just now")).to_have_count(1)
    calls = cm.simulator.calls("/api/v3.0/media/liveImage.jpeg")
    tokens = {call.headers["authorization"].removeprefix("Bearer ") for call in calls}
    assert len(tokens) == 1
    assert not [token for token in tokens if token in page.content()]
    page.goto("/cameras/000007d1")
    expect(page.get_by_role("heading", name="Front gate")).to_be_visible()
    assert pictures(page) == [True]
