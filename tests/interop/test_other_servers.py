"""Our walk against servers that nobody here wrote: oidc-provider and django-oauth-toolkit.

Both rotate refresh tokens and end the grant when an old one is used. The applications run in two
processes that share one SQLite store: two uvicorns, or two gunicorns.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import pytest

from tests.matrix.servers import environment, serve
from tests.matrix.visitor import _NAVIGATE, ANNA, BOB, CAMERAS, PASSWORD, Visitor

from . import other_servers
from .other_apps import PROVIDERS
from .other_servers import CLIENT_ID, CLIENT_SECRET, OtherServer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

ANNAS = tuple(CAMERAS[ANNA])

_COMMANDS = {
    "asgi": (
        ["uvicorn", "--factory", "--host", "127.0.0.1", "--port", "{port}", "{app}"],
        "tests.interop.other_apps:asgi",
    ),
    "wsgi": (
        ["gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}", "--threads", "16", "{app}"],
        "tests.interop.other_apps:wsgi()",
    ),
}


# -- servers and applications ------------------------------------------------------------------


@contextmanager
def announced(
    request: pytest.FixtureRequest,
    run: Callable[[Path], Any],
    factory: pytest.TempPathFactory,
) -> Iterator[OtherServer]:
    with run(factory.mktemp("server")) as server:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\ninterop: {server.versions}")
        yield server


@pytest.fixture(scope="session")
def oidc_provider(request, tmp_path_factory) -> Iterator[OtherServer]:
    with announced(request, other_servers.oidc_provider, tmp_path_factory) as server:
        yield server


@pytest.fixture(scope="session")
def django_toolkit(request, tmp_path_factory) -> Iterator[OtherServer]:
    with announced(request, other_servers.django_toolkit, tmp_path_factory) as server:
        yield server


@dataclass(frozen=True, slots=True)
class Sites:
    """One application in two processes with one store, and the server that it logs in at."""

    server: OtherServer
    origins: tuple[str, str]


@pytest.fixture(scope="session", params=["oidc_provider", "django_toolkit"])
def running_server(request) -> OtherServer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=["asgi", "wsgi"])
def running_sites(request, running_server, tmp_path_factory) -> Iterator[Sites]:
    command, app = _COMMANDS[request.param]
    directory = tmp_path_factory.mktemp("sites")
    variables = environment(
        running_server,
        CM_AUTH_CLIENT_ID=CLIENT_ID,
        CM_AUTH_CLIENT_SECRET=CLIENT_SECRET,
        CM_AUTH_STORE=f"sqlite:///{directory}/sessions.db",
        INTEROP_PROVIDER=running_server.name,
    )
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(
                serve(command[0], command, directory / f"log{number}", variables, app=app)
            )
            for number in (1, 2)
        )
        yield Sites(running_server, (one.origin, two.origin))


@pytest.fixture
def sites(running_sites: Sites) -> Sites:
    """The applications, and a server with which nobody is logged in."""
    running_sites.server.control(reset=True)
    return running_sites


@pytest.fixture
def server(sites: Sites) -> OtherServer:
    return sites.server


@pytest.fixture
def open_browser(sites: Sites) -> Iterator[Callable[..., Person]]:
    """Open browsers, at the first process or the second."""
    with ExitStack() as stack:
        yield lambda process=0: stack.enter_context(Person(sites.origins[process]))


# -- a person at a browser ---------------------------------------------------------------------


class _Form(HTMLParser):
    """The first form of a page: where it leads, and its fields."""

    def __init__(self, page: httpx2.Response) -> None:
        super().__init__()
        self.url = str(page.url)
        self.fields: dict[str, str] = {}
        self.is_there = False
        self.feed(page.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.is_there = True
            self.url = str(httpx2.URL(self.url).join(given.get("action", "")))
        elif tag in ("input", "button") and "name" in given:
            self.fields.setdefault(given["name"], given.get("value", ""))


class Person(Visitor):
    """Fills in the login and consent forms of any server."""

    def log_in(self, authorize_url: str, email: str = ANNA, **answers: str) -> httpx2.Response:
        page = self._follow(self.navigate(authorize_url))
        known = {"email": email, "username": email, "password": PASSWORD, **answers}
        for _ in range(3):
            if str(page.url).startswith(self.origin):
                break
            form = _Form(page)
            assert form.is_there, f"{page.status_code} {page.url} {page.text[:500]}"
            fields = {name: known.get(name, value) for name, value in form.fields.items()}
            sent = {name: value for name, value in fields.items() if value is not None}
            page = self._follow(self._press(form.url, sent))
        return page

    def _press(self, url: str, fields: dict[str, str]) -> httpx2.Response:
        parts = urlsplit(url)
        origin = {"Origin": f"{parts.scheme}://{parts.netloc}", "Sec-Fetch-Site": "same-origin"}
        return self._send("POST", url, {**_NAVIGATE, **origin}, data=fields)

    def has(self, email: str) -> None:
        """Check that this is that person's session, and that the API answers."""
        cameras = self.fetch("/cameras")
        assert (cameras.status_code, cameras.text) == (200, cameras.text), cameras.text
        assert cameras.json() == CAMERAS[email]
        assert self.fetch("/auth/session").json()["user"]["email"] == email

    def has_to_log_in(self) -> None:
        """Check that a program gets a 401, and a browser a login."""
        assert self.fetch("/cameras").status_code == 401
        assert self.navigate("/cameras").status_code == 302


def ask_a_hundred_times(sites: Sites, *browsers: Person) -> Counter[Any]:
    """Ask for cameras at once, by turns at either process and in each browser; count answers."""
    cookies = [browser.cookie_header for browser in browsers]

    def ask(number: int) -> tuple[str, ...] | int:
        headers = {"Cookie": cookies[number // 2 % len(cookies)], "Accept": "application/json"}
        answer = client.get(f"{sites.origins[number % 2]}/cameras", headers=headers)
        return tuple(answer.json()) if answer.status_code == 200 else answer.status_code

    with httpx2.Client(timeout=60) as client, ThreadPoolExecutor(25) as pool:
        return Counter(pool.map(ask, range(100)))


def token_call(server: OtherServer, secret: str = CLIENT_SECRET, **form: str) -> httpx2.Response:
    """Call the token endpoint by hand."""
    key = f"{quote(CLIENT_ID, safe='')}:{quote(secret, safe='')}"
    headers = {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}
    url = server.url + PROVIDERS[server.name].token_path
    return httpx2.post(url, data=form, headers=headers, timeout=30)


# -- the walk ----------------------------------------------------------------------------------


def test_two_browsers_log_in_work_through_an_expiry_and_log_out(sites, server, open_browser):
    one, two, bob = open_browser(0), open_browser(1), open_browser(1)
    assert one.enter("/deep/a?b=c").text == f"/deep/a?b=c {ANNA}"
    assert two.enter("/").text == f"/? {ANNA}"
    assert bob.enter("/", BOB).text == f"/? {BOB}"
    for _ in range(2):
        one.has(ANNA)
        two.has(ANNA)
        bob.has(BOB)
    assert server.refreshes == []
    for rounds in (1, 2):
        server.expire()
        for _ in range(2):
            one.has(ANNA)
            two.has(ANNA)
            bob.has(BOB)
        assert server.refreshes == [200] * 3 * rounds

    stolen = one.cookie_header
    assert server.control()["living_refresh_tokens"] == 3
    assert one.submit("/auth/logout").status_code == 303
    one.has_to_log_in()
    assert one.fetch("/cameras", headers={"Cookie": stolen}).status_code == 401
    counted = server.control()
    assert [call["status"] for call in counted["revocations"]] == [200]
    assert counted["living_refresh_tokens"] == 2
    server.expire()
    two.has(ANNA)
    bob.has(BOB)

    # With an access token that is dead, too.
    server.expire()
    assert two.submit("/auth/logout").status_code == 303
    two.has_to_log_in()
    assert server.control()["living_refresh_tokens"] == 1
    assert one.enter("/").text == f"/? {ANNA}"


def test_a_hundred_requests_when_the_server_lets_a_token_expire_refresh_it_once(
    sites, server, open_browser
):
    browser = open_browser()
    browser.enter("/")
    for refreshes in (1, 2):
        server.expire()
        assert ask_a_hundred_times(sites, browser) == {ANNAS: 100}
        assert server.refreshes == [200] * refreshes


def test_a_hundred_requests_when_a_token_is_known_to_have_expired_refresh_it_once(
    sites, server, open_browser
):
    browser = open_browser()
    server.control(access_token_lifetime=2)
    browser.enter("/")
    server.control(access_token_lifetime=3600)
    expires_at = browser.fetch("/state").json()["expires_at"]
    assert time.time() < expires_at
    while time.time() < expires_at:
        time.sleep(0.05)  # the clocks of three other processes
    assert ask_a_hundred_times(sites, browser) == {ANNAS: 100}
    assert server.refreshes == [200]


def test_a_hundred_requests_of_one_account_in_two_browsers_refresh_each_grant_once(
    sites, server, open_browser
):
    one, two = open_browser(0), open_browser(1)
    one.enter("/")
    two.enter("/")
    server.expire()
    assert ask_a_hundred_times(sites, one, two) == {ANNAS: 100}
    assert server.refreshes == [200, 200]


def test_a_logout_amid_a_refresh_leaves_no_token_alive(sites, server, open_browser):
    """The server has rotated already when the logout comes, or it has not been asked yet."""
    for delay in (1.0, 0.0):
        browser = open_browser()
        browser.enter("/")
        server.control(expire_access_tokens=True, delay_token_answers=delay)
        calls = len(server.refreshes)
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(ask_a_hundred_times, sites, browser)
            while delay and len(server.refreshes) == calls:
                time.sleep(0.02)
            assert browser.submit("/auth/logout").status_code == 303
            assert answers.result().keys() <= {ANNAS, 401}
        assert not delay or answers.result() == {401: 100}
        browser.has_to_log_in()
    counted = server.control()
    assert counted["living_refresh_tokens"] == 0
    for old in counted["used_refresh_tokens"]:
        answer = token_call(server, grant_type="refresh_token", refresh_token=old)
        assert answer.json()["error"] == "invalid_grant"


def test_a_revoked_user_is_out_and_others_are_not(sites, server, open_browser):
    anna, bob = open_browser(0), open_browser(1)
    anna.enter("/")
    bob.enter("/", BOB)
    server.control(revoke_user=ANNA)
    assert ask_a_hundred_times(sites, anna) == {401: 100}
    assert server.refreshes == [400]
    anna.has_to_log_in()
    bob.has(BOB)
    server.expire()
    bob.has(BOB)
    assert server.refreshes == [400, 200]


def test_a_dead_refresh_token_leads_to_a_login(sites, server, open_browser):
    browser = open_browser()
    browser.enter("/")
    server.control(expire_access_tokens=True, expire_refresh_tokens=True)
    assert browser.fetch("/cameras").status_code == 401
    assert server.refreshes == [400]
    assert browser.enter("/cameras").json() == CAMERAS[ANNA]
    browser.has(ANNA)


def test_a_thief_of_an_old_refresh_token_ends_the_session_and_a_login_opens_another(
    sites, server, open_browser
):
    browser = open_browser()
    browser.enter("/")
    for _ in range(2):
        server.expire()
        browser.has(ANNA)
    oldest = server.control()["used_refresh_tokens"][0]
    theft = token_call(server, grant_type="refresh_token", refresh_token=oldest)
    assert (theft.status_code, theft.json()["error"]) == (400, "invalid_grant")
    assert server.control()["living_refresh_tokens"] == 0
    server.expire()
    browser.has_to_log_in()
    assert browser.enter("/cameras").json() == CAMERAS[ANNA]
    server.expire()
    browser.has(ANNA)


def test_a_lost_answer_to_a_refresh_costs_a_login_at_most(sites, server, open_browser):
    """The server has rotated, and nobody knows the new tokens.

    A grace period gives them again; without one the retry is the use of an old refresh token.
    """
    browser = open_browser()
    browser.enter("/")
    server.expire()
    server.control(lose_token_answers=1)
    lost = browser.fetch("/cameras")
    assert lost.status_code == 503
    time.sleep(float(lost.headers["Retry-After"]))  # as the answer asks
    if server.name == "django-oauth-toolkit":
        browser.has(ANNA)
        assert server.refreshes == [200, 200]
    else:
        browser.has_to_log_in()
        assert server.refreshes == [200, 400]
        browser.enter("/")
    server.expire()
    browser.has(ANNA)


# -- what the providers say of the servers -----------------------------------------------------


def test_a_wrong_key_is_the_operator_s_mistake(server):
    refused = token_call(server, "wrong", grant_type="refresh_token", refresh_token="x")
    assert refused.json()["error"] in PROVIDERS[server.name].key_errors


def test_a_login_without_pkce_is_refused(server, open_browser):
    browser = open_browser()
    url = httpx2.URL(browser.navigate("/").headers["location"])
    without = url.copy_remove_param("code_challenge").copy_remove_param("code_challenge_method")
    refused = browser.log_in(str(without))
    assert (refused.status_code, refused.url.path) == (403, "/auth/callback")
    assert server.control()["token_calls"] == []
    browser.enter("/")


def test_a_login_that_is_cancelled_says_so(server, open_browser):
    browser = open_browser()
    authorize_url = browser.navigate("/").headers["location"]
    cancelled = browser.log_in(authorize_url, decision="deny", allow=None)
    assert (cancelled.status_code, cancelled.url.path) == (403, "/auth/callback")
    assert server.control()["token_calls"] == []
    browser.enter("/")
