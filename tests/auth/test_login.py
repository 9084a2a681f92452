"""Logging in: who is sent where, and what comes back."""

from __future__ import annotations

import random
import string
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from tests.helpers.world import APP, CM, HTML, JSON, SECRET_KEY, World, both_providers

pytestmark = pytest.mark.anyio


def location(response) -> dict[str, str]:
    parts = urlsplit(response.headers["location"])
    return {k: v[0] for k, v in parse_qs(parts.query, strict_parsing=True).items()}


@both_providers
async def test_a_browser_is_sent_to_authorize_and_back_to_the_very_url(world: World) -> None:
    browser = world.browser()
    response = await browser.get("/deep/a%20b/c?q=1&x=%2F&y=")
    assert response.status_code == 302
    assert response.headers["location"].startswith(f"{world.authorize}?")
    query = location(response)
    assert query["response_type"] == "code"
    assert query["client_id"] == world.sim.client_id
    assert query["scope"] == world.scope
    assert query["redirect_uri"] == f"{APP}/auth/callback"
    assert query["code_challenge_method"] == "S256"
    page = await browser.finish(response.headers["location"])
    assert page.status_code == 200
    assert str(page.url) == f"{APP}/deep/a%20b/c?q=1&x=%2F&y="
    assert page.text.endswith("anna@example.com")


@both_providers
async def test_one_login_makes_one_token_call_and_reads_the_user_once(world: World) -> None:
    await world.login()
    calls = [(call.method, call.path) for call in world.sim.requests]
    assert calls == [("POST", world.sim._platform.token_path), ("GET", world.user_path)]
    token = world.sim.requests[0]
    assert token.headers["authorization"].startswith("Basic ")
    assert token.headers["accept"] == "application/json"
    assert token.form["redirect_uri"] == f"{APP}/auth/callback"
    assert len(token.form["code_verifier"]) == 43
    assert token.query == {}


@pytest.mark.parametrize(
    ("provider", "scope"),
    [("cameramanager", "read"), pytest.param("eagleeye", "vms.all", marks=pytest.mark.slow)],
)
async def test_every_grant_says_the_scope_which_the_server_may_require(make_world, scope) -> None:
    world = make_world(scope=scope)
    assert world.sim.settings.scope_required
    browser = await world.login()
    world.clock.tick(43300)
    assert (await browser.get("/cameras")).status_code == 200
    sent = [(call.form["grant_type"], call.form["scope"]) for call in world.sim.token_calls()]
    assert sent == [("authorization_code", scope), ("refresh_token", scope)]


@both_providers
async def test_a_server_that_knows_pkce_accepts_the_verifier(make_world) -> None:
    world = make_world()
    world.sim.settings.pkce = True
    await world.login()


@both_providers
async def test_a_program_gets_a_problem_with_the_login_url(world: World) -> None:
    client = world.browser(Accept="application/json")
    response = await client.get("/cameras")
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["login_url"] == "/auth/login"
    assert "set-cookie" not in response.headers


@both_providers
@pytest.mark.parametrize(
    ("referer", "login_url"),
    [
        (f"{APP}/deep/5?a=1&b=%2F", "/auth/login?next=/deep/5%3Fa%3D1%26b%3D%252F"),
        ("http://LOCALHOST:8000/deep/5", "/auth/login?next=/deep/5"),
        (f"{APP}/", "/auth/login?next=/"),
        ("http://localhost/deep/5", "/auth/login"),
        ("https://other.example/deep/5", "/auth/login"),
        ("http://localhost:8000@evil.example/x", "/auth/login"),
        (f"{APP}//evil.example/x", "/auth/login"),
        ("about:client", "/auth/login"),
        ("http://[", "/auth/login"),
    ],
)
async def test_the_login_url_leads_back_to_the_page_that_asked(
    world: World, referer: str, login_url: str
) -> None:
    """R20: a single-page app that follows it is back where it was, and nowhere else."""
    client = world.browser(Accept="*/*", Referer=referer)
    for method in ("GET", "POST"):
        assert (await client.request(method, "/cameras")).json()["login_url"] == login_url


@both_providers
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"])
async def test_other_methods_get_401_even_from_a_browser(world: World, method: str) -> None:
    response = await world.browser().request(method, "/")
    assert response.status_code == 401


@both_providers
async def test_head_of_a_browser_is_a_navigation(world: World) -> None:
    response = await world.browser().head("/")
    assert response.status_code == 302
    assert response.content == b""


@both_providers
async def test_fetch_metadata_decides_before_the_accept_header(world: World) -> None:
    browser = world.browser()
    assert (await browser.get("/", headers={"Sec-Fetch-Mode": "cors"})).status_code == 401
    navigating = {"Sec-Fetch-Mode": "navigate", "Accept": "*/*"}
    assert (await browser.get("/", headers=navigating)).status_code == 302


@both_providers
async def test_htmx_is_told_where_to_log_in(world: World) -> None:
    response = await world.browser().get("/", headers={"HX-Request": "true"})
    assert response.status_code == 401
    assert response.headers["hx-redirect"] == "/auth/login"


@both_providers
async def test_exempt_paths_need_no_login_but_see_a_session(make_world) -> None:
    world = make_world(exempt=["/health", "/static/*"])
    browser = world.browser()
    assert (await browser.get("/health")).text == "nobody"
    assert (await browser.get("/static/a/b.css")).text == "nobody"
    for path in ("/health/", "/healthx", "/HEALTH", "/static", "/static/../", "/static/%2e%2e/x"):
        assert (await browser.get(path)).status_code == 302, path
    await browser.login()
    assert (await browser.get("/health")).text == "anna@example.com"


@both_providers
@pytest.mark.parametrize(
    "target",
    [
        "//evil", "///evil", "/\\evil", "\\\\evil", "/%5cevil", "/%09/evil", "/\t/evil",
        "https:evil", "https:/evil", "https://evil/", "http://localhost:8000@evil/",
        "javascript:alert(1)",
        "data:text/html,x", "/\x00", "/／evil", "/..//evil", "/.//evil", "/" + "a" * 9000, "evil",
        "/%2f/evil", "/%252f%252fevil", "/auth/login", "/auth/logout",
    ],
)  # fmt: skip
async def test_a_target_elsewhere_becomes_the_root(world: World, target: str) -> None:
    browser = world.browser()
    response = await browser.get("/auth/login", params={"next": target})
    page = await browser.get(browser.callback_url(response.headers["location"]))
    assert page.headers["location"] == "/"


@pytest.mark.parametrize(
    "path",
    [
        "/deep/a//b", "/deep/https://cams.example/x?y=https://z", "/deep/a%5Cb", "/deep/a%2Fb%2Fc",
        "/deep/x?q=a\\b", "/deep/x?q={a|b}^`'", "/deep/x?next=/y&next=//z", "/deep/%25%2525",
        "/deep/x?a+b=%20&&=&c", "/deep/x?", "/deep/;v=1,2/@:!$&'()*+", "/auth/profile?a=1",
        "/auth/login/help", "/deep/caf%C3%A9%EF%BC%8F",
    ],
)  # fmt: skip
@both_providers
async def test_what_a_browser_asked_for_comes_back_byte_for_byte(world: World, path: str) -> None:
    """R17, R53 and their kind; also below the prefix, where the application may have routes."""
    browser = world.browser()
    asked = httpx2.URL(APP).copy_with(raw_path=path.encode())
    start = await browser.get(asked)
    assert start.status_code == 302
    done = await browser.get(browser.callback_url(start.headers["location"]))
    if world.side == "wsgi":  # PEP 3333 hands paths on decoded, and this server nothing else
        path = path.replace("%2F", "/")
    # WSGI and ASGI do not tell "/x?" from "/x".
    assert done.headers["location"] == path.removesuffix("?")


LETTERS = "".join(random.Random(17).choices(string.ascii_letters + string.digits + "-_", k=4_000))


@both_providers
@pytest.mark.parametrize(
    ("path", "back"),
    [
        (f"/ui/x?q={LETTERS[:3_000]}", f"/ui/x?q={LETTERS[:3_000]}"),
        (f"/ui/x?q={'filter=1&' * 400}", f"/ui/x?q={'filter=1&' * 400}"),
        (f"/ui/x?q={LETTERS[:3_500]}", "/ui/x"),
        (f"/ui/x?q={LETTERS}", "/ui/x"),
        (f"/ui/{LETTERS}?q=1", "/ui/"),
        (f"/ui/x?q={'a' * 5_000}", "/ui/"),
    ],
    ids=[
        "random",
        "a report",
        "a little too long",
        "a query too long",
        "a path too long",
        "longer than any target",
    ],
)
async def test_a_long_deep_link_comes_back_or_stays_in_its_application(
    world: World, path: str, back: str
) -> None:
    """R17: below a mount, "/" is another application."""
    if world.side == "asgi":
        world.net.add(APP, Starlette(routes=[Mount("/ui", app=world.app)]))
    else:
        world.net.add_wsgi(APP, DispatcherMiddleware(world.app, {"/ui": world.app}))
    browser = world.browser()
    start = await browser.get(path)
    assert start.status_code == 302
    assert sum(len(k) + len(v) + 4 for k, v in start.headers.multi_items()) < 4_096
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == back


@both_providers
@pytest.mark.parametrize(
    ("query", "target"),
    [
        ("next=/deep/x?a=1&b=2", "/deep/x?a=1&b=2"),
        ("lang=nl&next=/deep/x?a=1&b=%2F", "/deep/x?a=1&b=%2F"),
        ("next=/deep/x%3Fa%3D1%26b%3D2&lang=nl", "/deep/x?a=1&b=2"),
        ("next=/deep/x&a=1", "/deep/x"),
        ("next=/deep/old?next=%2Fdeep%2Fnew%3Fa%3D1", "/deep/new?a=1"),
        ("nextpage=/deep/x?next", "/"),
        ("next=//evil.example/x?a=1&b=2", "/"),
        ("next=/x?next=//evil.example", "/"),
        ("next=/deep/x?a=1%0d%0aSet-Cookie:x", "/deep/x?a=1%0d%0aSet-Cookie:x"),
        ("next=", "/"),
        ("next=/deep/a%20report", "/deep/a%20report"),  # of a path that was decoded before
        ("next=/deep/caf%C3%A9%3Fq%3D%C3%BC+1%23%C3%A9", "/deep/caf%C3%A9?q=%C3%BC%201#%C3%A9"),
        ("next=/deep/a%2520report", "/deep/a%20report"),
        ("next=/%EF%BC%8Fevil.example", "/"),  # full-width slashes
        ("next=/%C2%A0/evil.example", "/%C2%A0/evil.example"),
        ("next=%C2%A0//evil.example", "/"),
        ("next=%20//evil.example", "/"),
        ("next=/%C2%85/evil.example", "/"),
    ],
)
async def test_a_target_that_was_written_by_hand_is_kept_whole(world, query: str, target) -> None:
    """R53: in a login's link and in a logout's."""
    browser = world.browser()
    start = await browser.get(f"/auth/login?{query}")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == target
    out = await browser.post(f"/auth/logout?{query}")
    names_none = query in ("next=", "nextpage=/deep/x?next")
    assert out.headers["location"] == ("/auth/signed-out" if names_none else target)


@both_providers
async def test_htmx_comes_back_to_the_fragment_too(world: World) -> None:
    """R32: htmx tells the whole address of its page."""
    htmx = {"HX-Request": "true", "HX-Current-URL": f"{APP}/deep/page?a=1#cam=3"}
    browser = world.browser()
    refused = await browser.get("/cameras", headers=htmx)
    start = await browser.get(refused.headers["hx-redirect"])
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == "/deep/page?a=1#cam=3"


@both_providers
async def test_the_login_route_goes_to_its_target(world: World) -> None:
    browser = world.browser()
    response = await browser.get("/auth/login?next=/cameras%3Fa%3D1")
    page = await browser.finish(response.headers["location"])
    assert str(page.url) == f"{APP}/cameras?a=1"


@both_providers
async def test_ten_tabs_at_once_each_arrive_at_their_own_page(world: World) -> None:
    browser = world.browser()
    tabs = [await browser.get(f"/deep/{n}") for n in range(10)]
    for n, tab in enumerate(tabs):
        page = await browser.finish(tab.headers["location"])
        assert page.url.path == f"/deep/{n}"


@both_providers
async def test_abandoned_logins_do_not_pile_up(world: World) -> None:
    browser = world.browser()
    for n in range(60):
        await browser.get(f"/deep/{n}?{'x' * 100}")
        cookies = [c for c in browser.cookies.jar if "_login_" in c.name]
        assert len(cookies) <= 12
        assert sum(len(c.value or "") for c in cookies) < 6500
    page = await browser.login("/deep/last")
    assert page.url.path == "/deep/last"


@both_providers
async def test_a_login_leaves_the_cookies_of_an_application_beside_it_alone(make_world) -> None:
    """Cookies do not know ports: two applications on localhost see those of each other."""
    other_key = SECRET_KEY[::-1]
    for options in ({}, {"cookie_name": "cm_auth_login_portal"}):
        one, two = make_world(), make_world(secret_key=other_key, **options)
        first, second = one.browser(), two.browser()
        begun = await first.get("/deep/one")
        second.cookies = first.cookies
        await second.login("/deep/two")
        session = second.named(options.get("cookie_name", "cm_auth"))
        first.cookies = second.cookies
        await first.get("/auth/login")
        assert first.named(options.get("cookie_name", "cm_auth")) == session
        assert (await first.finish(begun.headers["location"])).url.path == "/deep/one"


@both_providers
async def test_cookies_that_look_like_logins_do_not_pile_up_either(world: World) -> None:
    browser = world.browser()
    for n in range(40):
        browser.cookies.set(f"cm_auth_login_{n:016x}", "x" * 100, "localhost.local")
    start = await browser.get("/deep/one")
    kept = [c for c in browser.cookies.jar if "_login_" in c.name]
    assert len(kept) <= 29  # twelve are cleared at a time
    for _ in range(3):
        await browser.get("/auth/login")
    assert len([c for c in browser.cookies.jar if "_login_" in c.name]) <= 12
    assert (await browser.finish(start.headers["location"])).url.path == "/deep/one"


@both_providers
@pytest.mark.parametrize("skew", [-240.0, 240.0])
async def test_the_clocks_of_two_servers_may_differ(make_world, skew: float) -> None:
    one = make_world(skew=skew)
    two = make_world(beside=one)
    browser = one.browser()
    start = await browser.get("/deep/one")
    one.net.add(APP, two.app)
    assert (await browser.finish(start.headers["location"])).url.path == "/deep/one"


@both_providers
async def test_logging_in_again_ends_the_old_session(world: World) -> None:
    browser = await world.login()
    old = browser.named("cm_auth")[0]
    response = await browser.get("/auth/login")
    await browser.finish(response.headers["location"])
    assert browser.named("cm_auth")[0] != old
    thief = world.browser(Cookie=f"cm_auth={old}")
    assert (await thief.get("/")).status_code == 302


@both_providers
@pytest.mark.parametrize("query", ["", "code=abcdef", "code=abcdef&state=", "code=abcdef&state=x"])
async def test_a_callback_without_its_state_makes_no_token_call(world: World, query: str) -> None:
    response = await world.browser().get(f"/auth/callback?{query}")
    assert response.status_code == 400
    assert "Start again" in response.text
    assert world.sim.requests == []


@both_providers
async def test_a_callback_works_only_in_the_browser_that_began(world: World) -> None:
    mine, other = world.browser(), world.browser()
    start = await mine.get("/cameras")
    url = mine.callback_url(start.headers["location"])
    assert (await other.get(url)).status_code == 400
    assert world.sim.requests == []
    assert (await mine.get(url, follow_redirects=True)).status_code == 200


@both_providers
async def test_a_login_may_take_ten_minutes_and_no_longer(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    url = browser.callback_url(start.headers["location"])
    world.clock.tick(601)
    assert (await browser.get(url)).status_code == 400
    assert world.sim.requests == []


@both_providers
async def test_the_same_callback_twice_makes_one_token_call(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/cameras")
    cookies = [(c.name, c.value) for c in browser.cookies.jar]
    url = browser.callback_url(start.headers["location"])
    await browser.get(url)
    for name, value in cookies:  # a browser that sent both at once
        browser.cookies.set(name, value, "localhost.local")
    again = await browser.get(url)
    assert again.status_code == 302
    assert again.headers["location"] == "/cameras"
    assert "Start again" in (await world.browser().get(url)).text
    assert len(world.sim.token_calls()) == 1


@both_providers
@pytest.mark.parametrize(
    "query",
    ["code=", "code=a&code=b", "code=" + "a" * 9000, "code=a%00b", "code=%ff%fe", "x=1"],
)
async def test_a_malformed_code_makes_no_token_call(world: World, query: str) -> None:
    browser = world.browser()
    start = await browser.get("/")
    state = location(start)["state"]
    response = await browser.get(f"/auth/callback?{query}&state={state}")
    assert response.status_code == 400
    assert world.sim.requests == []


@both_providers
@pytest.mark.parametrize("headers", [HTML, JSON])
async def test_a_refused_login_is_a_page_of_ours(world: World, headers: dict[str, str]) -> None:
    browser = world.browser(**headers)
    state = location(await browser.get("/auth/login"))["state"]
    evil = "%3Cscript%3Ealert(1)%3C/script%3E%0d%0aSet-Cookie:x=1"
    response = await browser.get(
        f"/auth/callback?error=access_denied&error_description={evil}&state={state}"
    )
    assert response.status_code == 403
    assert "script" not in response.text
    assert "alert" not in str(response.headers)
    assert "/auth/login" in response.text
    assert world.sim.requests == []


@both_providers
@pytest.mark.parametrize(
    ("error", "status", "title", "logged"),
    [
        ("access_denied", 403, "cancelled", "login_cancelled error=access_denied"),
        ("login_required", 403, "cancelled", "login_cancelled error=login_required"),
        ("consent_required", 403, "cancelled", "login_cancelled error=consent_required"),
        ("s3cret", 403, "cancelled", "login_cancelled error=another"),
        ("temporarily_unavailable", 502, "did not work", "answered temporarily_unavailable"),
        ("server_error", 502, "did not work", "answered server_error"),
        ("invalid_scope", 502, "not set up correctly", "answered invalid_scope"),
        (
            "unauthorized_client",
            502,
            "not set up correctly",
            "api_key_refused error=unauthorized_client",
        ),
    ],
)
async def test_only_who_cancelled_is_told_so(
    world: World, caplog, error: str, status: int, title: str, logged: str
) -> None:
    caplog.set_level("INFO", "cm_auth_middleware")
    browser = world.browser()
    state = location(await browser.get("/cameras?a=1"))["state"]
    response = await browser.get(f"/auth/callback?error={error}&state={state}")
    assert response.status_code == status
    assert title in response.text
    assert "/auth/login?next=/cameras%3Fa%3D1" in response.text
    assert logged in caplog.text
    assert "s3cret" not in caplog.text + response.text
    assert world.sim.requests == []


@pytest.mark.slow
@both_providers
@pytest.mark.parametrize(
    "what",
    [500, 503, 429, "html", "xml", "truncated", "drop", {"error": "invalid_client"}, {"a": 1},
     (200, {"access_token": ""}), (200, {"access_token": "a", "token_type": "mac"}),
     (400, {"error": "invalid_grant", "error_description": "Invalid code: SECRET"})],
)  # fmt: skip
async def test_a_failing_token_endpoint_is_a_page_with_a_way_out(world: World, what) -> None:
    browser = world.browser()
    start = await browser.get("/cameras")
    world.sim.fail_token(what)
    url = browser.callback_url(start.headers["location"])
    response = await browser.get(url)
    assert response.status_code in (400, 502)
    assert "Try again" in response.text
    assert "SECRET" not in response.text
    assert browser.named("cm_auth") == []
    again = await browser.get(url)
    assert again.status_code == 400
    assert len(world.sim.token_calls()) == 1
    page = await browser.login("/cameras")
    assert page.status_code == 200


@both_providers
async def test_a_dead_camera_manager_is_a_page_and_not_a_crash(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    url = browser.callback_url(start.headers["location"])
    del world.net.apps[CM]
    response = await browser.get(url)
    assert response.status_code == 502
    assert "Try again" in response.text


@both_providers
async def test_allow_decides_and_a_refused_user_leaves_no_tokens(make_world) -> None:
    world = make_world(allow=lambda user: user["email"] == "bob@example.com")
    browser = world.browser()
    response = await browser.login(email="anna@example.com")
    assert response.status_code == 403
    assert browser.named("cm_auth") == []
    assert len(world.logouts()) == 1
    assert (await browser.login(email="bob@example.com")).status_code == 200


@both_providers
async def test_allow_may_be_async(make_world) -> None:
    async def nobody(user) -> bool:
        return False

    assert (await make_world(allow=nobody).browser().login()).status_code == 403


@both_providers
async def test_a_host_that_is_not_configured_is_refused(world: World) -> None:
    browser = world.browser()
    response = await browser.get("/", headers={"Host": "evil.example"})
    assert response.status_code == 400
    assert "allowed_hosts" in response.text


@both_providers
async def test_redirect_uri_is_taken_as_given(make_world) -> None:
    world = make_world(redirect_uri=f"{APP}/auth/callback", allowed_hosts=[])
    response = await world.browser().get("/", headers={"Host": "evil.example"})
    assert location(response)["redirect_uri"] == f"{APP}/auth/callback"


@both_providers
async def test_a_session_that_ends_soon_after_its_login_is_no_loop(world: World) -> None:
    browser = await world.login()
    world.sim.revoke_user("anna@example.com")
    assert (await browser.get("/cameras")).status_code == 302


@both_providers
async def test_a_login_that_does_not_stick_stops_after_one_round(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    await browser.get(browser.callback_url(start.headers["location"]))
    browser.cookies.delete("cm_auth")
    response = await browser.get("/")
    assert response.status_code == 400
    assert "Cookies" in response.text
    assert (await browser.get("/")).status_code == 302


@both_providers
async def test_the_on_login_hook_gets_the_session_and_may_write_data(make_world) -> None:
    seen = []

    async def hook(session) -> None:
        seen.append(session.user["email"])
        session.data["greeted"] = True

    world = make_world(on_login=hook)
    browser = await world.login()
    assert seen == ["anna@example.com"]
    assert (await browser.get("/data")).json() == {"greeted": True}


@both_providers
async def test_a_callback_that_goes_astray_is_told_and_not_sent_out_again(world: World) -> None:
    browser = world.browser()
    start = await browser.get("/")
    astray = browser.callback_url(start.headers["location"]).replace("/auth/callback", "/a/b")
    response = await browser.get(astray)
    assert response.status_code == 400
    assert "code=" not in response.text


@both_providers
async def test_htmx_comes_back_to_the_page_that_asked(world: World) -> None:
    htmx = {"HX-Request": "true", "HX-Current-URL": f"{APP}/deep/page?a=1"}
    response = await world.browser().get("/cameras", headers=htmx)
    assert response.headers["hx-redirect"] == "/auth/login?next=/deep/page%3Fa%3D1"
    for elsewhere in ("https://evil.example/x", "http://[", "nonsense"):
        answer = await world.browser().get(
            "/cameras", headers={"HX-Request": "true", "HX-Current-URL": elsewhere}
        )
        assert answer.headers["hx-redirect"] == "/auth/login"


@both_providers
async def test_head_comes_back_to_the_very_url_too(world: World) -> None:
    browser = world.browser()
    response = await browser.head("/deep/x?a=1")
    landed = await browser.finish(response.headers["location"])
    assert str(landed.url) == f"{APP}/deep/x?a=1"


@both_providers
async def test_nobody_gets_in_while_the_allow_rule_fails(make_world) -> None:
    world = make_world(allow=lambda user: user["no such field"])
    response = await world.browser().login()
    assert response.status_code == 403
