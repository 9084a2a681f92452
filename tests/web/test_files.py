"""The script ``session.js``, behind both sides: how it is served. tests/browser runs it."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from cm_auth_middleware.web.files import read
from cm_auth_middleware.web.messages import LANGUAGES, MESSAGES
from tests.helpers.world import JSON, SECRET_KEY, World

pytestmark = pytest.mark.anyio

EVIL = {"Origin": "https://evil.example"}


async def test_everybody_gets_the_script_with_its_hash(world: World) -> None:
    browser = world.browser()
    response = await browser.get("/auth/session.js")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"
    assert "set-cookie" not in response.headers
    digest = base64.b64encode(hashlib.sha256(response.content).digest()).decode()
    assert world.engine.session_script_hash == f"sha256-{digest}"
    assert response.headers["etag"] == f'"sha256-{digest}"'
    head = await browser.head("/auth/session.js")
    assert (head.status_code, head.content) == (200, b"")
    assert (await browser.post("/auth/session.js")).status_code == 405


async def test_the_script_is_below_the_prefix_and_leads_no_login_to_itself(make_world) -> None:
    world = make_world(prefix="/sign-in")
    browser = world.browser()
    assert (await browser.get("/sign-in/session.js")).status_code == 200
    assert (await browser.get("/auth/session.js")).status_code == 302  # the application's
    start = await browser.get("/sign-in/login?next=/sign-in/session.js")
    arrived = await browser.get(browser.callback_url(start.headers["location"]))
    assert arrived.headers["location"] == "/"


def test_the_script_puts_no_markup_and_no_style_element_into_a_page() -> None:
    """A Content-Security-Policy, or Trusted Types, may forbid them."""
    assert not re.search(r"innerHTML|insertAdjacent|eval\(|\"style\"|\.cssText", read("session.js"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_script_speaks_each_language_of_the_pages(language: str) -> None:
    found = re.search(rf"^    {language}: {{\n(.*?)^    }},$", read("session.js"), re.M | re.S)
    assert found is not None
    texts = dict(re.findall(r'^      (\w+): "(.+)",$', found[1], re.M))
    assert set(texts) == {"ends", "stay", "longest", "over", "login"}
    assert texts["over"] == MESSAGES["signed_out"][language].title
    assert texts["login"] == MESSAGES["signed_out"][language].action
    assert texts["ends"].count("{minutes}") == texts["longest"].count("{minutes}") == 1


# -- what the script asks ----------------------------------------------------------------------


async def left(browser, method: str = "GET", **headers: str) -> int:
    response = await browser.request(method, "/auth/session", headers={**JSON, **headers})
    assert response.status_code == 200
    return int(response.json()["expires_in"])


async def test_a_look_does_not_count_as_activity_but_a_post_does(make_world) -> None:
    world = make_world(idle_timeout=1000)
    browser = await world.login()
    world.clock.tick(900)
    assert await left(browser) == 100
    assert await left(browser) == 100
    assert await left(browser, "POST") == 1000
    world.clock.tick(900)
    assert await left(browser) == 100
    world.clock.tick(101)
    assert await left(browser, "POST") == 0  # it is over, and nothing brings it back


async def test_a_post_from_another_site_extends_nothing(make_world) -> None:
    world = make_world(idle_timeout=1000)
    browser = await world.login()
    world.clock.tick(900)
    refused = await browser.post("/auth/session", headers={**JSON, **EVIL})
    assert refused.status_code == 403
    assert await left(browser) == 100


async def test_a_post_of_a_visitor_opens_no_session(world: World) -> None:
    response = await world.browser().post("/auth/session")
    assert response.json() == {"authenticated": False, "user": None, "expires_in": 0}
    assert "set-cookie" not in response.headers


async def test_a_post_renews_the_cookie_that_an_older_key_signed(make_world) -> None:
    world = make_world()
    browser = await world.login()
    rotated = make_world(beside=world, secret_key=[SECRET_KEY, "n3w" + SECRET_KEY[::-1]])
    other = rotated.browser()
    other._cookies = browser._cookies
    response = await other.post("/auth/session")
    assert response.json()["authenticated"] is True
    assert response.headers["set-cookie"].startswith("cm_auth=")
