"""Who is asking: what browsers, old and new, and programs send, and what each is answered."""

from __future__ import annotations

import html
import re
from typing import Any, NamedTuple

import pytest

from tests.helpers.world import APP, JSON, World, both_providers
from tests.security.visits import NAME

pytestmark = pytest.mark.anyio

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"

# What is answered: to the login; a problem for programs; a page, in a frame, or about a form.
LOGIN, PROBLEM, PAGE, FRAME, FORM = "302", "problem", "page", "frame", "form"


class Case(NamedTuple):
    """A request without a session, and its answer."""

    answer: str
    headers: dict[str, str]
    method: str = "GET"


def told(mode: str, dest: str | None = None, **more: str) -> dict[str, str]:
    """Fetch Metadata, as browsers send it on https and on loopback."""
    headers = {"Accept": BROWSER, "Sec-Fetch-Mode": mode, **more}
    return headers if dest is None else {**headers, "Sec-Fetch-Dest": dest}


def untold(accept: str = BROWSER, **more: str) -> dict[str, str]:
    """What browsers send on other http sites, and older ones everywhere."""
    return {"Accept": accept, **{name.replace("_", "-"): value for name, value in more.items()}}


URLENCODED = "application/x-www-form-urlencoded"
CASES = {
    # -- told by Fetch Metadata ------------------------------------------------------------
    "a link, a bookmark, a typed address": Case(LOGIN, told("navigate", "document")),
    "the same by a click": Case(LOGIN, told("navigate", "document", **{"Sec-Fetch-User": "?1"})),
    "a link on another site": Case(
        LOGIN, told("navigate", "document", **{"Sec-Fetch-Site": "cross-site"})
    ),
    "a browser that tells the mode alone": Case(LOGIN, told("navigate")),
    "HEAD of a page": Case(LOGIN, told("navigate", "document"), "HEAD"),
    "a page that accepts anything": Case(LOGIN, told("navigate", "document", Accept="*/*")),
    "R33, an iframe": Case(FRAME, told("navigate", "iframe")),
    "a frame": Case(FRAME, told("navigate", "frame")),
    "an embed": Case(FRAME, told("navigate", "embed")),
    "an object": Case(FRAME, told("navigate", "object")),
    "a fenced frame": Case(FRAME, told("navigate", "fencedframe")),
    "a frame in Chrome 76": Case(FRAME, told("nested-navigate")),
    "a form": Case(FORM, told("navigate", "document"), "POST"),
    "R19, a form, told by the mode alone": Case(FORM, told("navigate"), "POST"),
    "a form in a frame": Case(FORM, told("navigate", "iframe"), "POST"),
    "fetch()": Case(PROBLEM, told("cors", "empty", Accept="*/*")),
    "fetch() that accepts HTML": Case(PROBLEM, told("cors", "empty")),
    "fetch() of the same origin": Case(PROBLEM, told("same-origin", "empty")),
    "an image": Case(PROBLEM, told("no-cors", "image")),
    "a script": Case(PROBLEM, told("no-cors", "script")),
    "a video": Case(PROBLEM, told("no-cors", "video")),
    "a manifest": Case(PROBLEM, told("cors", "manifest")),
    "a worker": Case(PROBLEM, told("same-origin", "worker")),
    "an image that says it navigates": Case(PROBLEM, told("navigate", "image")),
    "a destination that is new to us": Case(PROBLEM, told("navigate", "hologram")),
    "a ping": Case(PROBLEM, told("no-cors", "empty", **{"Content-Type": "text/ping"}), "POST"),
    "a WebSocket": Case(PROBLEM, told("websocket", "websocket", Upgrade="websocket")),
    "htmx, though it says it navigates": Case(
        PROBLEM, told("navigate", "document", **{"HX-Request": "true"})
    ),
    # -- before a person asks --------------------------------------------------------------
    "a prefetch": Case(PROBLEM, told("navigate", "document", **{"Sec-Purpose": "prefetch"})),
    "a prerender": Case(
        PROBLEM, told("navigate", "document", **{"Sec-Purpose": "prefetch;prerender"})
    ),
    "a prefetch of Chrome 80": Case(PROBLEM, told("navigate", Purpose="prefetch")),
    "a prefetch of Firefox": Case(PROBLEM, untold(X_Moz="prefetch")),
    "a preview of Safari": Case(PROBLEM, untold(X_Purpose="preview")),
    # -- not told: http sites on a LAN, older browsers ---------------------------------------
    "a page on http": Case(LOGIN, untold()),
    "HEAD on http": Case(LOGIN, untold(), "HEAD"),
    "a page in an app on Android": Case(LOGIN, untold(X_Requested_With="com.example.app")),
    "curl -H 'Accept: text/html'": Case(LOGIN, untold("text/html")),
    "R22, jQuery's load()": Case(
        PROBLEM, untold("text/html, */*; q=0.01", X_Requested_With="XMLHttpRequest")
    ),
    "the same to another origin": Case(
        PROBLEM, untold("text/html, */*; q=0.01", Origin="http://other.lan")
    ),
    "htmx": Case(PROBLEM, untold("text/html, */*", HX_Request="true")),
    "Turbo's frame": Case(PROBLEM, untold("text/html, application/xhtml+xml", Turbo_Frame="a")),
    "Turbo's visit": Case(
        PROBLEM, untold("text/html, application/xhtml+xml", X_Turbo_Request_Id="5")
    ),
    "Turbo's stream": Case(PROBLEM, untold("text/vnd.turbo-stream.html, text/html")),
    "pjax": Case(PROBLEM, untold("text/html, */*", X_PJAX="true")),
    "Inertia": Case(PROBLEM, untold("text/html, application/xhtml+xml", X_Inertia="true")),
    "Unpoly": Case(PROBLEM, untold("*/*, text/html", X_Up_Version="3.7")),
    "axios": Case(PROBLEM, untold("application/json, text/plain, */*")),
    "a program that prefers JSON": Case(PROBLEM, untold("application/json, text/html;q=0.5")),
    "a program with JSON first": Case(PROBLEM, untold("application/problem+json, text/html")),
    "a browser with JSON last": Case(LOGIN, untold("text/html, application/json;q=0.9")),
    "who refuses HTML": Case(PROBLEM, untold("text/html;q=0, */*")),
    "server-sent events": Case(PROBLEM, untold("text/event-stream")),
    "fetch() and curl": Case(PROBLEM, untold("*/*")),
    "nothing said": Case(PROBLEM, untold("")),
    "a form on http": Case(FORM, untold(Content_Type=URLENCODED), "POST"),
    "a form with a file": Case(FORM, untold(Content_Type="multipart/form-data; b=x"), "POST"),
    "a plain form": Case(FORM, untold(Content_Type="Text/Plain"), "POST"),
    "a form by jQuery": Case(
        PROBLEM, untold(Content_Type=URLENCODED, X_Requested_With="XMLHttpRequest"), "POST"
    ),
    "a form by a program": Case(PROBLEM, untold("*/*", Content_Type=URLENCODED), "POST"),
    "JSON that is sent": Case(PROBLEM, untold(Content_Type="application/json"), "POST"),
    "DELETE": Case(PROBLEM, untold(), "DELETE"),
    # -- Office, which follows redirects and opens their end (R52) ----------------------------
    "Word": Case(PROBLEM, untold("*/*", User_Agent="Mozilla/4.0 (ms-office; MSOffice 16)")),
    "Word, HEAD": Case(PROBLEM, untold("*/*", User_Agent="Microsoft Office Word 2014"), "HEAD"),
    "Excel that accepts HTML": Case(PAGE, untold(User_Agent="Mozilla/4.0 (ms-office; rmj)")),
    "the same, HEAD": Case(PAGE, untold(User_Agent="Microsoft Office Excel 2014"), "HEAD"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_everybody_is_answered_as_helps_them(world: World, case: Case) -> None:
    """R19, R22, R33, R52: one judgement for the login, the pages and the problems."""
    browser = world.browser()
    answer = await browser.request(case.method, "/deep/x?a=1", headers=case.headers)
    if case.answer == LOGIN:
        assert answer.status_code == 302
        return
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers  # no orphan of a login that nobody wanted
    assert "location" not in answer.headers
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind == ("application/problem+json" if case.answer == PROBLEM else "text/html")
    if case.answer in (FRAME, FORM):
        assert ("The form was not sent" in answer.text) == (case.answer == FORM)


ROUTE = "/auth/login?next=/deep/x%3Fa%3D1"
GETS = {
    name: case
    for name, case in CASES.items()
    if case.method in ("GET", "HEAD") and name != "a WebSocket"  # which has no routes of ours
}
# They name the login by its path, and are no part of a page as far as they tell.
PLAIN = (
    "axios", "a program that prefers JSON", "a program with JSON first", "who refuses HTML",
    "server-sent events", "Turbo's stream", "fetch() and curl", "nothing said",
)  # fmt: skip


@both_providers
@pytest.mark.parametrize("case", GETS.values(), ids=GETS.keys())
async def test_the_login_route_answers_everybody_alike(world: World, case: Case) -> None:
    """R22, R33, R52: it leads to the login whom that helps, and others where one can begin."""
    answer = await world.browser().request(case.method, ROUTE, headers=case.headers)
    if case.answer == LOGIN or case in (CASES[name] for name in PLAIN):
        assert answer.status_code == 302
        assert answer.headers["location"].startswith(f"{world.authorize}?")
        assert f"{NAME}_login_" in answer.headers["set-cookie"]
        return
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "location" not in answer.headers
    assert "www-authenticate" in answer.headers
    if case.method == "HEAD":
        return
    if case.answer == PROBLEM:
        assert answer.json()["login_url"] == ROUTE
        is_htmx = "HX-Request" in case.headers
        assert answer.headers.get("hx-redirect") == (ROUTE if is_htmx else None)
        return
    tag, href = link_of(answer)
    assert href == ROUTE
    assert ('target="_top"' in tag) is (case.answer == FRAME)  # though it is the page's own URL


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example/", "/%5cevil.example"])
async def test_the_login_route_names_no_other_site(world: World, target: str) -> None:
    """13: neither to a frame nor to a script."""
    path, home = f"/auth/login?next={target}", "/auth/login?next=/"
    framed = await world.browser().get(path, headers=told("navigate", "iframe"))
    assert link_of(framed)[1] == home
    script = await world.browser().get(path, headers={**JSON, "HX-Request": "true"})
    assert (script.json()["login_url"], script.headers["hx-redirect"]) == (home, home)


async def test_the_login_route_leads_a_script_back_to_its_page(world: World) -> None:
    """R20, R22: where it names no page itself."""
    headers = {**JSON, "X-Requested-With": "XMLHttpRequest", "Referer": f"{APP}/deep/x?a=1"}
    answer = await world.browser().get("/auth/login", headers=headers)
    assert answer.json()["login_url"] == ROUTE
    framed = await world.browser().get("/auth/login", headers=told("navigate", "iframe"))
    assert link_of(framed)[1] == "/auth/login"


# -- frames -------------------------------------------------------------------------------------


def link_of(answer: Any) -> tuple[str, str]:
    """The tag of the page's link, and where it leads."""
    tag = re.search(r'<a class="go"[^>]*>', answer.text)
    assert tag, answer.text
    return tag[0], html.unescape(re.search(r'href="([^"]*)"', tag[0])[1])


async def test_the_page_in_a_frame_leads_out_of_it(world: World) -> None:
    """R33: our own pages may frame it, others not, and its link opens at the top."""
    answer = await world.browser().get("/deep/x?a=1", headers=told("navigate", "iframe"))
    assert "frame-ancestors 'self'" in answer.headers["content-security-policy"]
    tag, href = link_of(answer)
    assert 'target="_top"' in tag
    assert href == "/auth/login?next=/deep/x%3Fa%3D1"


async def test_a_page_of_the_applications_own_knows_that_it_is_in_a_frame(make_world) -> None:
    """R33: error_handler gets the target."""
    world = make_world(error_handler=lambda page: f"<a target={page.target}>")
    framed = await world.browser().get("/", headers=told("navigate", "iframe"))
    assert framed.text == "<a target=_top>"
    assert framed.headers["content-security-policy"].endswith("frame-ancestors 'self'")
    form = await world.browser().post("/", headers=told("navigate", "document"))
    assert form.text == "<a target=_self>"
    assert form.headers["content-security-policy"].endswith("frame-ancestors 'none'")


async def test_trying_again_in_a_frame_stays_in_it_and_the_logout_is_not_framed(make_world) -> None:
    """The page of an outage is shown where the frame is; a button that acts is never framed."""
    world = make_world()
    browser = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(503, times=9)
    down = await browser.get("/cameras", headers=told("navigate", "iframe"))
    assert down.status_code == 503
    assert "target=" not in link_of(down)[0]
    out = await browser.get("/auth/logout", headers=told("navigate", "iframe"))
    assert "frame-ancestors 'none'" in out.headers["content-security-policy"]


# -- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("referer", "link"),
    [
        (f"{APP}/deep/form?id=5", "/auth/login?next=/deep/form%3Fid%3D5"),
        ("http://other.example/x", "/auth/login?next=/"),
        (f"{APP}//evil.example", "/auth/login?next=/"),
        (None, "/auth/login?next=/"),
    ],
)
async def test_a_form_that_came_too_late_leads_back_to_its_page(
    world: World, referer: str | None, link: str
) -> None:
    """R19: and not to the URL that it was sent to, which a GET may not reach."""
    headers = told("navigate", "document", **({"Referer": referer} if referer else {}))
    answer = await world.browser().post("/data", headers=headers)
    assert answer.status_code == 401
    assert link_of(answer)[1] == link


async def test_a_form_during_an_outage_leads_back_to_its_page(world: World) -> None:
    """R19: the page of the 503, too, is a page."""
    browser = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(503, times=9)
    headers = told("navigate", "document", Referer=f"{APP}/deep/form")
    answer = await browser.post("/", headers={**headers, "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 503
    assert link_of(answer)[1] == "/deep/form"


@pytest.mark.parametrize("path", ["/data", "/auth/logout"])
async def test_a_form_of_another_site_is_refused_with_a_page(world: World, path: str) -> None:
    """R19: likewise for the 403."""
    browser = await world.login()
    headers = told("navigate", "document", **{"Sec-Fetch-Site": "cross-site"})
    answer = await browser.post(path, headers=headers)
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert link_of(answer)[1] == "/"


# -- before a person asks -----------------------------------------------------------------------


async def test_no_prefetch_begins_a_login(world: World) -> None:
    """Nor of the login route itself; what is prefetched with a session is as it always is."""
    headers = told("navigate", "document", **{"Sec-Purpose": "prefetch"})
    answer = await world.browser().get("/auth/login?next=/deep/x", headers=headers)
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    browser = await world.login()
    assert (await browser.get("/deep/x", headers=headers)).status_code == 200
