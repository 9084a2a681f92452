"""The pages that a person may see, behind both sides: what each says, and who may replace it."""

from __future__ import annotations

import base64
import hashlib
import logging
import re

import pytest
from fastapi import Depends, FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import ErrorPage, fastapi, flask
from cm_auth_middleware.web.messages import LANGUAGES, MESSAGES
from tests.helpers.stores import BrokenStore
from tests.helpers.world import APP, CM, JSON, World

pytestmark = pytest.mark.anyio

NAVIGATING = {"Sec-Fetch-Mode": "navigate"}


def guard(world: World, path: str) -> None:
    """Put a path behind a rule that admits no user, by each side's own `require`."""
    if world.side == "asgi":
        app = FastAPI()
        app.add_api_route(path, lambda: None, dependencies=[Depends(fastapi.require(lambda _: 0))])
        world.app.app = app
    else:
        view = flask.require(lambda _: 0)(lambda: "")
        site = Flask(__name__)
        site.add_url_rule(path, "guarded", view)
        flask.CMAuth(site, engine=world.engine)
        world.net.add_wsgi(APP, site)


async def cause(kind: str, make_world, language: str = "en", **options):
    """Bring a page about as a person would, and return the answer."""
    store = BrokenStore()
    if kind == "log_in":
        options["auto_login"] = False
    if kind == "denied":
        options["allow"] = lambda _: False
    if kind == "unknown_host":
        options["allowed_hosts"] = ["app.example"]
    world: World = make_world(store=store, **options)
    if kind == "forbidden":
        guard(world, "/cameras")
    browser = world.browser(**{"Accept-Language": language})
    if kind in ("log_in", "unknown_host"):
        return await browser.get("/cameras?a=1")
    if kind in ("log_out", "signed_out"):
        return await browser.get(f"/auth/{kind.replace('log_', 'log').replace('_', '-')}")
    if kind == "login_stale":
        return await browser.get("/auth/callback?code=abcdef&state=x")
    if kind == "denied":
        return await browser.login("/cameras?a=1")
    if kind in ("unavailable", "store_unavailable"):
        await browser.login("/")
        if kind == "unavailable":
            world.clock.tick(43300)
            world.sim.fail_token(503, times=9)
        store.broken = kind == "store_unavailable"
        return await browser.get("/cameras?a=1")
    if kind == "form_not_sent":
        return await browser.post("/cameras?a=1", data={"a": "1"})
    if kind == "cross_site":
        await browser.login("/")
        return await browser.post("/", data={"a": "1"}, headers={"Origin": "https://evil.example"})
    start = await browser.get("/cameras?a=1")
    url = browser.callback_url(start.headers["location"])
    if kind == "login_lost":
        await browser.get(url)
        browser.cookies.delete("cm_auth")
        return await browser.get("/cameras?a=1")
    if kind == "forbidden":
        await browser.get(url)
        return await browser.get("/cameras")
    if kind == "login_cancelled":
        return await browser.get(re.sub(r"code=\w+", "error=access_denied", url))
    if kind == "login_invalid":
        return await browser.get(re.sub(r"code=\w+", "code=", url))
    if kind == "misconfigured":
        world.sim.fail_token({"error": "invalid_client"})
    if kind == "login_unavailable":
        del world.net.apps[CM]
    if kind == "login_busy":
        other = world.browser()
        first = other.callback_url((await other.get("/")).headers["location"])
        world.net.add(CM, PlainTextResponse("", 429, {"Retry-After": "30"}))
        await other.get(first)
    store.broken = kind == "login_not_kept"
    return await browser.get(url)


STATUS = {
    "cross_site": 403,
    "form_not_sent": 401,
    "denied": 403,
    "forbidden": 403,
    "log_in": 401,
    "log_out": 200,
    "login_busy": 503,
    "login_cancelled": 403,
    "login_invalid": 400,
    "login_lost": 400,
    "login_not_kept": 503,
    "login_stale": 400,
    "login_unavailable": 502,
    "misconfigured": 502,
    "signed_out": 200,
    "store_unavailable": 503,
    "unavailable": 503,
    "unknown_host": 400,
}


@pytest.mark.parametrize("kind", sorted(MESSAGES))
async def test_each_page_says_what_happened_and_what_to_do(kind: str, make_world) -> None:
    response = await cause(kind, make_world)
    title, text, action, back = MESSAGES[kind]["en"]
    assert response.status_code == STATUS[kind]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert f"<h1>{title}</h1>" in response.text
    assert text.partition("'")[0] in response.text
    assert f">{action}</" in response.text
    assert (f'<a class="back" href="/">{back}</a>' in response.text) == (back is not None)
    scripts = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    assert response.text.count("<script") == len(scripts) == policy.count("script-src")
    for script in scripts:  # one, which keeps the fragment of the address
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
    assert not re.search(r"(src|href|url)\W+https?:", response.text)


@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", sorted(MESSAGES))
async def test_each_page_speaks_the_persons_language(kind: str, language: str, make_world) -> None:
    response = await cause(kind, make_world, f"xx, {language}-XX;q=0.9, en;q=0.1")
    assert f'<html lang="{language}">' in response.text
    assert response.headers["content-language"] == language
    assert MESSAGES[kind][language].action in response.text


async def test_a_program_gets_a_problem_and_no_page(make_world) -> None:
    world = make_world(allow=lambda _: False)
    browser = world.browser(**JSON)
    start = await browser.get("/auth/login", headers=NAVIGATING)
    response = await browser.get(browser.callback_url(start.headers["location"]))
    assert response.status_code == 403
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "You have no access"
    assert response.json()["login_url"] == "/auth/login?next=/"


# -- the landing page --------------------------------------------------------------------------


async def test_the_landing_pages_button_leads_through_the_login_to_the_very_url(make_world) -> None:
    world = make_world(auto_login=False)
    browser = world.browser()
    page = await browser.get("/deep/a%20b?q=1&x=%2F%22%3E")
    assert page.status_code == 401
    assert "set-cookie" not in page.headers
    link = re.search(r'<a class="go" href="([^"]+)"', page.text)[1].replace("&amp;", "&")
    assert link.startswith("/auth/login?next=")
    start = await browser.get(link)
    assert start.status_code == 302
    arrived = await browser.finish(start.headers["location"])
    assert str(arrived.url) == f"{APP}/deep/a%20b?q=1&x=%2F%22%3E"


async def test_the_landing_page_is_for_people_only(make_world) -> None:
    world = make_world(auto_login=False)
    assert (await world.browser(**JSON).get("/")).json()["login_url"] == "/auth/login"
    hx = await world.browser().get("/", headers={"HX-Request": "true"})
    assert hx.headers["hx-redirect"] == "/auth/login"
    head = await world.browser().head("/")
    assert head.status_code == 401
    assert head.content == b""


async def test_a_session_that_ended_under_a_handler_leads_to_the_landing_page(make_world) -> None:
    world = make_world(auto_login=False)
    browser = world.browser()
    start = await browser.get("/auth/login")
    await browser.finish(start.headers["location"])
    world.sim.revoke_user("anna@example.com")
    world.clock.tick(61)  # past the minute in which a lost session means lost cookies
    response = await browser.get("/cameras")
    assert response.status_code == 401
    assert "Log in with CameraManager" in response.text


# -- signed out --------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?next=", "?next=/auth/signed-out", "?lang=nl"])
async def test_a_logout_ends_at_the_signed_out_page(world: World, query: str) -> None:
    """13: any other page would lead to a new login, and CameraManager straight back in."""
    browser = await world.login()
    response = await browser.post(f"/auth/logout{query}", follow_redirects=True)
    assert str(response.url) == f"{APP}/auth/signed-out"
    assert response.status_code == 200
    assert "You are logged out" in response.text
    assert 'href="/auth/login"' in response.text


async def test_the_logout_page_has_a_way_back(world: World) -> None:
    """To the application, and never to where a link came from."""
    browser = await world.login()
    page = await browser.get("/auth/logout?next=/cameras", headers={"Referer": f"{APP}/deep/7"})
    assert '<a class="back" href="/">Cancel</a>' in page.text
    assert (await browser.get("/")).status_code == 200


async def test_the_signed_out_page_is_not_shown_to_who_is_logged_in(world: World) -> None:
    browser = await world.login()
    response = await browser.get("/auth/signed-out")
    assert response.status_code == 302
    assert response.headers["location"] == "/"
    assert (await browser.post("/auth/signed-out")).status_code == 405


# -- pages of the application's own ------------------------------------------------------------


async def test_the_application_may_draw_the_pages(make_world) -> None:
    drawn: list[ErrorPage] = []

    def draw(page: ErrorPage) -> str:
        drawn.append(page)
        return f"<h1>Ours: {page.title}</h1>"

    response = await cause("denied", make_world, "nl", error_handler=draw)
    assert response.status_code == 403
    assert response.text == "<h1>Ours: U hebt geen toegang</h1>"
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"] == (
        "base-uri 'none'; frame-ancestors 'none'"
    )
    assert drawn == [
        ErrorPage(
            status=403,
            kind="denied",
            title="U hebt geen toegang",
            text=MESSAGES["denied"]["nl"].text,
            link="/auth/login?next=/cameras%3Fa%3D1",
            label="Opnieuw inloggen",
            method="get",
            language="nl",
        )
    ]


async def test_an_async_error_handler_may_leave_pages_to_us(make_world) -> None:
    async def draw(page: ErrorPage) -> bytes | None:
        return b"<p>bytes</p>" if page.kind == "signed_out" else None

    world = make_world(error_handler=draw)
    browser = world.browser()
    assert (await browser.get("/auth/signed-out")).text == "<p>bytes</p>"
    confirmation = await browser.get("/auth/logout")
    assert '<form method="post" action="/auth/logout?next=/auth/signed-out"' in confirmation.text


async def test_an_error_handler_that_fails_does_not_hide_what_was_to_be_told(
    make_world, caplog
) -> None:
    def raises(page: ErrorPage) -> str:
        raise RuntimeError("template not found")

    response = await cause("login_stale", make_world, error_handler=raises)
    assert "This login is no longer valid" in response.text
    assert "template not found" in caplog.text
    caplog.clear()
    response = await cause("login_stale", make_world, error_handler=lambda _: 42)
    assert "This login is no longer valid" in response.text
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.name for r in errors] == ["cm_auth_middleware"]


# -- a mistake of who runs the application -----------------------------------------------------


@pytest.mark.parametrize("error", ["invalid_client", "unauthorized", "unauthorized_client"])
async def test_a_refused_api_key_asks_nobody_to_try_again_in_a_moment(world: World, error) -> None:
    """At a login, and at a refresh: there the session is kept, and so are those that wait."""
    world.sim.fail_token({"error": error})
    browser = world.browser()
    url = browser.callback_url((await browser.get("/")).headers["location"])
    page = await browser.get(url)
    assert page.status_code == 502
    await browser.login("/")
    world.clock.tick(43_300)
    world.sim.fail_token({"error": error}, times=2)
    pages = [page]
    for pause in (0, 0.3, 0.1):  # refused, refused again, and in the pause after that
        world.clock.tick(pause)
        pages.append(await browser.get("/cameras"))
        assert pages[-1].status_code == 503
    for page in pages:
        assert "This application is not set up correctly" in page.text
        assert "in a moment" not in page.text
    world.clock.tick(5)
    assert (await browser.get("/cameras")).status_code == 200


# -- the application's name and picture --------------------------------------------------------

PICTURE = "data:image/png;base64,iVBORw0KGgo="


async def test_the_pages_show_the_name_and_the_picture_of_the_application(make_world) -> None:
    world = make_world(app_name="Cameras & <Doors>", app_logo="/static/logo.svg?v=3")
    page = await world.browser().get("/auth/signed-out")
    name = "Cameras &amp; &lt;Doors&gt;"
    assert f"<title>You are logged out · {name}</title>" in page.text
    assert f'<p class="app"><img src="/static/logo.svg?v=3" alt="">{name}</p>' in page.text
    assert "; img-src 'self'" in page.headers["content-security-policy"]
    assert "<h1>You are logged out</h1>" in page.text


async def test_a_picture_in_the_page_itself_needs_no_other_right(make_world) -> None:
    world = make_world(app_logo=PICTURE)
    page = await world.browser().get("/auth/signed-out")
    assert f'<p class="app"><img src="{PICTURE}" alt=""></p>' in page.text
    assert "; img-src data:" in page.headers["content-security-policy"]
    assert "<title>You are logged out</title>" in page.text


async def test_pages_without_a_name_load_and_show_nothing_of_it(world: World) -> None:
    page = await world.browser().get("/auth/signed-out")
    assert "img" not in page.headers["content-security-policy"]
    assert 'class="app"' not in page.text


async def test_the_picture_is_below_the_mount(make_world, side: str) -> None:
    world = make_world(app_logo="/static/logo.svg")
    if side == "asgi":
        world.net.add(APP, Starlette(routes=[Mount("/ui", app=world.app)]))
    else:
        world.net.add_wsgi(APP, DispatcherMiddleware(Flask("outer"), {"/ui": world.app}))
    page = await world.browser().get("/ui/auth/signed-out")
    assert '<img src="/ui/static/logo.svg" alt="">' in page.text


async def test_an_error_handler_is_given_all_that_a_page_has(make_world) -> None:
    drawn: list[ErrorPage] = []

    def draw(page: ErrorPage) -> None:
        drawn.append(page)

    world = make_world(app_name="Cameras", app_logo="/logo.svg", error_handler=draw)
    await world.browser().get("/auth/logout")
    (page,) = drawn
    assert (page.back, page.back_label) == ("/", "Cancel")
    assert (page.app_name, page.app_logo) == ("Cameras", "/logo.svg")


async def test_a_login_that_the_next_process_does_not_know_is_not_blamed_on_cookies_alone(
    make_world,
) -> None:
    """Two workers with sessions in memory: the person cannot mend that."""
    world = make_world()
    browser, elsewhere = world.browser(), make_world(beside=world, store="memory://").browser()
    start = await browser.get("/cameras")
    await browser.get(browser.callback_url(start.headers["location"]))
    elsewhere.cookies.update(browser.cookies)
    page = await elsewhere.get("/cameras")
    assert page.status_code == 400
    assert "servers may not share their sessions" in page.text
