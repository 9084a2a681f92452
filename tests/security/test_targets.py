"""Where we send people: return targets, headers, forged hosts, referrers."""

from __future__ import annotations

import re
from html import unescape
from urllib.parse import quote, unquote

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware.web.local_target import safe_target
from tests.helpers.world import APP, CM, HTML, World

from .visits import NAME, is_ours, lands_on, query_of, session_of, started

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ELSEWHERE = [
    "//evil", "///evil", "////evil", "/\\evil", "\\\\evil", "\\/evil", "/\\/evil", "/%5cevil",
    "/%5Cevil", "/%2fevil", "/%2Fevil", "/%252fevil", "/%09/evil", "/%0a/evil", "/%0d/evil",
    "/\t/evil", "/\n/evil", "/\r/evil", "\t//evil", "\n//evil", " //evil", "//evil ", "/\x00/evil",
    "\x00//evil", "\x1f//evil", "https:evil", "https:/evil", "https:///evil", "http:evil",
    "https:\\\\evil", "ht\ntps://evil", "//ev\til", "http://localhost:8000@evil",
    "http://evil\\@localhost:8000", "//localhost:8000@evil", "http://localhost:8000.evil/",
    "javascript:alert(1)", "JavaScript:alert(1)", "java\tscript:alert(1)", "javascript://%0aalert(1)",
    "data:text/html,<script>", "vbscript:x", "blob:http://evil/x", "file:///etc/passwd",
    "／／evil", "/／evil", "／evil", "/⁄evil", "/∕evil", "/⧸evil", "/＼evil", "//evil。example",
    "/..//evil", "/.//evil", "/..//../evil", "/a/..//evil", "/%2e%2e//evil", "/.%2e//evil",
    "/%2e//evil", "/x/%2e%2e/%2e%2e//evil", "/..\\evil", "/.\\evil", "//[::1]", "//%65vil",
    "?next=//evil//", "evil", "evil:80", "@evil", "#//evil", "//", "/\\", "/" + "a" * 9_000,
    "/" * 9_000, "/%" * 3_000, "", "*", "//:80", "http://", "http://[", "//[", "/\ud83d",
]  # fmt: skip


@pytest.mark.parametrize("target", ELSEWHERE, ids=lambda t: ascii(t)[1:40])
async def test_a_return_target_elsewhere_becomes_a_path_here(world: World, target: str) -> None:
    """13: as a browser resolves it, raw and decoded, at the login and at the logout."""
    raw = quote(target.encode("utf-8", "surrogatepass"), safe="")
    for sent in {raw, raw.replace("%2F", "/"), quote(raw, safe="")}:
        browser = world.browser()
        start = await browser.get(f"/auth/login?next={sent}")
        done = await browser.get(browser.callback_url(start.headers["location"]))
        out = await browser.post(f"/auth/logout?next={sent}")
        for response in (done, out):
            location = response.headers["location"]
            assert is_ours(location)
            assert is_ours(unquote(location))
            assert location.startswith("/")
            assert len(location) < 4_200


@pytest.mark.parametrize(
    "target",
    ["/", "/cameras", "/a/b?c=d&e=%2F%2Fevil", "/a%20b", "/a?next=https://evil/", "/x;y=1", "/~me",
     "/a?b=c#d", "/caf%C3%A9", "/a:b", "/@x"],
)  # fmt: skip
async def test_a_return_target_here_is_kept_to_the_letter(world: World, target: str) -> None:
    """13: and the defence does not lose the page that somebody wanted."""
    browser = world.browser()
    start = await browser.get(f"/auth/login?next={quote(target, safe='')}")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == target


@pytest.mark.parametrize(
    "path", ["//evil/x", "///evil", "//evil/%2e%2e", "/%5cevil", "/%2f/evil", "//user@evil/x"]
)
async def test_no_page_of_ours_links_to_where_a_path_looks_like_a_host(
    make_world, path: str
) -> None:
    """13: "Try again" leads to the URL that was asked for; "//evil" is one that a browser sends."""
    world = make_world()
    browser = world.browser()
    await browser.get(browser.callback_url((await started(browser)).headers["location"]))
    browser.cookies.delete(NAME)
    stuck = await browser.get(f"{APP}{path}")
    foreign = await world.browser().get(f"{APP}{path}", headers={"Host": "other.example"})
    logged_in = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(503, times=10)
    down = await logged_in.get(f"{APP}{path}")
    assert (stuck.status_code, foreign.status_code, down.status_code) == (400, 400, 503)
    for page in (stuck, foreign, down):
        links = re.findall(r'(?:href|action)="([^"]*)"', page.text)
        assert links
        for link in links:
            assert is_ours(unescape(link), f"{APP}{path}"), link


async def test_the_way_back_to_a_path_that_looks_like_a_host_is_the_root(world: World) -> None:
    """13: the same for the redirect after the login."""
    browser = world.browser()
    start = await browser.get(f"{APP}//evil/x")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert lands_on(APP, done.headers["location"]) == f"{APP}/"


@pytest.mark.parametrize("mount", ["/sub", "/söb☃", "/a\r\nSet-Cookie: x=1", "/'\"<b>"])
async def test_a_mount_is_quoted_in_every_url_and_header(make_world, side: str, mount: str) -> None:
    """13, 14: the mount may come from the path ("/{tenant}"), so it is no more trusted than it."""
    world = make_world()
    if side == "asgi":
        world.net.add(APP, Starlette(routes=[Mount("/{tenant}", app=world.app)]))
    else:
        world.net.add_wsgi(APP, DispatcherMiddleware(_nothing, {_wsgi(mount): world.app}))
    site = f"{APP}{quote(mount)}"
    browser = world.browser()
    start = await browser.get(f"{site}/deep/a%20b?q=1")
    assert query_of(start)["redirect_uri"] == f"{site}/auth/callback"
    done = await browser.get(browser.callback_url(start.headers["location"]))
    back = f"{quote(mount)}/" if "\n" in mount else f"{quote(mount)}/deep/a%20b?q=1"
    assert unquote(done.headers["location"]) == unquote(back)
    assert "x" not in done.cookies
    assert (await browser.get(f"{site}/deep/1")).status_code == 200
    program = await world.browser(Accept="*/*").get(site + "/", headers={"HX-Request": "true"})
    assert program.json()["login_url"] == f"{quote(mount)}/auth/login"
    assert program.headers["hx-redirect"] == f"{quote(mount)}/auth/login"
    page = await browser.get(f"{site}/auth/logout?next=//evil")
    assert f'action="{quote(mount)}/auth/logout?next={quote(quote(mount))}/"' in page.text
    out = await browser.post(f"{site}/auth/logout?next=//evil")
    assert out.headers["location"] == f"{quote(mount)}/"


def _nothing(environ, start_response):
    start_response("404 Not Found", [])
    return [b""]


def _wsgi(path: str) -> str:
    return path.encode().decode("latin-1")


@pytest.mark.parametrize("evil", ["%0d%0aX-Evil:%20yes", "%0aX-Evil:%20yes", "%e5%98%8a%e5%98%8d"])
async def test_a_line_end_splits_no_header(world: World, evil: str) -> None:
    """14: CR, LF and their look-alikes in every value that may reach a header of ours."""
    browser = world.browser()
    start = await browser.get(f"/auth/login?next=/x{evil}")
    state = query_of(start)["state"]
    answers = [
        start,
        await browser.get(browser.callback_url(start.headers["location"])),
        await browser.get(f"/deep/{evil}?{evil}"),
        await browser.post(f"/auth/logout?next=/x{evil}"),
        await browser.get(f"/auth/callback?error={evil}&state={state}"),
        await browser.get(f"/auth/callback?code=x&state={state}{evil}"),
        await world.browser(**{"HX-Request": "true"}).get(f"/deep/{evil}"),
        await world.browser().get(f"/deep/{evil}?{evil}"),
    ]
    for answer in answers:
        assert "x-evil" not in answer.headers
        for name, value in answer.headers.raw:
            assert not re.search(rb"[\r\n\0]", name + value), (name, value)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "localhost@evil.example", "evil.example@localhost",
     "localhost:8000@evil.example", "localhost:99999", "localhost:x", "localhost/evil",
     "localhost?x", "localhost#x", "localhost\\evil", "loc\talhost", "localhost evil",
     "localhost,evil",
     "[::1", "[::2]", "", "localhost:80:80", "evil.example#localhost", "127.0.0.1.evil.example",
     "localhost%2eevil", "127.1"],
)  # fmt: skip
async def test_a_host_that_nobody_allowed_is_400(world: World, host: str) -> None:
    """15: redirect_uri is derived from a host in allowed_hosts, or from none."""
    for path in ("/cameras", "/auth/login"):
        response = await world.browser().get(path, headers={"Host": host})
        assert response.status_code == 400, response.headers
        assert "location" not in response.headers
        assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    ("host", "uri"),
    [
        ("localhost", "http://localhost"),
        ("LocalHost:8000", "http://localhost:8000"),
        ("127.0.0.1:1", "http://127.0.0.1:1"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
async def test_a_host_that_is_allowed_is_used(world: World, host: str, uri: str) -> None:
    """15: with its port, for a developer has several."""
    response = await world.browser().get("/", headers={"Host": host})
    assert query_of(response)["redirect_uri"] == f"{uri}/auth/callback"


FORWARDED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Scheme": "https",
    "X-Forwarded-Port": "444",
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Server": "evil.example",
    "X-Host": "evil.example",
    "X-Original-Host": "evil.example",
    "Forwarded": "for=1.2.3.4;host=evil.example;proto=https",
}


async def test_forwarding_headers_from_a_visitor_change_nothing(make_world) -> None:
    """15: neither redirect_uri, nor redirects, nor the cookie's name, Secure or otherwise."""
    for world in (make_world(), make_world(redirect_uri=f"{APP}/auth/callback")):
        plain, forged = world.browser(), world.browser(**FORWARDED)
        one, two = await started(plain), await started(forged)
        first, second = query_of(one), query_of(two)
        for query in (first, second):
            del query["state"], query["code_challenge"]
        assert first == second
        done = await forged.get(forged.callback_url(two.headers["location"]))
        assert done.headers["location"] == "/cameras"
        assert session_of(forged)
        assert "Secure" not in str(done.headers.raw)


async def test_a_forged_host_does_not_touch_a_redirect_uri_that_was_given(make_world) -> None:
    """15: with redirect_uri set, Host decides nothing."""
    world = make_world(redirect_uri=f"{APP}/auth/callback", allowed_hosts=())
    response = await world.browser().get("/cameras", headers={"Host": "evil.example"})
    assert response.headers["location"].startswith(f"{CM}/oauth/authorize?")
    assert query_of(response)["redirect_uri"] == f"{APP}/auth/callback"


@pytest.mark.parametrize("referer", ["http://evil/x", f"{APP}/deep/7", "//evil", "javascript:x"])
async def test_the_referrer_is_no_target(world: World, referer: str) -> None:
    """16: no redirect and no page of ours leads to a Referer, not even to one of this site."""
    browser = world.browser(Referer=referer, **HTML)
    start = await browser.get("/auth/login")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == "/"
    for page in (
        await browser.get("/auth/logout"),
        await browser.post("/auth/logout"),
        await browser.get("/auth/callback"),
        await browser.get("/auth/callback?code=x&state=y"),
    ):
        assert referer not in page.text
        assert referer not in page.headers.get("location", "")


def test_every_target_that_is_let_through_is_a_path_of_the_mount() -> None:
    """13: under a mount, too, and however the mount's name continues."""
    for target in ELSEWHERE:
        assert safe_target(target, "/sub") == "/sub/"
    for target in ("/subx", "/su", "/x", "/", "/sub/../x", "/sub/%2e%2e/x", "/subevil/"):
        assert safe_target(target, "/sub") == "/sub/"
    for target in ("/sub", "/sub/", "/sub/x?y#z"):
        assert safe_target(target, "/sub") == target
