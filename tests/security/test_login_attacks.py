"""Attacks on the login (RFC 6749 §10.12, RFC 9700 §4)."""

from __future__ import annotations

import base64
import hashlib
import tracemalloc
from typing import Any

import anyio
import httpx2
import pytest
from starlette.responses import PlainTextResponse

from tests.helpers.world import APP, HTML, JSON, World, both_providers

from .visits import NAME, cookies_of, is_logged_in, query_of, session_of, started, stored

pytestmark = pytest.mark.anyio


@both_providers
@pytest.mark.parametrize("what", ["none", "unknown", "truncated", "altered", "expired", "extended"])
async def test_a_callback_needs_the_very_state(world: World, what: str) -> None:
    """1: without the state that the browser was given, in ten minutes, no token is asked for."""
    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    base, _, state = url.partition("&state=")
    if what == "expired":
        world.clock.tick(601)
    forged = {
        "none": base,
        "unknown": f"{base}&state={'x' * 43}",
        "truncated": f"{base}&state={state[:-1]}",
        "altered": f"{base}&state={'B' if state[0] == 'A' else 'A'}{state[1:]}",
        "extended": f"{base}&state={state}A",
        "expired": url,
    }[what]
    response = await browser.get(forged)
    assert response.status_code == 400
    assert "Start again" in response.text
    assert browser.named(NAME) == []
    assert world.sim.requests == []


@both_providers
async def test_a_login_cookie_renamed_for_another_state_does_not_count(world: World) -> None:
    """1: the signed cookie of one attempt, under the name of another state, matches nothing."""
    browser, other = world.browser(), world.browser()
    first = await started(browser)
    second = await started(other)
    [mine] = [c for c in browser.cookies.jar if "_login_" in c.name]
    [theirs] = [c for c in other.cookies.jar if "_login_" in c.name]
    thief = world.browser(Cookie=f"{theirs.name}={mine.value}")
    for start in (first, second):
        url = browser.callback_url(start.headers["location"])
        assert (await thief.get(url)).status_code == 400
    assert world.sim.requests == []


@both_providers
async def test_a_callback_url_of_mine_logs_nobody_else_in(world: World) -> None:
    """2: login CSRF: refused in another browser, also in one with a login of its own under way."""
    mine, other = world.browser(), world.browser()
    url = mine.callback_url((await started(mine)).headers["location"])
    await started(other)
    for victim in (world.browser(), other):
        assert (await victim.get(url)).status_code == 400
        assert victim.named(NAME) == []
    assert world.sim.requests == []
    assert (await mine.get(url, follow_redirects=True)).status_code == 200


@both_providers
async def test_the_same_callback_again_makes_no_token_call(world: World) -> None:
    """3: back, reload: who is logged in lands on the page; others begin, or are told to, again."""
    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    cookies = cookies_of(browser)
    await browser.get(url)
    again = await browser.get(url)
    assert again.status_code == 302
    assert again.headers["location"] == "/cameras"
    both = world.browser(Cookie=f"{cookies}; {NAME}={session_of(browser)}")
    assert (await both.get(url)).headers["location"] == "/cameras"
    assert "Start again" in (await world.browser().get(url)).text
    mine = await world.browser(Cookie=cookies).get(url)  # R24: by itself, with a state of its own
    assert query_of(mine)["state"] not in url
    assert len(world.sim.token_calls()) == 1


@both_providers
async def test_a_double_click_over_two_processes_makes_one_token_call(make_world, tmp_path) -> None:
    """3: two servers on one store get the same callback at once, before either has answered."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    one, two = make_world(store=store), make_world(store=store)
    two.put_before_the_server(one.sim)
    browser = one.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    cookies = cookies_of(browser)
    one.sim.settings.token_latency = 0.2
    places = []

    async def click(world: World) -> None:
        answer = await world.browser(Cookie=cookies).get(url)
        places.append(answer.headers["location"].partition("?")[0])

    async with anyio.create_task_group() as group:
        group.start_soon(click, one)
        group.start_soon(click, two)
    assert sorted(places) == ["/cameras", one.authorize]  # R24: the second begins anew
    assert len(one.sim.token_calls()) == 1


@both_providers
@pytest.mark.parametrize(
    "query",
    [
        "state={}", "code=&state={}", "code=a&code=b&state={}", "code=a&state={}&state={}",
        "code=a&state={}&state=x", "code=" + "a" * 9_000 + "&state={}", "code=a%00b&state={}",
        "code=%ff%fe&state={}", "code=a%0d%0ab&state={}", "code=%C3%A9&state={}",
        "code[]=a&state={}", "code=a;state={}", "%00=1&code=a&state=%00{}",
        "&".join(f"p{n}=1" for n in range(5_000)) + "&code=a&state={}",
    ],
)  # fmt: skip
async def test_a_malformed_callback_is_refused(world: World, query: str) -> None:
    """4: whatever is wrong with code and state → 4xx, no token call, and bounded work."""
    browser = world.browser()
    state = query_of(await started(browser))["state"]
    await browser.get("/auth/callback")  # whatever is imported at the first one
    tracemalloc.start()
    try:
        response = await browser.get("/auth/callback?" + query.replace("{}", state))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert response.status_code == 400
    assert world.sim.requests == []
    assert browser.named(NAME) == []
    assert peak < 2_000_000


@both_providers
@pytest.mark.parametrize("headers", [HTML, JSON], ids=["person", "program"])
@pytest.mark.parametrize(
    "description",
    [
        "%3Cscript%3Ealert(1)%3C/script%3E",
        "evil%0d%0aSet-Cookie:%20x=1%0d%0a%0d%0a%3Chtml%3E",
        "evil" * 2_500,
        "%22onmouseover=%22evil",
    ],
)
async def test_an_error_of_the_login_server_is_never_reflected(
    world: World, headers: dict[str, str], description: str
) -> None:
    """5: error and error_description come out as a page of ours, without a word of theirs."""
    browser = world.browser(**headers)
    state = query_of(await browser.get("/auth/login"))["state"]
    for error in ("access_denied", description[:500]):
        response = await browser.get(
            f"/auth/callback?error={error}&error_description={description}&state={state}"
        )
        assert response.status_code in (400, 403)
        assert not {"x", "evil"} & set(response.cookies)
        for text in (response.text, str(response.headers.raw)):
            assert "evil" not in text
            assert "alert(1)" not in text
    assert world.sim.requests == []


@both_providers
@pytest.mark.parametrize("tabs", [2, 10])
async def test_tabs_that_log_in_at_once_each_arrive(world: World, tabs: int) -> None:
    """6: two and ten tabs arrive each at its own page, whichever comes back first."""
    browser = world.browser()
    starts = [await started(browser, f"/deep/{n}") for n in range(tabs)]
    for n in reversed(range(tabs)):
        page = await browser.finish(starts[n].headers["location"])
        assert page.url.path == f"/deep/{n}"
        assert page.status_code == 200
    assert [c.name for c in browser.cookies.jar if "_login_" in c.name] == []


@both_providers
async def test_abandoned_attempts_leave_few_and_small_cookies(world: World) -> None:
    """6: a browser that begins again and again holds a bounded number and size of cookies."""
    browser = world.browser()
    for n in range(40):
        await started(browser, f"/deep/{n}?{'x' * (n * 90)}")
        kept = [c for c in browser.cookies.jar if "_login_" in c.name]
        assert len(kept) <= 12
        assert sum(len(c.name) + len(c.value or "") for c in kept) < 7_000
    assert (await browser.login("/deep/last")).url.path == "/deep/last"


@both_providers
async def test_the_redirect_uri_of_the_token_call_is_the_first_one(make_world) -> None:
    """7: byte for byte, also when the callback comes through another host name."""
    world = make_world(allowed_hosts=["localhost", "app.example"])
    browser = world.browser()
    start = await started(browser)
    url = browser.callback_url(start.headers["location"])
    other = world.browser(Host="app.example", Cookie=cookies_of(browser))
    assert (await other.get(url)).status_code == 302
    [call] = world.sim.token_calls()
    assert call.form["redirect_uri"] == query_of(start)["redirect_uri"] == f"{APP}/auth/callback"


@both_providers
async def test_the_pkce_verifier_goes_to_the_token_endpoint_only(world: World) -> None:
    """8: PKCE S256; the verifier is in no cookie, no URL, no store and no answer of ours."""
    world.sim.settings.pkce = True
    browser = world.browser()
    start = await started(browser)
    query = query_of(start)
    assert query["code_challenge_method"] == "S256"
    seen = [str(start.headers.raw), cookies_of(browser), repr(stored(world))]
    done = await browser.get(browser.callback_url(start.headers["location"]))
    seen += [str(done.headers.raw), repr(stored(world)), done.text]
    [call] = world.sim.token_calls()
    verifier = call.form["code_verifier"]
    digest = hashlib.sha256(verifier.encode()).digest()
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == query["code_challenge"]
    assert call.query == {}
    for text in seen:
        for padded in (text, *(_decoded(part) for part in text.replace(";", " ").split())):
            assert verifier not in padded


def _decoded(text: str) -> str:
    _, _, value = text.rpartition("=")
    try:
        return base64.urlsafe_b64decode(value.partition(".")[0] + "==").decode("latin-1")
    except ValueError:
        return ""


@both_providers
@pytest.mark.parametrize("what", [500, "lost", "drop", "html", {"error": "invalid_grant"}])
async def test_a_code_is_never_sent_twice(world: World, what) -> None:
    """9: the token endpoint fails after the code was sent → a page; a retry is a new login."""
    browser = world.browser()
    start = await started(browser)
    cookies = cookies_of(browser)
    url = browser.callback_url(start.headers["location"])
    world.sim.fail_token(what)
    response = await browser.get(url)
    assert response.status_code in (400, 502)
    assert "Try again" in response.text
    assert "Start again" in (await browser.get(url)).text
    unanswered = await world.browser(Cookie=cookies).get(url)
    assert query_of(unanswered)["state"] != query_of(start)["state"]
    assert len(world.sim.token_calls()) == 1
    retry = await browser.get("/auth/login?next=/cameras")
    assert query_of(retry)["state"] != query_of(start)["state"]
    assert (await browser.finish(retry.headers["location"])).status_code == 200


@pytest.fixture
def logouts() -> list[str]:
    """Who was logged out, by the hook."""
    return []


@pytest.fixture
def shared(make_world, logouts: list[str]) -> World:
    """A world whose logouts are noted: a computer that several people use."""
    return make_world(on_logout=lambda session: logouts.append(session.user["email"]))


ANNA, BOB = "anna@example.com", "bob@example.com"


def revoked(world: World) -> list[str | None]:
    """The tokens that the server was asked to end."""
    if world.api == "/api/v3.0":
        return [call.param("token") for call in world.sim.calls("/oauth2/revoke")]
    return [
        request.headers["authorization"].split()[1]
        for request in world.sim.requests
        if request.method == "DELETE"
    ]


def tokens_of(world: World) -> list[str]:
    """The living tokens of the kind by which a grant is ended."""
    tokens = world.sim._tokens
    return list(tokens.refresh if world.api == "/api/v3.0" else tokens.access)


@both_providers
async def test_logging_in_as_another_user_logs_the_first_one_out(
    shared: World, logouts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """65: tokens revoked, on_logout called, the logout logged, and the cookie dead."""
    caplog.set_level("INFO", logger="cm_auth_middleware")
    browser = await shared.login(email=ANNA)
    first = f"{NAME}={session_of(browser)}"
    [annas] = tokens_of(shared)
    page = await browser.finish((await browser.get("/auth/login")).headers["location"], BOB)
    assert page.text.endswith(BOB)
    assert revoked(shared) == [annas]
    assert annas not in tokens_of(shared)
    assert logouts == [ANNA]
    told = [(r.event, r.session) for r in caplog.records if r.name == "cm_auth_middleware"]  # type: ignore[attr-defined]
    assert [event for event, _ in told] == ["login", "logout", "login"]
    assert told[0][1] == told[1][1] != told[2][1]
    assert not await is_logged_in(shared, first)
    assert (await browser.get("/cameras")).json() == ["Shop floor", "Back door"]
    assert logouts == [ANNA]


@both_providers
async def test_logging_in_as_oneself_again_only_replaces_the_session(
    shared: World, logouts: list[str]
) -> None:
    """65: CameraManager hands the same living tokens out again; they are not to be revoked."""
    browser = await shared.login(email=ANNA)
    first = f"{NAME}={session_of(browser)}"
    await browser.finish((await browser.get("/auth/login")).headers["location"], ANNA)
    assert (revoked(shared), logouts) == ([], [])
    assert not await is_logged_in(shared, first)
    assert (await browser.get("/cameras")).status_code == 200


@both_providers
async def test_logging_in_elsewhere_touches_no_other_browser(
    shared: World, logouts: list[str]
) -> None:
    """65: only the browser whose session is replaced is logged out, and only if it is."""
    annas, bobs = await shared.login(email=ANNA), await shared.login(email=BOB)
    refused = await bobs.get("/auth/login")
    url = bobs.callback_url(refused.headers["location"], ANNA)
    assert (await shared.browser().get(url)).status_code == 400  # not the browser that began
    assert (revoked(shared), logouts) == ([], [])
    for browser, email in ((annas, ANNA), (bobs, BOB)):
        assert (await browser.get("/")).text.endswith(email)
        assert (await browser.get("/cameras")).status_code == 200


@both_providers
async def test_a_first_user_whose_session_is_over_is_not_logged_out_again(
    shared: World, logouts: list[str]
) -> None:
    """65: nor is one whose cookie is forged, or of a session that nobody has."""
    browser = await shared.login(email=ANNA)
    await browser.post("/auth/logout")
    assert (len(revoked(shared)), logouts) == (1, [ANNA])
    await browser.finish((await browser.get("/auth/login")).headers["location"], BOB)
    assert (len(revoked(shared)), logouts) == (1, [ANNA])


@both_providers
@pytest.mark.parametrize("trouble", ["down", "500", "hook"])
async def test_the_next_user_comes_in_though_the_first_cannot_be_logged_out_there(
    make_world, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """65: CameraManager does not answer the revocation, or on_logout raises: logged, no more."""

    def broken(session: Any) -> None:
        raise RuntimeError("of the application")

    world = make_world(on_logout=broken if trouble == "hook" else None)
    browser = await world.login(email=ANNA)
    first = f"{NAME}={session_of(browser)}"

    async def ends_no_grant(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] != "DELETE" and scope["path"] != "/oauth2/revoke":
            await world.sim(scope, receive, send)
        elif trouble == "down":
            raise httpx2.ConnectError("nobody listens")
        else:
            await PlainTextResponse("", 500)(scope, receive, send)

    if trouble != "hook":
        world.put_before_the_server(ends_no_grant)
    page = await browser.finish((await browser.get("/auth/login")).headers["location"], BOB)
    assert page.text.endswith(BOB)
    assert ("revoke_failed" in caplog.text) is (trouble != "hook")
    assert not await is_logged_in(world, first)
    assert (await browser.get("/cameras")).json() == ["Shop floor", "Back door"]


@both_providers
async def test_who_may_not_come_in_leaves_the_first_user_there(make_world) -> None:
    """65: allow says no to the second: nothing was replaced, so nobody is logged out."""
    world = make_world(allow=lambda user: user["email"] != BOB)
    browser = await world.login(email=ANNA)
    [annas] = tokens_of(world)
    page = await browser.finish((await browser.get("/auth/login")).headers["location"], BOB)
    assert page.status_code == 403
    assert annas not in revoked(world)
    assert (await browser.get("/")).text.endswith(ANNA)


@both_providers
async def test_a_session_id_from_before_the_login_is_never_kept(world: World) -> None:
    """10: fixation: an attacker's cookie, valid or not, is not the one that a login makes live."""
    attacker = await world.login(email="bob@example.com")
    planted = session_of(attacker)
    await attacker.post("/auth/logout")
    victim = world.browser()
    victim.cookies.set(NAME, planted, "localhost.local")
    assert (await victim.login()).status_code == 200
    assert planted not in victim.named(NAME)
    assert not await is_logged_in(world, f"{NAME}={planted}")


@both_providers
async def test_logging_in_while_logged_in_ends_the_old_session(world: World) -> None:
    """10: the new login replaces the session, and the old cookie opens nothing."""
    browser = await world.login()
    old = session_of(browser)
    start = await browser.get("/auth/login")
    await browser.finish(start.headers["location"], "bob@example.com")
    assert session_of(browser) != old
    assert not await is_logged_in(world, f"{NAME}={old}")
    assert (await browser.get("/")).text.endswith("bob@example.com")


@both_providers
async def test_who_is_not_allowed_has_no_session_and_no_tokens(make_world) -> None:
    """11: allow says no → 403 page, no session, and the tokens just obtained are dead."""
    world = make_world(allow=lambda user: user["email"] != "anna@example.com")
    browser = world.browser()
    response = await browser.login()
    assert response.status_code == 403
    assert "<h1>" in response.text
    assert browser.named(NAME) == []
    assert stored(world) == {}
    assert world.logouts() in ([204], [200])
    assert world.sim._tokens.access == {}
    assert world.sim._tokens.refresh == {}


@both_providers
async def test_an_allow_that_fails_lets_nobody_in(make_world) -> None:
    """11: an exception in allow is no yes."""

    def broken(user) -> bool:
        raise LookupError("no such table")

    world = make_world(allow=broken)
    browser = world.browser()
    assert (await browser.login()).status_code == 403
    assert browser.named(NAME) == []
    assert stored(world) == {}


@both_providers
@pytest.mark.parametrize(
    ("mode", "dest"), [("no-cors", "image"), ("navigate", "iframe"), ("cors", "empty")]
)
async def test_another_site_starts_no_login_but_by_a_link(
    world: World, mode: str, dest: str
) -> None:
    """12: no state on the server, no cookie, the old session lives, and the target is ours."""
    browser = await world.login()
    before, cookies = stored(world), cookies_of(browser)
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    response = await browser.get("/auth/login?next=http://evil/", headers=headers)
    assert response.status_code == 401
    assert "evil" not in f"{response.text}{response.headers}"
    assert (stored(world), cookies_of(browser)) == (before, cookies)
    assert (await browser.get("/")).status_code == 200


@both_providers
async def test_a_login_that_another_site_starts_is_harmless(world: World) -> None:
    """12: no state on the server, no session, the old session lives, and the target is ours."""
    browser = await world.login()
    before = stored(world)
    headers = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Referer": "http://evil/",
    }
    response = await browser.get("/auth/login?next=http://evil/", headers=headers)
    assert response.status_code == 302
    assert response.headers["location"].startswith(f"{world.authorize}?")
    assert stored(world) == before
    assert (await browser.get("/")).status_code == 200
    done = await browser.get(browser.callback_url(response.headers["location"]))
    assert done.headers["location"] == "/"
