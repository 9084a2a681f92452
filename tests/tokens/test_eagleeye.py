"""Eagle Eye's API v3: where the bearer may go, accounts that move, its refusals, its logout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import EAGLEEYE, CMAuthConfig, Provider
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.sessions.record import Record, Tokens, dumps
from cm_auth_middleware.testing import Settings
from cm_auth_middleware.tokens.grant_records import decode_grant, encode_grant
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import ANNA, BOB, CAMERAS, Browser
from tests.helpers.eagleeye import ANNAS, AUTH, BOBS, HALF_A_DAY, bearers, exported
from tests.helpers.world import JSON, SECRET_KEY, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def provider() -> str:
    return "eagleeye"


@pytest.fixture
def make_live(make_world) -> Callable[..., World]:
    """Make worlds whose servers have the names of the live ones; no socket is opened."""

    def make(**options: Any) -> World:
        return make_world(base_url=AUTH, **options)

    return make


@pytest.fixture
def live(make_live) -> World:
    return make_live()


# -- a whole life ------------------------------------------------------------------------------


async def test_a_login_a_call_a_refresh_and_a_logout_work_there(live: World) -> None:
    browser = live.browser()
    start = urlsplit((await browser.get("/")).headers["location"])
    query = {key: values[0] for key, values in parse_qs(start.query).items()}
    assert f"{start.scheme}://{start.netloc}{start.path}" == f"{AUTH}/oauth2/authorize"
    assert (query["scope"], query["response_type"]) == ("vms.all", "code")
    assert query["code_challenge_method"] == "S256"
    assert (await browser.finish(start.geturl())).status_code == 200

    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    info = (await browser.get("/auth/session")).json()
    assert (info["user"]["id"], info["user"]["email"]) == ("00002713", ANNA)
    assert (await browser.get("/state")).json()["scope"] == "vms.all"
    assert len(await live.on_its_side(lambda: live.engine.sessions("00002713"))) == 1

    live.clock.tick(HALF_A_DAY)
    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    assert [call.status for call in live.sim.token_calls("refresh_token")] == [200]
    assert {call.param("scope") for call in live.sim.token_calls()} == {"vms.all"}
    await live.close()  # the user is read anew beside the request

    assert (await browser.post("/auth/logout")).status_code == 303
    assert live.sim.refresh_tokens == live.sim.access_tokens == 0
    assert (await browser.get("/")).status_code == 302
    assert bearers(live) == {ANNAS}


async def test_each_user_s_bearer_goes_to_the_host_of_their_account(live: World) -> None:
    anna, bob = await live.login(ANNA), await live.login(BOB)
    for _ in range(2):
        assert (await anna.get("/cameras")).json() == CAMERAS[ANNA]
        assert (await bob.get("/cameras")).json() == CAMERAS[BOB]
    of: dict[str, set[str]] = {urlsplit(host).netloc: set() for host in (ANNAS, BOBS)}
    for call in live.sim.calls("/api/v3.0/cameras"):
        of[call.headers["host"]].add(call.headers["authorization"])
    assert [len(tokens) for tokens in of.values()] == [1, 1]
    assert not set.intersection(*of.values())


async def test_on_loopback_the_api_is_on_loopback_too(make_world) -> None:
    world = make_world()
    browser = await world.login()
    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    assert bearers(world) == {"http://localhost:9400"}  # the server itself is at 127.0.0.1


async def test_another_process_finds_the_host_with_the_session(make_live) -> None:
    one = make_live()
    two = make_live(beside=one)
    browser = await one.login()
    other = two.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")
    assert (await other.get("/cameras")).json() == CAMERAS[ANNA]
    one.sim.move_account(ANNA)
    one.clock.tick(HALF_A_DAY)
    assert (await browser.get("/cameras")).json() == CAMERAS[ANNA]
    assert (await other.get("/cameras")).json() == CAMERAS[ANNA]
    assert len(one.sim.token_calls("refresh_token")) == 1
    assert one.sim.calls("/api/v3.0/cameras")[-1].headers["host"] == urlsplit(BOBS).netloc


# -- an account that moves ----------------------------------------------------------------------


async def test_a_client_that_is_held_follows_its_account_to_another_host(live: World) -> None:
    client = await exported(live, await live.login())
    old = str(client.base_url)
    assert old == f"{ANNAS}/api/v3.0/"
    assert (await live.on_its_side(lambda: client.get("/cameras"))).status_code == 200

    live.sim.move_account(ANNA)
    live.clock.tick(HALF_A_DAY)
    before = len(live.net.seen)
    # The request is built for the old host; the refresh that it waits for names the new one.
    answer = await live.on_its_side(lambda: client.get("/cameras"))
    assert (answer.status_code, str(answer.url)) == (200, f"{BOBS}/api/v3.0/cameras")
    assert str(client.base_url) == f"{BOBS}/api/v3.0/"
    sent = [request for request in live.net.seen[before:] if request.url.path.endswith("cameras")]
    assert [request.url.host for request in sent] == [urlsplit(BOBS).netloc]
    assert sent[0].headers["host"] == urlsplit(BOBS).netloc

    # An address that the application has kept, from a list that had pages, say.
    answer = await live.on_its_side(lambda: client.get(f"{old}cameras?pageSize=1"))
    assert (answer.status_code, str(answer.url)) == (200, f"{BOBS}/api/v3.0/cameras?pageSize=1")


async def test_a_401_of_the_old_host_leads_to_the_new_one(live: World) -> None:
    client = await exported(live, await live.login())
    live.sim.move_account(ANNA)
    live.sim.expire_access_tokens()
    answer = await live.on_its_side(lambda: client.post("/echo", content=b"once"))
    assert (answer.status_code, answer.json()["length"]) == (200, 4)
    calls = live.sim.calls("/api/v3.0/echo")
    assert [(call.headers["host"], call.status) for call in calls] == [
        (urlsplit(ANNAS).netloc, 401),
        (urlsplit(BOBS).netloc, 200),
    ]
    # The token that is new was never at the old host.
    assert calls[0].headers["authorization"] != calls[1].headers["authorization"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["expired", "refused"])
async def test_a_crowd_follows_its_account_by_one_refresh(live: World, how: str) -> None:
    browser = await live.login()
    live.sim.settings.token_latency = 0.03
    live.sim.move_account(ANNA)
    if how == "expired":
        live.clock.tick(HALF_A_DAY)
    else:
        live.sim.expire_access_tokens()
    statuses: list[int] = []

    async def ask() -> None:
        statuses.append((await browser.get("/cameras")).status_code)

    async with anyio.create_task_group() as group:
        for _ in range(12):
            group.start_soon(ask)
    assert statuses == [200] * 12
    assert [call.status for call in live.sim.token_calls("refresh_token")] == [200]
    calls = live.sim.calls("/api/v3.0/cameras")
    tokens: dict[str, set[str]] = {urlsplit(host).netloc: set() for host in (ANNAS, BOBS)}
    for call in calls:
        tokens[call.headers["host"]].add(call.headers["authorization"])
    assert tokens[urlsplit(BOBS).netloc].isdisjoint(tokens[urlsplit(ANNAS).netloc])
    assert len(tokens[urlsplit(BOBS).netloc]) == 1


async def test_a_client_s_base_url_can_still_be_set(live: World) -> None:
    client = await exported(live, await live.login())
    client.base_url = f"{ANNAS}/api/v3.0/cameras"
    assert str(client.base_url) == f"{ANNAS}/api/v3.0/cameras/"
    assert (await live.on_its_side(lambda: client.get("/000007d1"))).json()["name"] == "Front gate"
    live.sim.move_account(ANNA)
    live.clock.tick(HALF_A_DAY)
    answer = await live.on_its_side(lambda: client.get("/000007d1"))
    assert (answer.status_code, answer.url.host) == (200, urlsplit(BOBS).netloc)


@pytest.mark.parametrize("to", ["https://evil.example", BOBS, AUTH, f"{ANNAS}:8443"])
async def test_no_other_host_gets_the_bearer(live: World, to: str) -> None:
    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("stranger")(scope, receive, send)

    browser = await live.login()
    live.net.add(to, stranger)
    answer = await browser.get("/api/x", params={"url": f"{to}/x"})
    assert answer.json() == {"status": 200, "text": "stranger"}
    query = {"url": f"/redirect?to={to}/y", "follow": "1"}
    assert (await browser.get("/api/x", params=query)).json()["text"] == "stranger"
    assert [r.url.path for r in live.net.seen if str(r.url).startswith(f"{to}/")][-2:] == [
        "/x",
        "/y",
    ]
    assert bearers(live) == {ANNAS}


async def test_cookies_of_the_api_stay_with_its_host(live: World) -> None:
    client = await exported(live, await live.login())
    await live.on_its_side(lambda: client.get("/set-cookie"))
    await live.on_its_side(lambda: client.get("/echo"))
    answer = await live.on_its_side(lambda: client.get("/echo"))
    assert "upstream=" in answer.json()["headers"]["cookie"]
    with pytest.raises(httpx2.ConnectError):
        await live.on_its_side(lambda: client.get("https://other.eagleeyenetworks.com/"))
    assert "cookie" not in live.net.seen[-1].headers


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": "invalid_grant"}),
        (400, {"error": "invalid_grant"}),
        (401, {"error": "something_new"}),
        (401, "gone"),
        (400, {}),
        (401, None),
    ],
    ids=str,
)
async def test_a_refused_refresh_is_a_login_whatever_its_body_is(live: World, answer: Any) -> None:
    browser = await live.login()
    live.clock.tick(HALF_A_DAY)
    live.sim.fail_token(answer)
    assert (await browser.get("/cameras")).status_code == 302
    assert (await browser.get("/cameras", headers=JSON)).status_code == 401
    assert await live.on_its_side(lambda: live.engine.sessions("00002713")) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": "invalid_client"}),
        (400, {"error": "unauthorized_client"}),
        (403, {"error": "invalid_scope"}),
        (403, "no"),
        503,
        "html",
    ],
    ids=str,
)
async def test_a_refused_key_and_an_outage_end_no_session(live: World, answer: Any) -> None:
    browser = await live.login()
    live.clock.tick(HALF_A_DAY)
    live.sim.fail_token(answer)
    assert (await browser.get("/cameras", headers=JSON)).status_code == 503
    live.clock.tick(5)
    assert (await browser.get("/cameras")).status_code == 200


async def test_a_user_who_removes_the_application_has_to_log_in_again(live: World) -> None:
    browser = await live.login()
    client = await exported(live, browser)
    listed = await live.on_its_side(lambda: client.get("/users/self/trustedClients"))
    [trusted] = listed.json()["results"]
    gone = await live.on_its_side(
        lambda: client.delete(f"/users/self/trustedClients/{trusted['id']}")
    )
    assert gone.status_code == 204
    assert (await browser.get("/cameras")).status_code == 302


async def test_a_secret_with_reserved_characters_is_encoded(make_world) -> None:
    key = "an:id/1", "100%+secret:&=?"
    world = make_world(client_id=key[0], client_secret=key[1])
    world.sim.client_id, world.sim.client_secret = key
    browser = await world.login()
    await browser.post("/auth/logout")
    assert world.sim.refresh_tokens == 0


# -- the logout -----------------------------------------------------------------------------------


async def test_a_logout_works_after_the_access_token_has_died(live: World) -> None:
    browser = await live.login()
    [exchange] = live.sim.token_calls()
    live.sim.expire_access_tokens()
    assert (await browser.post("/auth/logout")).status_code == 303
    [call] = live.sim.calls("/oauth2/revoke")
    assert (call.status, call.headers["authorization"]) == (200, exchange.headers["authorization"])
    assert live.sim.refresh_tokens == 0
    assert live.sim.token_calls("refresh_token") == []
    assert call.query == {}


async def test_a_logout_revokes_the_newest_refresh_token(live: World) -> None:
    browser = await live.login()
    cookie = browser.named("cm_auth")[0]
    live.clock.tick(HALF_A_DAY)
    await browser.get("/cameras")
    [refresh] = live.sim.token_calls("refresh_token")
    assert (await live.browser(Cookie=f"cm_auth={cookie}").post("/auth/logout")).status_code == 303
    [call] = live.sim.calls("/oauth2/revoke")
    assert call.param("token") not in (None, refresh.param("refresh_token"))
    assert live.sim.refresh_tokens == 0


# -- keys that do not rotate -------------------------------------------------------------------


@pytest.fixture
def unrotated(make_live) -> World:
    world: World = make_live(background=False)
    world.sim.settings.rotate_refresh_tokens = False
    return world


async def test_a_token_that_is_given_again_is_asked_for_once_before_it_expires(
    unrotated: World,
) -> None:
    browser = await unrotated.login()
    for left in (50, 40, 20, 10, 5, 1):
        unrotated.clock.now = 1_800_000_000 + 43_198 - left
        assert (await browser.get("/cameras")).status_code == 200
    assert len(unrotated.sim.token_calls("refresh_token")) == 1
    unrotated.clock.tick(2)
    assert (await browser.get("/cameras")).status_code == 200
    assert len(unrotated.sim.token_calls("refresh_token")) == 2
    calls = unrotated.sim.calls("/api/v3.0/cameras")
    assert len({call.headers["authorization"] for call in calls}) == 2
    assert {call.status for call in calls} == {200}


async def test_other_processes_learn_that_the_token_was_given_again(
    unrotated: World, make_live
) -> None:
    browser = await unrotated.login()
    unrotated.clock.tick(43_198 - 30)
    other = make_live(beside=unrotated, background=False)
    for world in (unrotated, other):
        asker = world.browser(Cookie=f"cm_auth={browser.named('cm_auth')[0]}")
        assert (await asker.get("/cameras")).status_code == 200
    assert len(unrotated.sim.token_calls("refresh_token")) == 1


async def test_a_401_that_a_forced_refresh_does_not_help_is_passed_on_after_one_retry(
    unrotated: World,
) -> None:
    client = await exported(unrotated, await unrotated.login())
    unrotated.sim.fail_api(401, times=9, path="*/cameras")
    answer = await unrotated.on_its_side(lambda: client.get("/cameras"))
    assert answer.status_code == 401
    assert len(unrotated.sim.calls("/api/v3.0/cameras")) == 2
    assert len(unrotated.sim.token_calls("refresh_token")) == 1


async def test_a_token_that_was_given_again_and_dies_early_is_replaced(unrotated: World) -> None:
    browser = await unrotated.login()
    unrotated.clock.tick(43_198 - 30)
    await browser.get("/cameras")
    unrotated.sim.expire_access_tokens()  # the server's clock is ahead
    assert (await browser.get("/cameras")).status_code == 200
    assert len(unrotated.sim.token_calls("refresh_token")) == 2


# -- the proxy ---------------------------------------------------------------------------------

RULES = ["GET /cameras", "GET /cameras/*", "GET /media/liveImage.jpeg"]
PICTURE = "/cm/media/liveImage.jpeg?deviceId=000007d1&resolution=64x36"


@pytest.fixture
def proxied(make_live, side: str) -> World:
    rules: dict[str, Any] = {"allow": RULES, "cache": {"/media/liveImage.jpeg": 10**6}}
    if side == "asgi":
        app: Any = make_app([Mount("/cm", CMProxy(**rules))])
    else:
        app = DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(**rules)})
    return make_live(app=app)


async def test_the_proxy_relays_to_the_host_of_each_account_and_follows_it(proxied: World) -> None:
    anna, bob = await proxied.login(ANNA), await proxied.login(BOB)

    async def names(browser: Browser) -> list[str]:
        listed = await browser.get("/cm/cameras", headers={"Sec-Fetch-Site": "same-origin"})
        return [camera["name"] for camera in listed.json()["results"]]

    for _ in range(2):
        assert (await names(anna), await names(bob)) == (CAMERAS[ANNA], CAMERAS[BOB])
    proxied.sim.move_account(ANNA)
    proxied.clock.tick(HALF_A_DAY)
    for _ in range(2):
        assert (await names(anna), await names(bob)) == (CAMERAS[ANNA], CAMERAS[BOB])
    hosts = [call.headers["host"] for call in proxied.sim.calls("/api/v3.0/cameras")]
    annas, bobs = urlsplit(ANNAS).netloc, urlsplit(BOBS).netloc
    assert hosts == [annas, bobs, annas, bobs, *[bobs] * 4]
    assert {call.status for call in proxied.sim.calls("/api/v3.0/cameras")} == {200}


async def test_what_the_proxy_keeps_of_one_host_is_not_given_for_another(proxied: World) -> None:
    anna = await proxied.login(ANNA)
    for _ in range(2):
        assert (await anna.get(PICTURE)).content.startswith(b"\xff\xd8")
    proxied.sim.move_account(ANNA)
    proxied.sim.expire_access_tokens()
    await anna.get("/cm/cameras")  # which refreshes
    for _ in range(2):
        assert (await anna.get(PICTURE)).status_code == 200
    calls = proxied.sim.calls("/api/v3.0/media/liveImage.jpeg")
    assert [call.headers["host"] for call in calls] == [
        urlsplit(ANNAS).netloc,
        urlsplit(BOBS).netloc,
    ]


# -- options and records -----------------------------------------------------------------------


def test_the_environment_names_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM_AUTH_PROVIDER", "eagleeye")
    key = {"client_id": "id", "client_secret": "secret", "secret_key": SECRET_KEY}
    config = CMAuthConfig.from_env(**key)
    assert (config.provider, config.base_url, config.scope) == ("eagleeye", AUTH, "vms.all")
    assert CMAuthConfig.from_env(**key, provider="cameramanager").scope == "write"


def test_a_provider_of_one_s_own_needs_no_host_in_its_answers() -> None:
    own = replace(EAGLEEYE, api_host_field="", base_url="https://vms.example")
    assert isinstance(own, Provider)
    assert own.api_base({}, own.base_url) == ""
    assert own.user_url(own.base_url) == "https://vms.example/api/v3.0/users/self"


PLAIN = Tokens("access", "refresh", 2e9, 1.9e9, "write")
ROTATED = replace(PLAIN, former_refresh_token="before")


@pytest.mark.parametrize("tokens", [PLAIN, ROTATED], ids=["plain", "rotated"])
def test_cameramanager_s_records_are_the_bytes_that_the_version_before_wrote(
    tokens: Tokens,
) -> None:
    record = Record(tokens, '{"userId":7}', 1.8e9, 1.8e9, client_id="id", scope="write")
    *five, former, _ = astuple(tokens)
    head = [*five, 1.8e9, "", "id", "write", 0.0, *([former] if former else [])]
    assert record.encode() == f'{dumps(head)}\n{{"userId":7}}\n{{}}'.encode()
    for failure in ("", "u1f"):
        ending = [failure, former] if former else [failure] if failure else []
        assert encode_grant(tokens, failure) == dumps([*five, *ending]).encode()


@pytest.mark.parametrize("api_base", ["", ANNAS])
@pytest.mark.parametrize("tokens", [PLAIN, ROTATED], ids=["plain", "rotated"])
def test_records_with_and_without_a_host_are_read(tokens: Tokens, api_base: str) -> None:
    tokens = replace(tokens, api_base=api_base)
    record = Record(tokens, "{}", 1.8e9, 1.8e9)
    assert Record.decode(record.encode(), 1.8e9) == record
    for failure in ("", "u1f"):
        assert decode_grant(encode_grant(tokens, failure)) == (tokens, failure)
        assert decode_grant(encode_grant(None, failure)) == (None, failure)


@pytest.mark.parametrize("raw", ["{}", "7", '"abcdefgh"', "null", "", "[1,2]", "[1,2,3,4]", "x"])
def test_a_damaged_record_of_a_grant_is_none(raw: str) -> None:
    assert decode_grant(raw.encode()) == (None, "")


async def test_the_host_is_sealed_with_the_tokens(make_live) -> None:
    world = make_live()
    await world.login()
    stored = [value for values, _ in world.engine.store._shards for value in values.values()]
    assert stored
    assert not any(b"eagleeyenetworks" in value for value in stored)


async def test_settings_that_a_test_gives_change_those_of_eagle_eye(make_world) -> None:
    world = make_world(settings=Settings(access_token_lifetime=100))
    assert world.sim.settings.access_token_lifetime == 100
    assert (world.sim.settings.scope, world.sim.settings.pkce) == ("vms.all", True)
