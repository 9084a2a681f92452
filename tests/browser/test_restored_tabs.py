"""A real Chromium that restores its tabs: all of them ask before any has an answer."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import AppServer, SimulatorServer
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.servers import WSGIServer
from tests.helpers.world import SECRET_KEY

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(params=["asgi", "wsgi"])
def site(request: pytest.FixtureRequest, cm: SimulatorServer) -> Iterator[str]:
    engine = AuthEngine(
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
    )
    if request.param == "asgi":
        server: Any = AppServer(CMAuthMiddleware(make_app(), engine=engine))
    else:
        server = WSGIServer(CMAuthWSGIMiddleware(make_wsgi_app(), engine=engine))
    with server:
        yield server.url


def test_twelve_restored_tabs_with_long_urls_each_arrive(
    site: str, browser: Browser, cm: SimulatorServer
) -> None:
    """58: a person logs in once, in whichever tab; CameraManager knows them in the others."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    urls = [f"{site}/deep/{n}?q={secrets.token_urlsafe(2_000)}" for n in range(12)]
    tabs = [context.new_page() for _ in urls]
    for tab, url in zip(tabs, urls, strict=True):
        tab.evaluate("url => { location.href = url }", url)  # does not wait
    for tab in tabs:
        tab.get_by_label("E-mail").wait_for()
    cookies = "; ".join(f"{c['name']}={c['value']}" for c in context.cookies(site))
    assert len(cookies) < 6_000
    first = tabs[5]
    first.get_by_label("E-mail").fill("anna@example.com")
    first.get_by_label("Password").fill("cameras")
    first.get_by_role("button", name="Log in").click()
    first.get_by_role("button", name="Allow").click()
    first.wait_for_url(urls[5])
    for tab, url in zip(tabs, urls, strict=True):
        if tab is not first:
            tab.reload()
        tab.wait_for_url(url)
        assert "anna@example.com" in tab.inner_text("body")
    assert len(cm.simulator.token_calls("authorization_code")) == 12
    names = {cookie["name"] for cookie in context.cookies(site)}
    assert [name for name in names if "_login_" in name] == []
    context.close()
