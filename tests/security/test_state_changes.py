"""Requests that change something: who may make a browser send them."""

from __future__ import annotations

import pytest

from tests.helpers.world import World, both_providers

from .visits import NAME, is_logged_in, session_of, stored

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://other.localhost:8000"},
    {"Sec-Fetch-Site": "same-site", "Origin": "null"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8000"},
    {"Sec-Fetch-Site": "nonsense"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost:8001"},
    {"Origin": "http://localhost"},
    {"Origin": "http://localhost:8000.evil.example"},
    {"Origin": "http://evil.example/http://localhost:8000"},
    {"Origin": "http://localhost:8000@evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {"Origin": "localhost:8000"},
    {"Origin": "file://"},
    {"Origin": "http://evil.example, http://localhost:8000"},
]
OURS = [
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://localhost:8000"},
    {"Origin": "http://LOCALHOST:8000"},
    {},
]


@both_providers
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_another_site_cannot_log_anybody_out(world: World, headers) -> None:
    """29: by GET, image, form or fetch: still logged in."""
    browser = await world.login()
    cookie = f"{NAME}={session_of(browser)}"
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        answer = await browser.request(method, "/auth/logout", headers=headers)
        assert answer.status_code in (200, 403, 405)
        assert NAME not in answer.headers.get("set-cookie", "")
    assert await is_logged_in(world, cookie)
    assert world.logouts() == []


@both_providers
@pytest.mark.parametrize("off", [False, True])
async def test_a_logout_is_protected_even_where_the_check_is_off(make_world, off: bool) -> None:
    """29: cross_site_check=False is about the application's own routes."""
    world = make_world(cross_site_check=not off)
    browser = await world.login()
    answer = await browser.post("/auth/logout", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert (await browser.get("/")).status_code == 200


@both_providers
@pytest.mark.parametrize("headers", OURS, ids=str)
async def test_a_logout_of_our_own_page_logs_out(world: World, headers) -> None:
    """29: a same-origin POST: out, here and there."""
    browser = await world.login()
    cookie = f"{NAME}={session_of(browser)}"
    assert (await browser.post("/auth/logout", headers=headers)).status_code == 303
    assert not await is_logged_in(world, cookie)
    assert len(world.logouts()) == 1


@both_providers
async def test_the_logout_page_cannot_be_framed(world: World) -> None:
    """29: nor clicked through: a GET shows a button under frame-ancestors 'none'."""
    page = await (await world.login()).get("/auth/logout")
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'none'" in policy
    assert "script" not in page.text


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PROPPATCH", "post"])
@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_write_of_another_site_never_reaches_the_app(
    world: World, headers, method: str
) -> None:
    """30: 403 before the app sees it, although our cookie came along."""
    browser = await world.login()
    before = stored(world)
    answer = await browser.request(method, "/data", headers=headers, content=b'{"a": 1}')
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert stored(world) == before
    assert (await browser.get("/data")).json() == {}


@both_providers
@pytest.mark.parametrize("headers", OURS, ids=str)
async def test_a_write_of_our_own_page_reaches_the_app(world: World, headers) -> None:
    """30: Sec-Fetch-Site, else Origin, else allowed: the cookie is Lax."""
    browser = await world.login()
    answer = await browser.post("/data", headers=headers, json={"a": 1})
    assert answer.json() == {"a": 1}


async def test_reading_is_not_refused(world: World) -> None:
    """30: a link from elsewhere to a page of ours works."""
    browser = await world.login()
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await browser.get("/cameras", headers=headers)).status_code == 200


async def test_the_check_can_be_switched_off(make_world) -> None:
    """30: for those who do it themselves."""
    world = make_world(cross_site_check=False)
    browser = await world.login()
    answer = await browser.post("/data", json={}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200


async def test_without_a_session_it_is_a_login_that_is_asked_for(world: World) -> None:
    """30: whoever has no cookie is told so, and not that the site is wrong."""
    answer = await world.browser().post("/data", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 401


@both_providers
async def test_an_exempt_path_takes_a_write_of_another_site_as_a_visitors(make_world) -> None:
    """30: a webhook works; but it never acts for whoever was lured there."""
    world = make_world(exempt=["/health"])
    browser = await world.login()
    assert (await browser.get("/health")).text == "anna@example.com"
    for headers in FOREIGN[:3]:
        assert (await browser.post("/health", headers=headers)).text == "nobody"
    assert (await browser.post("/health", headers=OURS[0])).text == "anna@example.com"


@pytest.mark.parametrize(
    ("origin", "status"),
    [("https://app.example", 200), ("http://app.example", 403), ("https://evil.example", 403)],
)
async def test_behind_a_proxy_redirect_uri_says_which_origin_is_ours(
    make_world, origin: str, status: int
) -> None:
    """30: TLS ends before us, Host is the proxy's choice: our own pages may still write."""
    world = make_world(redirect_uri="https://app.example/auth/callback", cookie_secure=True)
    one = make_world(store=world.engine.store)
    cookie = session_of(await one.login())
    for host in ("app.example", "upstream:8000"):
        proxied = world.browser(Host=host, Cookie=f"__Host-{NAME}={cookie}")
        answer = await proxied.post("/data", json={}, headers={"Origin": origin})
        assert answer.status_code == status
