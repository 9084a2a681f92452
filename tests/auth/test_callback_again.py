"""Callbacks that cannot be served, of the browser that began: a login begins anew by itself."""

from __future__ import annotations

import anyio
import httpx2
import pytest

from tests.helpers.browser import Browser
from tests.helpers.world import APP, JSON, MakeWorld, World, both_providers
from tests.security.visits import NAME, cookies_of, query_of, started

pytestmark = pytest.mark.anyio

SECURE = APP.replace("http:", "https:")
OTHERS = {
    "a program": JSON,
    "jQuery": {"X-Requested-With": "XMLHttpRequest"},
    "htmx": {"HX-Request": "true"},
    "a frame": {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    "a prefetch": {"Sec-Purpose": "prefetch"},
    "Office": {"User-Agent": "Mozilla/4.0 (ms-office; MSOffice 16)"},
}  # who could not go on by a redirect
SCHEMES = pytest.mark.parametrize(
    ("first", "last"), [(APP, SECURE), (SECURE, APP)], ids=["http to https", "https to http"]
)


async def begun(world: World) -> tuple[str, str]:
    """Begin a login; return its callback, and the cookies that the browser has then."""
    browser = world.browser()
    start = await started(browser, "/cameras?a=1")
    return browser.callback_url(start.headers["location"]), cookies_of(browser)


def having(world: World, cookies: str) -> Browser:
    """A browser that has these cookies, and takes more."""
    browser = world.browser()
    for cookie in cookies.split("; "):
        name, _, value = cookie.partition("=")
        browser.cookies.set(name, value, "localhost.local")
    return browser


async def expect_a_login(world: World, answer: httpx2.Response, cookies: str) -> None:
    """Assert that a browser with these cookies is led to the page by another login."""
    assert answer.status_code == 302, answer.text
    assert answer.headers["location"].startswith(f"{world.authorize}?")
    browser = having(world, cookies)
    browser.cookies.extract_cookies(answer)
    page = await browser.finish(answer.headers["location"])
    assert page.status_code == 200
    assert str(page.url).endswith("/cameras?a=1")
    assert len(browser.named(NAME)) == 1


@both_providers
@pytest.mark.slow  # CameraManager takes half a second
async def test_a_second_callback_while_the_first_is_under_way_begins_anew(world: World) -> None:
    """R24: and each code is sent once."""
    url, cookies = await begun(world)
    world.sim.settings.token_latency = 0.5
    answers: list[httpx2.Response] = []

    async def send(after: float) -> None:
        await anyio.sleep(after)
        answers.append(await world.browser(Cookie=cookies).get(url))

    async with anyio.create_task_group() as group:
        group.start_soon(send, 0.0)
        group.start_soon(send, 0.1)
    second, first = answers  # in the order of their ends
    assert first.headers["location"] == "/cameras?a=1"
    assert len(world.sim.token_calls()) == 1
    await expect_a_login(world, second, cookies)
    assert len(world.sim.token_calls()) == 2


@both_providers
@pytest.mark.slow
async def test_a_reload_after_a_first_callback_that_was_cancelled_begins_anew(world: World) -> None:
    """R24: servers cancel a request whose browser has left, at any step."""
    url, cookies = await begun(world)
    world.sim.settings.token_latency = 0.5
    with anyio.move_on_after(0.1):
        await world.browser(Cookie=cookies).get(url)
    world.sim.settings.token_latency = 0.0
    await expect_a_login(world, await world.browser(Cookie=cookies).get(url), cookies)


@both_providers
async def test_a_reload_whose_first_answer_was_lost_begins_anew(world: World) -> None:
    """R24: the session that nobody has the cookie of ends by its timeouts."""
    url, cookies = await begun(world)
    await world.browser(Cookie=cookies).get(url)
    await expect_a_login(world, await world.browser(Cookie=cookies).get(url), cookies)


@both_providers
async def test_a_callback_that_is_always_sent_twice_ends_at_a_page(world: World) -> None:
    """R24: a login that took the place of another is not followed by a third."""
    url, cookies = await begun(world)
    await world.browser(Cookie=cookies).get(url)
    again = await world.browser(Cookie=cookies).get(url)
    assert again.headers["location"].startswith(f"{world.authorize}?")
    cookies += f"; {again.headers['set-cookie'].partition(';')[0]}"
    url = world.browser().callback_url(again.headers["location"])
    assert (await world.browser(Cookie=cookies).get(url)).headers["location"] == "/cameras?a=1"
    page = await world.browser(Cookie=cookies).get(url)
    assert page.status_code == 400
    assert "Start again" in page.text


@both_providers
@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS.keys())
async def test_only_a_person_is_led_to_a_login_anew(world: World, headers) -> None:
    """R22, R24, R33, R52: others could not log in by it."""
    url, cookies = await begun(world)
    await world.browser(Cookie=cookies).get(url)
    answer = await world.browser(Cookie=cookies, **headers).get(url)
    assert answer.status_code == 400
    assert f"{NAME}_login_" not in str(answer.headers)


@both_providers
@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS.keys())
async def test_nobody_else_is_where_many_tabs_were_restored(world: World, headers) -> None:
    """R22, R33, R52: a tab whose cookie another one has overwritten."""
    url, cookies = await begun(world)
    name = cookies.partition("=")[0]
    prefix, number = name.rsplit("_", 1)
    others = [f"{prefix}_{(int(number) + n) % 60}={'B' * 21}A" for n in range(6)]
    answer = await world.browser(Cookie="; ".join(others)).get(url)
    assert answer.headers["location"].startswith(f"{world.authorize}?")
    answer = await world.browser(Cookie="; ".join(others), **headers).get(url)
    assert answer.status_code == 400
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers


@both_providers
async def test_a_browser_that_does_not_keep_the_session_is_not_sent_in_a_circle(
    world: World,
) -> None:
    """R24: it has the cookie of the login, and the mark of one that has just ended."""
    url, cookies = await begun(world)
    await world.browser(Cookie=cookies).get(url)
    mark = f"{NAME}_in={int(world.clock())}"
    answer = await world.browser(Cookie=f"{cookies}; {mark}").get(url)
    assert answer.status_code == 400


@both_providers
@pytest.mark.parametrize("is_told", [True, False], ids=["redirect_uri", "led there"])
@SCHEMES
async def test_a_login_that_began_by_one_scheme_and_ends_by_the_other_begins_anew(
    make_world: MakeWorld, first: str, last: str, is_told: bool
) -> None:
    """R50: by http a browser keeps no Secure cookie and brings none; the names differ, too."""
    options = {"redirect_uri": f"{last}/auth/callback"} if is_told else {}
    world = make_world(**options)
    world.net.apps[SECURE] = world.net.apps[APP]
    browser = world.browser()
    start = await browser.get(f"{first}/cameras?a=1")
    url = browser.callback_url(start.headers["location"]).replace(first, last)
    if is_told and last == SECURE:
        browser.cookies.clear()  # as a browser that gets a Secure cookie by http
    again = await browser.get(url)
    assert again.headers["location"].startswith(f"{world.authorize}?")
    assert world.sim.requests == []
    assert query_of(again)["redirect_uri"] == f"{last}/auth/callback"
    done = await browser.get(browser.callback_url(again.headers["location"]))
    assert done.headers["location"] == "/cameras?a=1"
    assert (await browser.get(f"{last}/cameras?a=1")).status_code == 200


@both_providers
@pytest.mark.parametrize("headers", OTHERS.values(), ids=OTHERS.keys())
@SCHEMES
async def test_by_the_other_scheme_too_only_a_person_is_led_to_one(
    make_world: MakeWorld, first: str, last: str, headers: dict[str, str]
) -> None:
    """R22, R33, R50, R52."""
    world = make_world(redirect_uri=f"{last}/auth/callback")
    world.net.apps[SECURE] = world.net.apps[APP]
    start = await world.browser().get(f"{first}/cameras?a=1")
    answer = await world.browser(**headers).get(
        world.browser().callback_url(start.headers["location"])
    )
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers


@both_providers
async def test_a_second_visit_by_https_ends_in_the_session_that_http_has(
    make_world: MakeWorld,
) -> None:
    """R50: redirect_uri says that the site is http."""
    world = make_world(redirect_uri=f"{APP}/auth/callback")
    world.net.apps[SECURE] = world.net.apps[APP]
    browser = await world.login()
    start = await browser.get(f"{SECURE}/deep/x")
    back = await browser.get(browser.callback_url(start.headers["location"]))
    assert (back.status_code, back.headers["location"]) == (302, "/deep/x")
    assert len(world.sim.token_calls()) == 1


@both_providers
@pytest.mark.parametrize(
    "options",
    [{"redirect_uri": f"{APP}/auth/callback", "cookie_secure": True},
     {"redirect_uri": f"{SECURE}/auth/callback"}],
    ids=["cookie_secure", "redirect_uri"],
)  # fmt: skip
async def test_no_login_begins_anew_by_http_where_cookies_are_secure(
    make_world: MakeWorld, options
) -> None:
    """R50: its cookie would not be kept either."""
    world = make_world(**options)
    world.net.apps[SECURE] = world.net.apps[APP]
    start = await world.browser().get(f"{SECURE}/cameras")
    url = world.browser().callback_url(start.headers["location"]).replace(SECURE, APP)
    page = await world.browser().get(url)
    assert page.status_code == 400
    assert "set-cookie" not in page.headers


@both_providers
@SCHEMES
async def test_a_browser_without_cookies_is_not_sent_in_a_circle(
    make_world: MakeWorld, first: str, last: str
) -> None:
    """R50: once is enough to get from the one scheme to the other."""
    world = make_world(redirect_uri=f"{last}/auth/callback")
    world.net.apps[SECURE] = world.net.apps[APP]
    start = await world.browser().get(f"{first}/cameras")
    again = await world.browser().get(world.browser().callback_url(start.headers["location"]))
    page = await world.browser().get(world.browser().callback_url(again.headers["location"]))
    assert page.status_code == 400
    assert "Start again" in page.text
    assert world.sim.requests == []


@both_providers
@SCHEMES
async def test_a_callback_of_mine_by_another_scheme_logs_nobody_else_in(
    make_world: MakeWorld, first: str, last: str
) -> None:
    """R50, 2: another browser that opens it begins a login of its own, and no other."""
    world = make_world(redirect_uri=f"{last}/auth/callback")
    world.net.apps[SECURE] = world.net.apps[APP]
    start = await world.browser().get(f"{first}/cameras")
    victim = world.browser()
    url = victim.callback_url(start.headers["location"])
    answer = await victim.get(url)
    assert answer.headers["location"].startswith(f"{world.authorize}?")
    assert victim.named(NAME) == victim.named(f"__Host-{NAME}") == []
    assert world.sim.requests == []
    world.clock.tick(601)
    assert (await world.browser().get(url)).status_code == 400
