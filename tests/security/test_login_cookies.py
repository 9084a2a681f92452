"""Many tabs at once, and URLs of any length: cookies stay few and small, and each tab arrives."""

from __future__ import annotations

import base64
import random
import re
import string
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from html import unescape
from pathlib import Path
from urllib.parse import quote, unquote

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware.auth.login_cookies import first_number
from cm_auth_middleware.auth.login_state import StateSealer
from tests.helpers.browser import ANNA, BOB, Browser
from tests.helpers.world import APP, HTML, SECRET_KEY, MakeWorld, World, both_providers

from .held import NEIGHBOUR, WSGI, HeldSite
from .visits import NAME, query_of, started, visit

pytestmark = pytest.mark.anyio

MOST_COOKIES = 6_000  # bytes of a Cookie header that we cause
MOST_HEADERS = 4_096 - 150  # nginx's proxy_buffer_size, without what the server adds
SECURE = APP.replace("http:", "https:")
LETTERS = string.ascii_letters + string.digits + "-_"
KINDS = {
    "short": lambda n: f"/deep/{n}",
    "long": lambda n: f"/deep/{n}?q=" + "".join(random.Random(n).choices(LETTERS, k=2_700)),
}


def size(response: httpx2.Response) -> int:
    return sum(len(k) + len(v) + 4 for k, v in response.headers.multi_items())


async def restored(
    world: World, paths: list[str], site: str = APP
) -> tuple[Browser, list[httpx2.Response]]:
    """Let a browser open pages all at once: no request has a cookie of another one."""
    browser, starts = world.browser(), []
    for path in paths:
        start = await started(world.browser(), f"{site}{path}")
        assert size(start) < MOST_HEADERS
        browser.cookies.extract_cookies(start)
        starts.append(start)
    return browser, starts


def cookie_header(browser: Browser, site: str = APP) -> str:
    return browser.build_request("GET", f"{site}/").headers.get("cookie", "")


def pending(browser: Browser) -> list[str]:
    return [cookie.name for cookie in browser.cookies.jar if "_login_" in cookie.name]


@both_providers
@pytest.mark.parametrize(
    ("tabs", "kind", "site"),
    [
        (12, "long", SECURE),
        pytest.param(12, "long", APP, marks=pytest.mark.slow),
        pytest.param(12, "short", APP, marks=pytest.mark.slow),
        pytest.param(40, "short", SECURE, marks=pytest.mark.slow),
        pytest.param(40, "long", APP, marks=pytest.mark.slow),
        pytest.param(40, "long", SECURE, marks=pytest.mark.slow),
    ],
)
async def test_tabs_that_are_restored_at_once_each_arrive(
    world: World, tabs: int, kind: str, site: str
) -> None:
    """58: each at its own page, by its own code, in whichever order; and no cookie is left."""
    world.net.apps[site] = world.net.apps[APP]
    paths = [KINDS[kind](n) for n in range(tabs)]
    browser, starts = await restored(world, paths, site)
    assert len(cookie_header(browser, site)) < MOST_COOKIES / 2
    order = list(range(tabs))
    random.Random(58).shuffle(order)
    for n in order:
        done = await browser.get(browser.callback_url(starts[n].headers["location"]))
        assert done.status_code == 302, done.text
        assert done.headers["location"] == paths[n]
        assert size(done) < MOST_HEADERS
    assert len(world.sim.token_calls("authorization_code")) == tabs
    assert pending(browser) == []


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("name", [None, "the_longest_cookie_name_" + "x" * 40])
async def test_any_number_of_tabs_on_both_schemes_leaves_small_cookies(make_world, name) -> None:
    """58: also where the cookies of http go to https; all tabs arrive once one is logged in."""
    world = make_world(cookie_name=name)
    world.net.apps[SECURE] = world.net.apps[APP]
    paths = [f"/deep/{n}" for n in range(200)]
    browser, _ = await restored(world, paths)
    other, starts = await restored(world, paths, SECURE)
    browser.cookies.update(other.cookies)
    lines = (cookie_header(browser), cookie_header(browser, SECURE))
    assert max(map(len, lines)) < MOST_COOKIES
    for n in reversed(range(200)):  # the last ones have overwritten the cookies of the first
        done = await browser.get(browser.callback_url(starts[n].headers["location"]))
        assert done.headers["location"] == paths[n]
        lines = (cookie_header(browser), cookie_header(browser, SECURE))
        assert max(map(len, lines)) < MOST_COOKIES


@both_providers
@pytest.mark.slow
async def test_a_tab_whose_cookie_was_overwritten_begins_anew_by_itself(world: World) -> None:
    """58: more tabs than cookies, and the first one to log in is one that lost its own."""
    paths = [KINDS["long"](n) for n in range(90)]
    browser, starts = await restored(world, paths)
    again = await browser.get(browser.callback_url(starts[3].headers["location"]))
    assert again.headers["location"].startswith(f"{world.authorize}?")
    assert world.sim.requests == []
    done = await browser.get(browser.callback_url(again.headers["location"]))
    assert done.headers["location"] == paths[3]
    for n in (4, 89, 0, 50):
        done = await browser.get(browser.callback_url(starts[n].headers["location"]))
        assert done.headers["location"] == paths[n]
        assert size(done) < MOST_HEADERS


@both_providers
@pytest.mark.slow
async def test_another_browser_with_many_tabs_of_its_own_ends_no_login(world: World) -> None:
    """2, 58: it begins one of its own at most, and is nobody until that ends."""
    mine = world.browser()
    url = mine.callback_url((await started(mine)).headers["location"])
    other, _ = await restored(world, [f"/deep/{n}" for n in range(70)])
    answer = await other.get(url)
    assert answer.headers["location"].startswith(f"{world.authorize}?")
    assert other.named(NAME) == []
    assert world.sim.requests == []
    world.clock.tick(601)
    assert (await other.get(url)).status_code == 400


@both_providers
@pytest.mark.slow
async def test_tabs_that_come_one_by_one_share_a_cookie_in_the_end(world: World) -> None:
    """58: and a login that is cancelled takes nothing from those that share it."""
    browser = world.browser()
    starts = [await started(browser, f"/deep/{n}") for n in range(30)]
    assert len(pending(browser)) == 12
    for n in (29, 0, 15):
        state = query_of(starts[n])["state"]
        cancelled = await browser.get(f"/auth/callback?error=access_denied&state={state}")
        assert cancelled.status_code == 403
    for n in (20, 3, 28, 1, 17):
        done = await browser.get(browser.callback_url(starts[n].headers["location"]))
        assert done.headers["location"] == f"/deep/{n}"


@both_providers
@pytest.mark.slow
async def test_a_cookie_that_is_shared_lives_ten_minutes_from_the_last_start(world: World) -> None:
    """58: the tab that shares it has as much time as any other."""
    browser = world.browser()
    for n in range(12):
        await started(browser, f"/deep/{n}")
    world.clock.tick(500)
    start = await started(browser, "/deep/late")
    [line] = start.headers.get_list("set-cookie")
    assert "Max-Age=600" in line
    world.clock.tick(500)
    done = await browser.get(browser.callback_url(start.headers["location"]))
    assert done.headers["location"] == "/deep/late"


@both_providers
async def test_a_state_tells_no_page_and_is_short_for_a_short_target(world: World) -> None:
    """33, 58: neither the server nor its log learns which page was asked for."""
    seen = set()
    for _ in range(2):
        browser = world.browser()
        state = query_of(await started(browser, "/deep/very-secret-page"))["state"]
        assert len(state) < 200
        raw = base64.urlsafe_b64decode(state + "==")
        assert b"secret" not in raw
        assert b"callback" not in raw
        [cookie] = browser.cookies.jar
        assert re.fullmatch("[A-Za-z0-9_-]{22}", cookie.value or "")
        assert base64.urlsafe_b64decode(f"{cookie.value}==") not in raw
        seen |= {state, cookie.value}
    assert len(seen) == 4


@both_providers
@pytest.mark.slow
async def test_a_state_with_any_letter_changed_is_refused(world: World) -> None:
    """1, 58: nor are there two ways to write the same one: it would count as another login."""
    browser = world.browser()
    url = browser.callback_url((await started(browser)).headers["location"])
    state = url.partition("&state=")[2]
    forged = [f"{state[:-1]}{other}" for other in LETTERS if other != state[-1]]
    forged += [
        state[:n] + LETTERS[LETTERS.index(state[n]) - 1] + state[n + 1 :]
        for n in range(0, len(state), 9)
    ]
    forged += [f"{state}=", f"{state}A", state[:-1], state[1:], f"{state}{state}", f"%20{state}"]
    for other in forged:
        answer = await browser.get(url.replace(f"state={state}", f"state={other}"))
        assert answer.status_code == 400, other
    assert world.sim.requests == []
    assert (await browser.get(url)).headers["location"] == "/cameras"


@both_providers
async def test_a_state_of_a_later_release_or_of_another_key_is_none(world: World) -> None:
    """1, 58: it is refused like any text, and so is one that is cut in the middle of a byte."""
    browser = world.browser()
    await started(browser)
    [cookie] = browser.cookies.jar
    number, proof = (
        int(cookie.name.rpartition("_")[2]),
        base64.urlsafe_b64decode(f"{cookie.value}=="),
    )
    now = int(world.clock())
    other = StateSealer(["another key " * 4]).seal(number, proof, f"{APP}/auth/callback", "/x", now)
    later = StateSealer([SECRET_KEY])
    plain = bytes([9]) + now.to_bytes(4) + bytes([number]) + proof + b"unknown"
    sealed = bytes(12) + later._of(-1).cipher.encrypt(bytes(12), plain, None)
    state = base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()
    for forged in (other, state, "A", "A" * 61, "A" * 5_000):
        answer = await browser.get(f"/auth/callback?code=AbCdEf&state={forged}")
        assert answer.status_code == 400
    assert world.sim.requests == []


@both_providers
async def test_another_browser_needs_the_very_cookie(world: World) -> None:
    """2, 58: another value, another number or no cookie at all proves nothing."""
    mine, other = world.browser(), world.browser()
    url = mine.callback_url((await started(mine)).headers["location"])
    await started(other)
    [right] = mine.cookies.jar
    [wrong] = other.cookies.jar
    for cookie in (
        "", f"{right.name}={wrong.value}", f"{wrong.name}={right.value}", f"{right.name}=",
        f"{right.name}={right.value}A", f"{right.name}x={right.value}",
    ):  # fmt: skip
        status, headers, _ = await visit(world, cookie.encode(), url.removeprefix(APP))
        assert status == 400, cookie
        assert NAME not in str(headers)
    assert world.sim.requests == []
    good = f"{right.name}={right.value}".encode()
    assert (await visit(world, good, url.removeprefix(APP)))[0] == 302


@both_providers
@pytest.mark.slow
async def test_a_tab_that_is_late_or_lost_its_cookie_still_finds_its_page(world: World) -> None:
    """58: by itself with a session; without one, by the link on the page that says so."""
    browser = world.browser()
    late = browser.callback_url((await started(browser, "/deep/late?a=1")).headers["location"])
    browser.cookies.clear()
    page = await browser.get(late)
    assert page.status_code == 400
    links = [unquote(unescape(link)) for link in re.findall(r'href="([^"]*)"', page.text)]
    assert "/auth/login?next=/deep/late?a=1" in links
    world.clock.tick(1_000)
    await browser.login("/cameras")
    calls = len(world.sim.token_calls())
    assert (await browser.get(late)).headers["location"] == "/deep/late?a=1"
    assert len(world.sim.token_calls()) == calls


@both_providers
@pytest.mark.slow
async def test_a_second_login_as_another_user_in_another_tab_counts(world: World) -> None:
    """10, 58: two tabs that began before either ended: the last one says who it is."""
    browser = world.browser()
    starts = [await started(browser, f"/deep/{n}") for n in range(2)]
    await browser.finish(starts[0].headers["location"])
    page = await browser.finish(starts[1].headers["location"], BOB)
    assert page.url.path == "/deep/1"
    assert page.text.endswith(BOB)


def two_mounts(make_world: MakeWorld) -> World:
    """Return the first of two applications at ``/one`` and ``/two``, with one key and one store."""
    one = make_world()
    two = make_world(beside=one)
    if one.side == "asgi":
        one.net.add(APP, Starlette(routes=[Mount("/one", one.app), Mount("/two", two.app)]))
    else:
        apps = {"/one": one.app, "/two": two.app}
        one.net.add_wsgi(APP, DispatcherMiddleware(one.app, apps))
    return one


@both_providers
async def test_the_state_of_another_application_leads_to_none_of_its_pages(make_world) -> None:
    """54, 58: R17: two applications with one key, each under a path of its own."""
    one = two_mounts(make_world)
    browser = one.browser()
    await browser.login("/two/deep/1")
    stranger = one.browser()
    url = stranger.callback_url((await started(stranger, "/one/deep/5")).headers["location"])
    answer = await browser.get(url.replace("/one/", "/two/"))
    assert answer.headers["location"] == "/two/"


@both_providers
async def test_tabs_of_two_mounts_that_are_restored_at_once_each_arrive(make_world) -> None:
    """54, 58: each mount has an engine, and gives no cookie a name that the other one gave."""
    one = two_mounts(make_world)
    paths = ["/one/deep/1", "/two/deep/2", "/two/deep/3", "/one/deep/4"]
    browser, starts = await restored(one, paths)
    for path, start in zip(paths, starts, strict=True):
        done = await browser.get(browser.callback_url(start.headers["location"]))
        assert done.headers.get("location") == path, done.text
    assert pending(browser) == []


@both_providers
async def test_tabs_of_a_browser_that_has_a_pending_login_each_get_a_cookie(world: World) -> None:
    """58: also if the number of that login is the next one: no two of them get the one after it."""
    await started(browser := world.browser())
    [name] = pending(browser)
    number = (int(name.rpartition("_")[2]) + 1) % 60
    cookie = f"{NAME}_login_{number}={'A' * 22}"
    tabs = [world.browser(Cookie=cookie) for _ in range(3)]
    names = set()
    for tab in tabs:
        [line] = (await started(tab)).headers.get_list("set-cookie")
        names.add(line.partition("=")[0])
    assert len(names - {f"{NAME}_login_{number}"}) == 3


@pytest.mark.parametrize("most", range(25, 61))
def test_processes_begin_far_apart_whatever_the_length_of_the_cookies_names(most: int) -> None:
    """58: workers, whose process ids are in a row, and containers, where each has the same id."""
    for first in range(1, 4_000_000, 99_991):
        row = [first_number(first + n, "host", most) for n in range(4)]
        assert all(0 <= number < most for number in row)
        gaps = [(a - b) % most for i, a in enumerate(row) for j, b in enumerate(row) if i != j]
        assert min(gaps) >= most // 9
    containers = [first_number(1, f"web-{n}", most) for n in range(1_000)]
    assert max(map(containers.count, range(most))) < 3 * 1_000 / most
    for apart in range(1, 10):  # also of names that are counted
        pairs = zip(containers, containers[apart:], strict=False)
        assert sum(a == b for a, b in pairs) < 3 * 1_000 / most


@pytest.mark.slow
def test_a_process_that_was_forked_amid_a_draw_begins_at_its_own_number() -> None:
    """58: a server that loads the application before it forks has workers far apart, too."""
    code = """
    import os, signal, threading
    from cm_auth_middleware.auth import login_cookies
    from cm_auth_middleware.auth.login_cookies import first_number

    class Taken:
        def __contains__(self, number):  # the draw waits here
            entered.set()
            leave.wait()
            return False

    numbers = login_cookies._numbers
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: numbers.draw("cm_auth", Taken(), 1_000.0))
    thread.start()
    entered.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        expected = first_number(os.getpid(), os.uname().nodename, 60)
        drawn = [numbers.draw("cm_auth", {}, 1_000.0) for _ in range(2)]
        os._exit(0 if drawn == [expected, (expected + 1) % 60] else 1)
    leave.set()
    thread.join()
    status = os.waitpid(pid, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    subprocess.run(program, check=True, timeout=50, cwd=Path(__file__).parents[2])


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "back"),
    [
        ("/deep/x?q=" + "a" * 3_500, "/deep/x?q=" + "a" * 3_500),
        ("/deep/x?q=" + "a" * 3_500 + "#" + "b" * 300, "/deep/x?q=" + "a" * 3_500),
        ("/deep/x?q=" + "a" * 4_000, "/deep/x"),
        ("/" + "a" * 4_000 + "?q=1", "/"),
    ],
    ids=["fits", "without its fragment", "without its query", "the root"],
)
async def test_a_target_that_fits_into_no_header_is_shortened(
    world: World, target: str, back: str
) -> None:
    """58: where it can be told in few bytes, and would come back in many."""
    browser = world.browser()
    start = await browser.get(f"/auth/login?next={quote(target, safe='')}")
    done = await browser.get(browser.callback_url(start.headers["location"]))
    out = await browser.post(f"/auth/logout?next={quote(target, safe='')}")
    for answer in (start, done, out):
        assert size(answer) < MOST_HEADERS
    assert done.headers["location"] == out.headers["location"] == back


@both_providers
@pytest.mark.slow
async def test_htmx_is_told_a_login_that_fits_into_a_header(world: World) -> None:
    """58: quoted twice, a URL becomes longer."""
    browser = world.browser()
    for query, back in (("%2F" * 500, "?q=" + "%2F" * 500), ("%2F" * 1_000, "")):
        page = f"{APP}/deep/x?q={query}"
        headers = {"HX-Request": "true", "HX-Current-URL": page}
        refused = await browser.get("/cameras", headers=headers)
        assert size(refused) < MOST_HEADERS
        start = await browser.get(refused.headers["hx-redirect"])
        done = await browser.get(browser.callback_url(start.headers["location"]))
        assert done.headers["location"] == f"/deep/x{back}"
        await browser.post("/auth/logout")


@both_providers
@pytest.mark.slow
async def test_an_application_whose_own_url_is_too_long_says_so(make_world) -> None:
    """58: a visitor may choose the path that it is mounted at ("/{tenant}")."""
    world = make_world()
    tenant = "/" + "".join(random.Random(1).choices(LETTERS, k=3_000))
    if world.side == "asgi":
        world.net.add(APP, Starlette(routes=[Mount("/{tenant}", app=world.app)]))
    else:
        world.net.add_wsgi(APP, DispatcherMiddleware(world.app, {tenant: world.app}))
    for mount, status in ((tenant[:600], 302), (tenant, 414)):
        if world.side == "wsgi":
            world.net.add_wsgi(APP, DispatcherMiddleware(world.app, {mount: world.app}))
        answer = await world.browser().get(f"{APP}{mount}/deep/1")
        assert answer.status_code == status
        assert size(answer) < MOST_HEADERS


@both_providers
@pytest.mark.slow
async def test_the_login_cookies_of_another_application_are_none_of_ours(world: World) -> None:
    """58: they are neither used nor cleared, however much they look like ours."""
    theirs = {f"{other}_login_{n}": f"{n:022}" for n in range(12) for other in ("other12", "my")}
    theirs[f"{NAME}_login_59"] = "B" * 22  # one of ours
    cookies = "; ".join(f"{name}={value[:21]}A" for name, value in theirs.items())
    start = await started(world.browser(Cookie=cookies))
    [line] = start.headers.get_list("set-cookie")
    assert line.startswith(f"{NAME}_login_")
    assert line.partition("=")[2].partition(";")[0] not in cookies


@both_providers
@pytest.mark.slow
async def test_cookies_of_an_earlier_release_are_cleared(world: World) -> None:
    """58: as far as they fit; none of them matches a state."""
    names = [f"{NAME}_login_{n:016x}" for n in range(5)] + [f"{NAME}_login_60", f"{NAME}_login_7"]
    cookies = "; ".join(f"{name}={'x' * 400}.{'y' * 43}" for name in names)
    for path, least in (("/deep/1", 7), (KINDS["long"](1), 1)):
        start = await started(world.browser(Cookie=cookies), path)
        assert start.headers["location"].startswith(f"{world.authorize}?")
        assert size(start) < MOST_HEADERS
        lines = start.headers.get_list("set-cookie")
        cleared = {line.partition("=")[0] for line in lines if "Max-Age=0" in line}
        assert cleared <= set(names)
        assert len(cleared) >= least


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize(("tabs", "kind"), [(12, "long"), (40, "short"), (40, "long")])
@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_tabs_that_are_restored_at_once_each_arrive_at_a_server(
    server: str, tabs: int, kind: str, provider: str
) -> None:
    """58: none of them has a cookie of another one when it asks, and all share them after that."""
    paths = [KINDS[kind](n) for n in range(tabs)]
    with ExitStack() as stack:
        site = HeldSite(server, stack, provider=provider)
        browser = site.visitor()

        def ask(path: str) -> httpx2.Response:
            with httpx2.Client(base_url=site.url, headers=HTML, timeout=60) as tab:
                return tab.get(path)

        with ThreadPoolExecutor(tabs) as pool:
            starts = list(pool.map(ask, paths))
        for start in starts:
            assert size(start) < MOST_HEADERS
            browser.cookies.extract_cookies(start)
        order = list(range(tabs))
        random.Random(58).shuffle(order)
        for n in order:
            line = browser.build_request("GET", "/").headers["cookie"]
            assert len(line) < MOST_COOKIES / 2
            done = browser.get(site.callback_url(starts[n]))
            assert done.headers["location"] == paths[n], done.text
            assert size(done) < MOST_HEADERS
        assert len(site.simulator.token_calls("authorization_code")) == tabs
        assert [name for name in browser.cookies if "_login_" in name] == []


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("tabs", [1, 2, 20])
@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_tabs_of_two_mounts_that_are_restored_at_once_each_arrive_at_a_server(
    server: str, tabs: int, provider: str, tmp_path: Path
) -> None:
    """54, 58: so many of each; the mounts share logins, and each has an engine in one process."""
    paths = [f"/{mount}/deep/{n}" for mount in ("one", "two") for n in range(tabs)]
    tmp_path.chmod(0o700)
    with ExitStack() as stack:
        store = f"sqlite:///{tmp_path}/sessions.db"
        site = HeldSite(server, stack, mount="/one", twin="/two", provider=provider, store=store)
        browser = site.visitor()

        def ask(path: str) -> httpx2.Response:
            with httpx2.Client(headers=HTML, timeout=60) as tab:
                return tab.get(httpx2.URL(site.url).join(path))

        with ThreadPoolExecutor(len(paths)) as pool:
            starts = list(pool.map(ask, paths))
        for start in starts:
            assert size(start) < MOST_HEADERS
            browser.cookies.extract_cookies(start)
        assert len(browser.build_request("GET", "/").headers["cookie"]) < MOST_COOKIES / 2
        for path, start in zip(paths, starts, strict=True):
            done = browser.get(site.callback_url(start))
            assert done.headers.get("location") == path, done.text
        assert len(site.simulator.token_calls("authorization_code")) == len(paths)
        assert [name for name in browser.cookies if "_login_" in name] == []


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("server", ["uvicorn", *WSGI])
def test_a_target_of_3900_characters_leads_to_its_path_or_the_mounts_root_at_a_server(
    server: str, provider: str
) -> None:
    """58: R17: and never to the application that answers beside the mount."""
    long = "".join(random.Random(58).choices(LETTERS, k=3_900))
    targets = {
        f"/one/deep/x?q={long}"[:3_900]: "/one/deep/x",
        f"/one/deep/{long}"[:3_900]: "/one/",
        f"/two/x?q={long}"[:3_900]: "/one/",
        f"/two/{long}"[:3_900]: "/one/",
        f"/one{long}"[:3_900]: "/one/",
        f"/?q={long}"[:3_900]: "/one/",
    }
    with ExitStack() as stack:
        site = HeldSite(server, stack, mount="/one", provider=provider)
        for target, back in targets.items():
            visitor = site.visitor()
            start = visitor.get(f"/auth/login?next={quote(target, safe='/')}")
            done = visitor.get(site.callback_url(start))
            assert done.headers["location"] == back, target[:20]
            page = visitor.get(back.removeprefix("/one"))
            assert page.text.endswith(ANNA)
            assert max(size(answer) for answer in (start, done, page)) < MOST_HEADERS
        beside = httpx2.URL(site.url).copy_with(path="/two/x")
        assert visitor.get(beside).text == NEIGHBOUR
