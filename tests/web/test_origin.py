"""Which origins are this site's: by Host, redirect_uri and trusted_origins; what is logged."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import httpx2
import pytest

from cm_auth_middleware.web.origin import normal_origin
from tests.helpers.browser import Socket
from tests.helpers.world import World

pytestmark = pytest.mark.anyio

OWN, FOREIGN = 200, 403


class Case(NamedTuple):
    """A page of `origin` sends a request; the application is told `scheme` and `host`."""

    expected: int
    origin: str
    host: str
    scheme: str = "http"
    redirect_uri: str | None = None
    trusted: str | tuple[str, ...] = ()
    site: str | None = None


CALLBACK = "https://cams.lan:8443/auth/callback"
CASES = {
    # The port: browsers leave the default one out, and proxies may write it.
    "a port": Case(OWN, "https://cams.lan:8443", "cams.lan:8443", "https"),
    "no port": Case(OWN, "https://cams.lan", "cams.lan", "https"),
    "the default port of https": Case(OWN, "https://cams.lan", "cams.lan:443", "https"),
    "the default port of http": Case(OWN, "http://cams.lan", "cams.lan:80"),
    "TLS that the server is not told of": Case(OWN, "https://cams.lan", "cams.lan"),
    "the same, with a port": Case(OWN, "https://cams.lan", "cams.lan:443"),
    "R14, a proxy that drops the port": Case(FOREIGN, "https://cams.lan:8443", "cams.lan", "https"),
    "R14, told by redirect_uri": Case(
        OWN, "https://cams.lan:8443", "cams.lan", "https", redirect_uri=CALLBACK
    ),
    "another port": Case(FOREIGN, "http://cams.lan:8001", "cams.lan:8000"),
    "the default port of the other scheme": Case(FOREIGN, "http://cams.lan", "cams.lan:443"),
    "an http page of an https site": Case(FOREIGN, "http://cams.lan", "cams.lan", "https"),
    "the same, told by redirect_uri": Case(
        FOREIGN, "http://cams.lan:8443", "cams.lan:8443", redirect_uri=CALLBACK
    ),
    # How a host is written.
    "capitals in Host": Case(OWN, "http://cams.lan:8000", "CAMS.lan:8000"),
    "capitals in Origin": Case(OWN, "HTTP://Cams.Lan:8000", "cams.lan:8000"),
    "capitals in redirect_uri": Case(
        OWN, "https://cams.lan", "up:1", redirect_uri="HTTPS://Cams.LAN:443/auth/callback"
    ),
    "IPv6": Case(OWN, "http://[::1]:8000", "[::1]:8000"),
    "IPv6 in full": Case(OWN, "http://[2001:db8::a]", "[2001:DB8:0:0::000A]:80"),
    "IPv6 in full in redirect_uri": Case(
        OWN, "https://[::1]", "up:1", redirect_uri="https://[0:0:0:0:0:0:0:1]:443/auth/callback"
    ),
    "another IPv6": Case(FOREIGN, "http://[::1]:8000", "[::2]:8000"),
    "no IPv6": Case(FOREIGN, "http://[::1::]", "[::1::]"),
    "a port that is none": Case(FOREIGN, "http://cams.lan:99999", "cams.lan:99999"),
    # A development server or a tunnel in front, which writes a Host of its own.
    "R42, unknown": Case(FOREIGN, "http://localhost:5173", "localhost:8000"),
    "R42, by redirect_uri": Case(
        OWN, "http://localhost:5173", "localhost:8000",
        redirect_uri="http://localhost:5173/auth/callback",
    ),
    "R42, trusted": Case(
        OWN, "http://localhost:5173", "localhost:8000", trusted="http://localhost:5173"
    ),
    # Other sites.
    "R35, a sibling": Case(
        FOREIGN, "http://app.localhost:8000", "localhost:8000", site="same-site"
    ),
    "R35, trusted": Case(
        OWN, "http://app.localhost:8000", "localhost:8000", site="same-site",
        trusted="http://app.localhost:8000",
    ),
    "trusted with capitals, its default port and a slash": Case(
        OWN, "https://app.example", "localhost:8000", site="cross-site",
        trusted=("https://b.example", "HTTPS://App.Example:443/"),
    ),
    "a trusted app without a web address": Case(
        OWN, "capacitor://localhost", "localhost:8000", trusted="capacitor://localhost"
    ),
    "a trusted host by another scheme": Case(
        FOREIGN, "http://app.example", "localhost:8000", trusted="https://app.example"
    ),
    "beside a trusted one": Case(
        FOREIGN, "https://evil.app.example", "localhost:8000", trusted="https://app.example"
    ),
    "our page under another of our names": Case(
        OWN, "https://cams.lan:8443", "cams.lan", "https", CALLBACK, site="same-site"
    ),
    "R43, hidden": Case(FOREIGN, "null", "cams.lan"),
    "hidden, whatever is trusted": Case(FOREIGN, "null", "cams.lan", trusted="https://app.example"),
}  # fmt: skip


def takes_over(environ: Any, start_response: Any) -> list[bytes]:
    """A WSGI handler that would take the socket over; Flask's own routes refuse an upgrade."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"open"]


async def arrives(make_world, case: Case, **options: Any) -> tuple[World, dict[str, str]]:
    """A world configured so, and the headers of a page's request by somebody who is logged in."""
    login = make_world()
    cookie = (await login.login()).named("cm_auth")[0]
    world = make_world(
        store=login.engine.store,
        redirect_uri=case.redirect_uri,
        trusted_origins=case.trusted,
        **options,
    )
    world.net.add("https://localhost:8000", world.app)
    headers = {"Origin": case.origin, "Host": case.host}
    if case.site is not None:
        headers["Sec-Fetch-Site"] = case.site
    return world, {**headers, "Cookie": f"cm_auth={cookie}; __Host-cm_auth={cookie}"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_page_writes_where_its_origin_is_this_sites(make_world, case: Case) -> None:
    """R14, R35, R42, R43: judged by scheme, host and port, however each is written."""
    world, headers = await arrives(make_world, case)
    url = f"{case.scheme}://localhost:8000/data"
    answer = await world.browser().post(url, json={"a": 1}, headers=headers)
    assert answer.status_code == case.expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_a_page_opens_a_websocket_where_it_may_write(make_world, side, case: Case) -> None:
    """R14, R42: the same judgement on both sides."""
    if side == "asgi":
        world, headers = await arrives(make_world, case)
        socket = Socket(world, headers)
        socket.scope["scheme"] = "wss" if case.scheme == "https" else "ws"
        first: dict[str, Any] = (await socket.run())[0]
        assert (first["type"] == "websocket.accept") == (case.expected == OWN)
    else:
        world, headers = await arrives(make_world, case, app=takes_over)
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", **headers}
        answer = await world.browser().get(f"{case.scheme}://localhost:8000/", headers=upgrade)
        assert answer.status_code == case.expected


async def test_a_logout_is_judged_alike(make_world, caplog) -> None:
    """R43: Origin null is refused at the logout, too, and the log says which header to change."""
    world = make_world(trusted_origins="https://app.example")
    browser = await world.login()
    hidden = await browser.post("/auth/logout", headers={"Origin": "null"})
    assert hidden.status_code == FOREIGN
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.event == "origin_hidden"
    assert "Referrer-Policy: same-origin" in warning.getMessage()
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    assert (await browser.post("/auth/logout", headers=headers)).status_code == 303


async def test_the_refusal_is_logged_once_with_both_origins_and_the_options(
    world: World, caplog
) -> None:
    browser = await world.login()
    for _ in range(3):
        await browser.post("/data", headers={"Origin": "http://localhost:5173"})
        await browser.post("/data", headers={"Origin": "null"})
    refused, hidden = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert (refused.event, refused.origin, refused.own) == (
        "cross_site_refused", "http://localhost:5173", "http://localhost:8000",
    )  # fmt: skip
    for option in ("redirect_uri", "trusted_origins", "Host"):
        assert option in refused.getMessage()
    assert (hidden.event, hidden.own) == ("origin_hidden", "http://localhost:8000")
    assert "Referrer-Policy: same-origin" in hidden.getMessage()


@pytest.mark.slow
async def test_no_visitor_fills_the_log_with_origins(world: World, caplog) -> None:
    """Each names another origin, of any length and with escape codes."""
    browser = await world.login()
    for number in range(150):
        origin = f"https://{number}.example/\x1b[31m" + "x" * 2_000
        await browser.post("/data", headers={"Origin": origin})
    records = [r for r in caplog.records if r.getMessage().startswith("cross_site_refused")]
    assert len(records) == 100
    assert all(len(r.getMessage()) < 800 and "\x1b" not in r.getMessage() for r in records)


async def test_a_refused_visitor_without_a_session_is_not_logged(world: World, caplog) -> None:
    await world.browser().post("/data", headers={"Origin": "https://other.example"})
    assert "cross_site_refused" not in caplog.text


@pytest.mark.parametrize(
    ("host", "redirect_uri"),
    [
        ("localhost:80", "http://localhost/auth/callback"),
        ("LOCALHOST:8000", "http://localhost:8000/auth/callback"),
        ("[::1]:0080", "http://[::1]/auth/callback"),
    ],
)
async def test_the_redirect_uri_is_written_as_browsers_do(world, host: str, redirect_uri) -> None:
    """CameraManager compares it to the letter with the one that was registered."""
    answer = await world.browser().get("/", headers={"Host": host})
    assert httpx2.URL(answer.headers["location"]).params["redirect_uri"] == redirect_uri


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("HTTPS://A.example:08443", "https://a.example:8443"),
        ("https://a.example/", ""),
        ("https://me@a.example", ""),
        ("https://", ""),
        ("//a.example", ""),
        ("null", ""),
        ("https://a.example, https://b.example", ""),
    ],
)
def test_an_origin_has_one_form(text: str, origin: str) -> None:
    assert normal_origin(text) == origin
