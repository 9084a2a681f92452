"""The ready client: where the bearer goes, and where it does not."""

from __future__ import annotations

import pickle
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from enum import Enum

import anyio
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cm_auth_middleware import UnavailableError
from cm_auth_middleware.sessions.session import Session
from tests.helpers.apps import make_app
from tests.helpers.world import CM, MakeWorld, World, both_providers

pytestmark = pytest.mark.anyio

OTHER = "http://evil.example"


async def stranger(scope, receive, send) -> None:
    await PlainTextResponse("stranger")(scope, receive, send)


def sent_to(world: World, origin: str) -> list[httpx2.Request]:
    return [r for r in world.net.seen if f"{r.url.scheme}://{r.url.netloc.decode()}" == origin]


@both_providers
@pytest.mark.parametrize(
    "origin",
    [
        OTHER,
        "https://127.0.0.1:9400",
        "http://127.0.0.1:9401",
        "http://127.0.0.1.evil.example:9400",
    ],
)
async def test_an_absolute_url_elsewhere_goes_without_the_bearer(world: World, origin: str) -> None:
    world.net.add(origin, stranger)
    browser = await world.login()
    response = await browser.get("/api/x", params={"url": f"{origin}/x"})
    assert response.json() == {"status": 200, "text": "stranger"}
    [request] = sent_to(world, origin)
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers


@both_providers
async def test_a_user_part_does_not_fool_the_origin_check(world: World) -> None:
    world.net.add(OTHER, stranger)
    browser = await world.login()
    await browser.get("/api/x", params={"url": "http://127.0.0.1:9400@evil.example/x"})
    [request] = sent_to(world, OTHER)
    assert "Bearer" not in request.headers.get("authorization", "")


@both_providers
@pytest.mark.parametrize("origin", [OTHER, "https://127.0.0.1:9400", "http://127.0.0.1:9401"])
async def test_a_redirect_elsewhere_is_followed_without_bearer_and_cookies(
    origin: str, provider: str
) -> None:
    world = World(provider=provider)
    world.net.add(origin, stranger)

    async def handler(request: Request) -> Response:
        cm = request.state.cm
        await cm.get(f"{world.root}/set-cookie")
        answer = await cm.get(f"{world.root}/redirect?to={origin}/x", follow_redirects=True)
        return PlainTextResponse(answer.text)

    world.app.app = make_app([Route("/go", handler)])
    browser = await world.login()
    assert (await browser.get("/go")).text == "stranger"
    [request] = sent_to(world, origin)
    assert "authorization" not in request.headers
    assert "cookie" not in request.headers


@both_providers
async def test_cookies_of_one_user_never_reach_another(world: World) -> None:
    one, two = await world.login(), await world.login(email="bob@example.com")
    await one.get("/api/x", params={"url": f"{world.root}/set-cookie"})
    await two.get("/cameras")
    [call] = world.sim.calls(f"{world.api}/cameras")
    assert "cookie" not in call.headers


@both_providers
async def test_closing_the_client_leaves_the_pool_open(provider: str) -> None:
    async def handler(request: Request) -> Response:
        async with request.state.cm as cm:
            first = await cm.get(f"{world.root}/cameras")
        return JSONResponse({"status": first.status_code, "closed": cm.is_closed})

    world = World(app=make_app([Route("/closing", handler)]), provider=provider)
    browser = await world.login()
    for _ in range(2):
        assert (await browser.get("/closing")).json() == {"status": 200, "closed": True}
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
async def test_a_snapshot_streams_through(world: World) -> None:
    browser = await world.login()
    response = await browser.get("/snapshot/2001")
    assert response.headers["content-type"] == "image/jpeg"
    assert response.content.startswith(b"\xff\xd8")


@both_providers
async def test_a_client_that_is_kept_goes_on_after_another_request_refreshed(provider: str) -> None:
    kept = []

    async def keep(request: Request) -> Response:
        kept.append(request.state.cm)
        return PlainTextResponse("kept")

    world = World(app=make_app([Route("/keep", keep)]), provider=provider)
    browser = await world.login()
    await browser.get("/keep")
    for _ in range(2):
        world.clock.tick(43300)
        assert (await browser.get("/cameras")).status_code == 200
        assert (await kept[0].get(f"{world.root}/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 2


@both_providers
async def test_a_handlers_own_authorization_is_left_alone(provider: str) -> None:
    async def handler(request: Request) -> Response:
        headers = {"Authorization": "Bearer mine"}
        answer = await request.state.cm.get(f"{world.root}/cameras", headers=headers)
        return PlainTextResponse(str(answer.status_code))

    world = World(app=make_app([Route("/own", handler)]), provider=provider)
    browser = await world.login()
    assert (await browser.get("/own")).text == "401"
    assert world.sim.token_calls("refresh_token") == []


@both_providers
async def test_a_redirect_inside_the_api_keeps_the_bearer(world: World) -> None:
    browser = await world.login()
    api = "http://localhost:9400" if world.api == "/api/v3.0" else CM
    params = {"url": f"{world.root}/redirect?to={api}{world.api}/cameras", "follow": "1"}
    assert (await browser.get("/api/x", params=params)).json()["status"] == 200


@both_providers
async def test_a_session_that_dies_in_a_framework_that_answers_itself_is_answered_too(
    provider: str,
) -> None:
    async def app(scope, receive, send) -> None:
        request = Request(scope, receive)
        try:
            await request.state.cm.get(f"{world.root}/cameras")
        except Exception:
            await PlainTextResponse("boom", 500)(scope, receive, send)

    world = World(app=app, provider=provider)
    browser = world.browser()
    start = await browser.get("/")
    await browser.get(browser.callback_url(start.headers["location"]))
    world.sim.revoke_user("anna@example.com")
    world.clock.tick(60)
    assert (await browser.get("/")).status_code == 302


@both_providers
async def test_a_response_that_has_started_is_not_answered_twice(provider: str) -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await Request(scope, receive).state.cm.get(f"{world.root}/cameras")

    world = World(app=app, provider=provider)
    browser = world.browser()
    start = await browser.get("/")
    await browser.get(browser.callback_url(start.headers["location"]))
    world.sim.revoke_user("anna@example.com")
    with pytest.raises(Exception, match="log in again"):
        await browser.get("/")


@pytest.mark.parametrize(("name", "value"), [("follow_redirects", True), ("timeout", 3)])
async def test_what_a_handler_sets_before_the_first_use_counts(name: str, value: object) -> None:
    seen = []

    async def handler(request: Request) -> Response:
        cm = request.state.cm
        setattr(cm, name, value)
        await cm.get("/rest/v2.4/cameras")
        seen.append(getattr(cm, name))
        return PlainTextResponse("")

    world = World(app=make_app([Route("/set", handler)]))
    await (await world.login()).get("/set")
    assert seen == [value if name == "follow_redirects" else httpx2.Timeout(3)]


_UNCHANGING = (str, int, bool, type(None), Enum, httpx2.URL, httpx2.QueryParams)


@both_providers
async def test_what_one_request_changes_in_its_client_no_other_finds(make_world, side) -> None:
    sessions: list[Session] = []
    world = make_world(on_login=sessions.append)
    await world.login()
    make = world.engine.client if side == "asgi" else world.engine.sync_client
    one, two, three = (make(sessions[0]) for _ in range(3))
    one.headers["X-Mine"] = "1"
    one.cookies.set("mine", "1")
    one.params = {"mine": "1"}
    one.event_hooks["request"].append(print)
    one.timeout.read = 1
    one.follow_redirects = True
    one.base_url = "https://elsewhere.example/"
    for name in ("headers", "params", "event_hooks", "timeout", "follow_redirects", "base_url"):
        assert getattr(one, name) != getattr(two, name), name
    assert not dict(two.cookies) | dict(three.cookies)
    # A ready client is a copy. An httpx2 that keeps more in one has to be looked at again.
    shared = {
        name
        for name, value in vars(three).items()
        if value is vars(two)[name] and not isinstance(value, _UNCHANGING)
    }
    assert shared == {"_transport", "_mounts"}


async def opened(make_world, **options):
    """Somebody's client, outside of any request: on the event loop, or for threads."""
    handles: list[str] = []
    world = make_world(on_login=lambda session: handles.append(session.export()), **options)
    await world.login()
    return world, await world.client_for(handles[0])


@both_providers
async def test_a_response_that_is_kept_has_no_token_in_it(make_world) -> None:
    world, cm = await opened(make_world)
    url = f"{world.root}/redirect?to={world.api}/cameras"
    response = await world.on_its_side(lambda: cm.get(url, follow_redirects=True))
    stopped = await world.on_its_side(lambda: cm.get(url))
    assert response.status_code == 200
    assert len(response.history) == 1
    assert stopped.status_code == 302
    for each in (response, *response.history, stopped):
        assert "authorization" not in each.request.headers
    kept = pickle.dumps([response, stopped])
    assert b"Front gate" in kept
    tokens = [call.headers["authorization"][7:] for call in world.sim.calls(f"{world.api}/cameras")]
    assert tokens
    assert not any(token.encode() in kept for token in tokens)


@both_providers
async def test_a_call_that_failed_has_no_token_in_it(make_world) -> None:
    world, cm = await opened(make_world)
    for origin in world.sim.origins(CM):
        del world.net.apps[origin]
    with pytest.raises(httpx2.ConnectError) as raised:
        await world.on_its_side(lambda: cm.get(f"{world.root}/cameras"))
    assert "authorization" in world.net.seen[-1].headers
    assert "authorization" not in raised.value.request.headers


@both_providers
async def test_a_request_that_is_sent_again_gets_the_newest_token(make_world) -> None:
    world, cm = await opened(make_world)
    request = cm.build_request("GET", f"{world.root}/redirect?to={world.api}/cameras")
    first = await world.on_its_side(lambda: cm.send(request))
    world.clock.tick(43_300)
    for again in (request, first.next_request):
        response = await world.on_its_side(lambda again=again: cm.send(again))
        assert response.status_code in (200, 302), response.text


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("side", ["wsgi"])
async def test_threads_that_share_a_client_from_its_first_use_all_send_the_bearer(
    make_world,
) -> None:
    sessions: list[Session] = []
    world = make_world(on_login=sessions.append)
    await world.login()
    already = len(world.net.seen)

    def share() -> None:
        before, interval = threading.Barrier(8), sys.getswitchinterval()
        client = world.engine.sync_client(sessions[0])

        def use() -> None:
            before.wait(10)
            client.get(f"{world.root}/cameras").raise_for_status()

        sys.setswitchinterval(1e-6)  # as often as it can
        try:
            with ThreadPoolExecutor(8) as pool:
                for used in [pool.submit(use) for _ in range(8)]:
                    used.result()
        finally:
            sys.setswitchinterval(interval)

    for _ in range(100):
        await anyio.to_thread.run_sync(share)
    sent = [r for r in world.net.seen[already:] if r.url.path == f"{world.api}/cameras"]
    assert len(sent) == 800
    assert all(r.headers.get("Authorization", "").startswith("Bearer ") for r in sent)


@both_providers
async def test_no_variable_of_a_traceback_holds_a_token(make_world: MakeWorld) -> None:
    """R56: Sentry, loguru and debug pages record the variables of each frame."""
    recorded: list[str] = []
    secrets: list[str] = []
    contexts: list[BaseException | None] = []

    async def calling(request: Request) -> Response:
        session = request.state.cm_session
        try:
            await request.state.cm.get(f"{world.root}/cameras")
        except UnavailableError as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                recorded.extend(repr(value) for value in frame.f_locals.values())
            tokens = session.record.tokens
            secrets.extend([tokens.access_token, tokens.refresh_token])
            contexts.append(error.__context__)
            raise
        return PlainTextResponse("")

    world = make_world(side="asgi", app=make_app([Route("/calling", calling)]), exempt=["/calling"])
    browser = await world.login()
    world.clock.tick(43_200)
    world.sim.fail_token(503)
    assert (await browser.get("/calling")).status_code == 503
    assert len(recorded) > 5
    assert contexts == [None]
    assert len(secrets) == 2
    assert not any(secret in text for secret in secrets for text in recorded)
