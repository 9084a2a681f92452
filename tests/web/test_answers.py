"""What the middleware's own responses tell clients, caches and the pages of other origins."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.middleware.cors import CORSMiddleware

from tests.helpers.apps import make_app
from tests.helpers.browser import Socket
from tests.helpers.world import HTML, JSON, World

pytestmark = pytest.mark.anyio

FRONT = "https://app.example"
PREFLIGHT = {
    "Origin": FRONT,
    "Access-Control-Request-Method": "PUT",
    "Access-Control-Request-Headers": "content-type,x-requested-with",
    "Sec-Fetch-Mode": "cors",
}
CHALLENGE = re.compile(r'[A-Za-z]+ realm="[^"]+"')


# -- 401 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", JSON),
        ("HEAD", JSON),
        ("DELETE", JSON),
        ("OPTIONS", JSON),
        ("GET", {"HX-Request": "true"}),
        ("GET", {**HTML, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("POST", {**HTML, "Sec-Fetch-Mode": "navigate"}),
        ("GET", {**JSON, "Upgrade": "websocket", "Connection": "Upgrade"}),
    ],
)
async def test_each_401_says_how_to_log_in(world: World, method: str, headers: Any) -> None:
    """R39: RFC 9110 §15.5.2; Android's and Java's clients throw without it."""
    answer = await world.browser().request(method, "/cameras", headers=headers)
    assert answer.status_code == 401
    challenge = answer.headers["www-authenticate"]
    assert CHALLENGE.fullmatch(challenge)
    assert challenge.split()[0] not in ("Basic", "Digest", "NTLM", "Negotiate")  # browsers ask


async def test_so_does_the_landing_page_and_the_end_of_a_session(make_world) -> None:
    world = make_world(auto_login=False)
    assert "www-authenticate" in (await world.browser().get("/")).headers
    browser = world.browser(**JSON)
    start = await browser.get("/auth/login")
    await browser.finish(start.headers["location"])
    world.sim.revoke_user("anna@example.com")
    ended = await browser.get("/cameras")
    assert ended.status_code == 401
    assert "www-authenticate" in ended.headers


async def test_so_does_the_denial_of_a_websocket() -> None:
    world = World()
    start = (await Socket(world, {"Host": "localhost:8000"}).run())[0]
    assert start["status"] == 401
    assert b"www-authenticate" in dict(start["headers"])
    await world.close()


async def test_no_other_status_challenges(make_world) -> None:
    browser = await make_world().login()
    for answer in (
        await browser.get("/"),
        await browser.post("/data", headers={"Origin": "https://evil.example"}),
        await browser.get("/auth/callback?code=x"),
    ):
        assert "www-authenticate" not in answer.headers


# -- caches ------------------------------------------------------------------------------------


async def test_no_cache_keeps_an_answer_of_ours(make_world) -> None:
    """Whoever comes next, or comes back with a session, must not be given it."""
    world = make_world(trusted_origins=FRONT)
    browser = world.browser()
    for answer in (
        await browser.get("/"),
        await browser.get("/", headers=JSON),
        await browser.post("/", headers={"Sec-Fetch-Mode": "navigate"}),
        await browser.get("/auth/session"),
        await browser.get("/auth/signed-out"),
        await browser.get("/auth/logout"),
        await browser.get("/auth/callback?code=x"),
        await browser.put("/auth/login"),
        await browser.options("/cameras", headers=PREFLIGHT),
    ):
        assert answer.headers["cache-control"] == "no-store"


async def test_an_application_may_let_its_files_be_revalidated(make_world, side: str) -> None:
    """R40: by a header of its own; without it they are loaded anew each time."""
    own: list[tuple[str, str]] = [("ETag", '"1"')]

    async def asgi(scope, receive, send) -> None:
        is_known = dict(scope["headers"]).get(b"if-none-match") == b'"1"'
        raw = [(name.lower().encode(), value.encode()) for name, value in own]
        status = 304 if is_known else 200
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"" if is_known else b"style"})

    def wsgi(environ, start_response):
        is_known = environ.get("HTTP_IF_NONE_MATCH") == '"1"'
        start_response("304 Not Modified" if is_known else "200 OK", own)
        return [b"" if is_known else b"style"]

    world = make_world(app=asgi if side == "asgi" else wsgi)
    browser = await world.login()
    assert (await browser.get("/static/style.css")).headers["cache-control"] == "no-store"
    own.append(("Cache-Control", "private, no-cache"))
    for headers, status in ({}, 200), ({"If-None-Match": '"1"'}, 304):
        answer = await browser.get("/static/style.css", headers=headers)
        assert answer.status_code == status
        assert answer.headers["etag"] == '"1"'
        assert answer.headers.get_list("cache-control") == ["private, no-cache"]


# -- CORS --------------------------------------------------------------------------------------


async def test_a_preflight_of_a_trusted_origin_is_answered(make_world) -> None:
    """R11: it brings no cookie, so it never gets to the application."""
    world = make_world(trusted_origins=FRONT)
    for path in ("/cameras", "/auth/logout"):
        answer = await world.browser(**PREFLIGHT).options(path)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == FRONT
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["access-control-allow-methods"] == "PUT"
        assert answer.headers["access-control-allow-headers"] == "content-type,x-requested-with"
        assert "Origin" in answer.headers["vary"]
        assert answer.content == b""


@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://app.example"},
        {"Origin": "null"},
        {"Access-Control-Request-Method": ""},
        {"Access-Control-Request-Method": "PUT\x01"},
        {"Access-Control-Request-Headers": "x" * 3_000},
        {"Access-Control-Request-Headers": "a: b"},
    ],
    ids=lambda changed: str(changed)[:60],
)
async def test_any_other_preflight_is_a_request_without_a_session(make_world, changed) -> None:
    """18: it gets no data and no session, and so do OPTIONS that are none."""
    world = make_world(trusted_origins=FRONT)
    answer = await world.browser(**{**PREFLIGHT, **changed}).options("/cameras")
    assert answer.status_code == 401
    assert "access-control-allow-methods" not in answer.headers


async def test_a_trusted_origin_may_read_the_answers_of_the_middleware(make_world) -> None:
    """R11: a browser shows a "CORS error" in place of a 401 without these headers."""
    world = make_world(trusted_origins=FRONT)
    browser = world.browser(**JSON, Origin=FRONT)
    login = await browser.get("/cameras")
    info = await browser.get("/auth/session")
    logged_in = await world.login()
    world.clock.tick(43_300)
    world.sim.fail_token(503, times=9)
    down = await logged_in.get("/cameras", headers={**JSON, "Origin": FRONT})
    for answer, status in ((login, 401), (info, 200), (down, 503)):
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == FRONT
        assert answer.headers["access-control-allow-credentials"] == "true"
    other = await world.browser(**JSON, Origin="https://evil.example").get("/cameras")
    assert "access-control-allow-origin" not in other.headers
    own = await world.browser(**JSON).get("/cameras")
    assert "access-control-allow-origin" not in own.headers


async def test_so_may_it_where_the_session_ended_under_the_handler(make_world) -> None:
    """R11: the response that takes the place of the application's."""
    world = make_world(trusted_origins=FRONT)
    browser = await world.login()
    world.sim.revoke_user("anna@example.com")
    ended = await browser.get("/cameras", headers={**JSON, "Origin": FRONT})
    assert ended.status_code == 401
    assert ended.headers["access-control-allow-origin"] == FRONT


async def test_a_cors_middleware_around_ours_answers_for_both() -> None:
    """R11: the order that the documentation says; no header is there twice."""
    world = World(trusted_origins=FRONT)
    outer = CORSMiddleware(
        world.app, allow_origins=[FRONT], allow_methods=["*"], allow_credentials=True
    )
    world.net.add("http://localhost:8000", outer)
    refused = await world.browser(**JSON, Origin=FRONT).get("/cameras")
    assert refused.status_code == 401
    assert refused.headers.get_list("access-control-allow-origin") == [FRONT]
    headers = {**PREFLIGHT, "Access-Control-Request-Headers": "content-type"}
    assert (await world.browser(**headers).options("/cameras")).status_code == 200
    await world.close()


async def test_a_cors_middleware_inside_of_ours_is_enough_for_a_trusted_origin() -> None:
    """R11: the other order, as Flask's extensions have it."""
    app = make_app()
    app.add_middleware(
        CORSMiddleware, allow_origins=[FRONT], allow_methods=["*"], allow_credentials=True
    )
    world = World(app=app, trusted_origins=FRONT)
    assert (await world.browser(**PREFLIGHT).options("/data")).status_code == 200
    browser = await world.login()
    answer = await browser.post("/data", json={"a": 1}, headers={"Origin": FRONT})
    assert answer.json() == {"a": 1}
    assert answer.headers.get_list("access-control-allow-origin") == [FRONT]
    await world.close()


@pytest.mark.parametrize(
    ("own", "sent"),
    [
        (["X-Cookie-Consent"], "X-Cookie-Consent, Cookie"),
        (["Accept-Encoding", "X-Cookies, Accept"], "Accept-Encoding, X-Cookies, Accept, Cookie"),
        (["Accept", "cookie"], "Accept, cookie"),
        (["*"], "*"),
        ([], "Cookie"),
    ],
)
async def test_each_answer_with_a_session_varies_by_the_cookie(make_world, side, own, sent) -> None:
    """Else a cache that the application allows gives one user's page to another."""
    headers = [("Content-Type", "text/plain"), ("Cache-Control", "max-age=60")]
    headers += [("Vary", value) for value in own]

    async def asgi(scope, receive, send) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": b"page"})

    def wsgi(environ, start_response):
        start_response("200 OK", headers)
        return [b"page"]

    world = make_world(app=asgi if side == "asgi" else wsgi)
    browser = await world.login()
    answer = await browser.get("/")
    found = {word.strip() for word in answer.headers["vary"].split(",")}
    assert found == {word.strip() for word in sent.split(",")}
