"""Our whole walk against Spring Security OAuth: what users do, and what Spring does to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from .browser import ANNA, BOB, Browser
from .sites import Site
from .spring_server import Setting, Spring

CAMERAS = {
    ANNA: ["Front gate", "Parking lot", "Warehouse", "Loading dock"],
    BOB: ["Shop floor", "Back door"],
}
LOGOUT = "/rest/v2.0/users/self/tokens/current"
EVERYWHERE = [Setting(reuse, store) for reuse in (True, False) for store in ("memory", "jdbc")]
TWICE = [Setting(reuse=True, store="memory"), Setting(reuse=False, store="jdbc")]
SHORT = 3  # seconds: an access token's life that outlasts a login on a slow machine


@pytest.fixture
def server(request: pytest.FixtureRequest, spring_of: Callable[[Setting], Spring]) -> Spring:
    """Spring, as new."""
    server = spring_of(request.param)
    server.reset()
    return server


@pytest.fixture
def place(side: str, server: Spring, site_of: Callable[[str, str], Site]) -> Site:
    """The application."""
    return site_of(side, server.url)


everywhere = pytest.mark.parametrize("server", EVERYWHERE, ids=str, indirect=True)
twice = pytest.mark.parametrize("server", TWICE, ids=str, indirect=True)


@everywhere
def test_two_users_log_in_and_each_sees_their_own_cameras(server: Spring, place: Site) -> None:
    with Browser() as anna, Browser() as bob:
        for browser, email in ((anna, ANNA), (bob, BOB)):
            arrived = browser.enter(f"{place.origin}/cameras?of=mine", email)
            assert str(arrived.url) == f"{place.origin}/cameras?of=mine"
            assert (arrived.status_code, arrived.json()) == (200, CAMERAS[email])
        for browser, email in ((anna, ANNA), (bob, BOB)):
            assert browser.fetch(f"{place.other}/user").text == email
            assert browser.fetch(f"{place.other}/cameras").json() == CAMERAS[email]
    assert server.count("POST", "/oauth/token", "authorization_code") == 2


@everywhere
def test_100_requests_at_an_expiry_in_two_processes_cost_one_refresh(
    server: Spring, place: Site
) -> None:
    server.lifetimes(access=SHORT)
    with Browser() as anna:
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        cookie = anna.cookie
    ((old, _),) = server.tokens()
    _expire(server)

    def cameras(number: int) -> tuple[int, object]:
        origin = (place.origin, place.other)[number % 2]
        answer = client.get(f"{origin}/cameras", headers={"Cookie": cookie})
        return answer.status_code, answer.json()

    limits = httpx2.Limits(max_connections=100)
    with httpx2.Client(timeout=60, limits=limits) as client, ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(cameras, range(100)))
    assert answers == [(200, CAMERAS[ANNA])] * 100
    assert server.refreshes == 1
    ((new, _),) = server.tokens()
    assert new != old


@everywhere
def test_a_logout_ends_the_tokens_and_the_other_browser_is_asked_to_log_in(
    server: Spring, place: Site
) -> None:
    with Browser() as one, Browser() as two:
        for browser in (one, two):
            assert browser.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        ((access, refresh),) = server.tokens()  # Spring gave both the same
        assert _api(server, access) == (200, None)
        gone = one.submit(f"{place.origin}/auth/logout")
        assert gone.status_code == 303
        assert server.count("DELETE", LOGOUT) == 1
        assert _api(server, access) == (401, "invalid_token")
        assert _refresh(server, refresh) == (400, "invalid_grant")
        for browser in (one, two):
            assert browser.fetch(f"{place.other}/cameras").status_code == 401
            assert _is_led_to_login(browser, place, server)
            assert browser.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


@twice
def test_two_browsers_of_one_account_share_a_refresh(server: Spring, place: Site) -> None:
    server.lifetimes(access=SHORT)
    with Browser() as one, Browser() as two:
        for browser in (one, two):
            assert browser.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        _expire(server)
        for _ in range(3):
            for browser, origin in ((one, place.origin), (two, place.other)):
                assert browser.fetch(f"{origin}/cameras").json() == CAMERAS[ANNA]
    assert server.refreshes == 1


@twice
def test_expiry_after_expiry_is_outlived(server: Spring, place: Site) -> None:
    server.lifetimes(access=1)
    with Browser() as anna:
        anna.enter(f"{place.origin}/cameras")
        for _ in range(3):
            time.sleep(1.1)
            assert anna.fetch(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
    assert server.refreshes >= 3
    assert server.count("POST", "/oauth/token", "authorization_code") == 1


@twice
def test_a_revoked_user_is_asked_to_log_in(server: Spring, place: Site) -> None:
    with Browser() as anna, Browser() as bob:
        for browser, email in ((anna, ANNA), (bob, BOB)):
            assert browser.enter(f"{place.origin}/cameras", email).status_code == 200
        server.revoke(ANNA)
        refused = anna.fetch(f"{place.origin}/cameras")
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert _is_led_to_login(anna, place, server)
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        assert bob.fetch(f"{place.origin}/cameras").json() == CAMERAS[BOB]


@twice
def test_a_dead_refresh_token_leads_to_the_login(server: Spring, place: Site) -> None:
    server.lifetimes(access=1, refresh=1)
    with Browser() as anna:
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        server.lifetimes()
        time.sleep(1.2)
        assert _is_led_to_login(anna, place, server)
        # Of the refresh; with rotation the refresh token before it may have been tried, too.
        assert 401 in [call["status"] for call in server.state()["requests"][-2:]]
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


@twice
def test_a_disabled_user_is_out_at_the_expiry_and_in_again_when_enabled(
    server: Spring, place: Site
) -> None:
    server.lifetimes(access=1)
    with Browser() as anna:
        anna.enter(f"{place.origin}/cameras")
        server.disable(ANNA)
        time.sleep(1.2)
        assert _is_led_to_login(anna, place, server)
        server.disable(ANNA, False)
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


@twice
def test_a_user_who_refuses_is_told_so_and_may_try_again(server: Spring, place: Site) -> None:
    with Browser() as anna:
        told = anna.enter(f"{place.origin}/cameras", consents=False)
        assert told.status_code in (400, 403)
        assert told.headers["content-type"].startswith("text/html")
        assert server.count("POST", "/oauth/token") == 0
        assert anna.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


@pytest.mark.parametrize(
    "server", [Setting(reuse=True, store="memory", phantom=True)], ids=str, indirect=True
)
def test_a_refresh_token_that_spring_made_up_is_not_noticed(server: Spring, place: Site) -> None:
    server.lifetimes(access=1)
    with Browser() as anna:
        anna.enter(f"{place.origin}/cameras")
        for _ in range(3):
            time.sleep(1.1)
            answer = anna.fetch(f"{place.origin}/cameras")
            assert (answer.status_code, answer.json()) == (200, CAMERAS[ANNA])


def _expire(server: Spring) -> None:
    """Wait until the access token that Spring gave last has expired, and count from then on."""
    server.lifetimes(access=600)
    server.forget()
    time.sleep(SHORT + 0.1)


def _is_led_to_login(browser: Browser, place: Site, server: Spring) -> bool:
    answer = browser.ask(f"{place.origin}/cameras")
    location = answer.headers.get("location", "")
    return answer.status_code == 302 and location.startswith(f"{server.url}/oauth/authorize?")


def _api(server: Spring, access: str) -> tuple[int, object]:
    headers = {"Authorization": f"Bearer {access}", "Accept": "application/json"}
    answer = httpx2.get(f"{server.url}/rest/v2.4/cameras", headers=headers)
    return answer.status_code, (None if answer.status_code == 200 else answer.json()["error"])


def _refresh(server: Spring, refresh: str) -> tuple[int, object]:
    answer = httpx2.post(
        f"{server.url}/oauth/token",
        auth=("demo-key-id", "demo-key-secret"),
        headers={"Accept": "application/json"},
        data={"grant_type": "refresh_token", "refresh_token": refresh, "scope": "write"},
    )
    return answer.status_code, answer.json().get("error")
