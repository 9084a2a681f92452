"""Our walk against oidc-provider, django-oauth-toolkit and Spring Authorization Server.

All rotate refresh tokens, and the first two end the grant when an old one is used. Each login has a
grant of its own there. The last one plays Eagle Eye's API v3.
"""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from .browser import ANNA, BOB, Browser
from .other_servers import CLIENT_ID, CLIENT_SECRET, OtherServer
from .providers import PROVIDERS
from .sites import Site, site

CAMERAS = {
    ANNA: ["Front gate", "Parking lot", "Warehouse", "Loading dock"],
    BOB: ["Shop floor", "Back door"],
}


@pytest.fixture(scope="module", params=["oidc_provider", "django_toolkit", "authorization_server"])
def _server(request: pytest.FixtureRequest) -> OtherServer:
    server: OtherServer = request.getfixturevalue(request.param)
    return server


at_eagle_eye = pytest.mark.parametrize("_server", ["authorization_server"], indirect=True)


@pytest.fixture
def server(_server: OtherServer) -> OtherServer:
    """The server, with which nobody is logged in."""
    _server.control(reset=True)
    return _server


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def place(
    request: pytest.FixtureRequest,
    _server: OtherServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The application."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    key = {"CM_AUTH_CLIENT_ID": CLIENT_ID, "CM_AUTH_CLIENT_SECRET": CLIENT_SECRET}
    with site(request.param, _server.url, folder, INTEROP_PROVIDER=_server.name, **key) as running:
        yield running


@pytest.fixture
def one() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture
def two() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


# -- the walk ----------------------------------------------------------------------------------


def test_two_browsers_of_one_account_and_another_user_work_through_expiries(
    server: OtherServer, place: Site, one: Browser, two: Browser
) -> None:
    with Browser() as bob:
        arrived = one.enter(f"{place.origin}/cameras?of=mine")
        assert str(arrived.url) == f"{place.origin}/cameras?of=mine"
        assert two.enter(f"{place.other}/user").text == ANNA
        assert bob.enter(f"{place.other}/user", BOB).text == BOB
        for expiries in range(3):
            for origin in (place.origin, place.other):
                for browser, email in ((one, ANNA), (two, ANNA), (bob, BOB)):
                    assert browser.fetch(f"{origin}/user").text == email
                    assert browser.fetch(f"{origin}/cameras").json() == CAMERAS[email]
            assert server.refreshes == [200, 200, 200] * expiries
            server.expire()


def test_a_logout_ends_one_grant_and_no_other(
    server: OtherServer, place: Site, one: Browser, two: Browser
) -> None:
    for browser in (one, two):
        browser.enter(f"{place.origin}/")
    stolen = one.cookie
    assert server.control()["living_refresh_tokens"] == 2
    assert one.submit(f"{place.origin}/auth/logout").status_code == 303
    assert _is_out(one, place, server)
    cookie = {"Cookie": stolen, "Accept": "application/json"}
    assert httpx2.get(f"{place.other}/cameras", headers=cookie).status_code == 401
    assert server.control()["living_refresh_tokens"] == 1
    server.expire()
    assert two.fetch(f"{place.origin}/cameras").json() == CAMERAS[ANNA]

    server.expire()  # a logout needs no living access token here
    assert two.submit(f"{place.other}/auth/logout").status_code == 303
    counted = server.control()
    assert counted["living_refresh_tokens"] == 0
    assert counted["revocations"] == [200, 200]
    assert server.refreshes == [200]
    assert one.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


def test_100_requests_cost_one_refresh_when_the_server_drops_the_token(
    server: OtherServer, place: Site, one: Browser
) -> None:
    one.enter(f"{place.origin}/")
    for expiries in (1, 2):
        server.expire()
        assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
        assert server.refreshes == [200] * expiries


def test_100_requests_cost_one_refresh_when_the_token_is_known_to_have_expired(
    server: OtherServer, place: Site, one: Browser
) -> None:
    server.control(access_token_lifetime=3)
    one.enter(f"{place.origin}/")
    server.control(access_token_lifetime=3600)
    time.sleep(3.1)  # the clock is that of other processes
    assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
    assert server.refreshes == [200]


def test_100_requests_of_one_account_in_two_browsers_refresh_each_grant_once(
    server: OtherServer, place: Site, one: Browser, two: Browser
) -> None:
    for browser in (one, two):
        browser.enter(f"{place.origin}/")
    server.expire()
    assert _ask_100_times(place, one, two) == {tuple(CAMERAS[ANNA]): 100}
    assert server.refreshes == [200, 200]


def test_a_revoked_user_is_out_and_others_are_not(
    server: OtherServer, place: Site, one: Browser, two: Browser
) -> None:
    one.enter(f"{place.origin}/")
    two.enter(f"{place.origin}/", BOB)
    server.control(revoke_user=ANNA)
    assert _ask_100_times(place, one) == {401: 100}
    # A request that has loaded the session just before another one ends it asks, too.
    assert set(server.refreshes) == {400}
    assert len(server.refreshes) < 10
    server.control(forget_calls=True)
    assert _is_out(one, place, server)
    assert two.fetch(f"{place.origin}/cameras").json() == CAMERAS[BOB]
    server.expire()
    assert two.fetch(f"{place.origin}/cameras").json() == CAMERAS[BOB]
    assert server.refreshes == [200]


def test_a_dead_refresh_token_leads_to_the_login(
    server: OtherServer, place: Site, one: Browser
) -> None:
    one.enter(f"{place.origin}/")
    server.control(expire_access_tokens=True, expire_refresh_tokens=True)
    assert _is_out(one, place, server)
    assert server.refreshes == [400]
    assert one.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


def test_a_403_for_a_dead_bearer_is_outlived_and_for_a_revoked_user_leads_to_the_login(
    server: OtherServer, place: Site, one: Browser
) -> None:
    """django-oauth-toolkit's `protected_resource` answers so by default."""
    server.control(forbid_dead_bearers=True)
    one.enter(f"{place.origin}/")
    server.expire()
    assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
    assert server.refreshes == [200]
    server.control(revoke_user=ANNA)
    assert _is_out(one, place, server)


# -- rotation ----------------------------------------------------------------------------------


def test_a_logout_amid_a_refresh_leaves_no_token_alive(server: OtherServer, place: Site) -> None:
    """The server has rotated already when the logout comes, or has not been asked yet."""
    for delay in (1.0, 0.0):
        with Browser() as browser, ThreadPoolExecutor(1) as pool:
            browser.enter(f"{place.origin}/")
            server.control(expire_access_tokens=True, delay_token_answers=delay)
            calls = len(server.refreshes)
            answers = pool.submit(_ask_100_times, place, browser)
            while delay and len(server.refreshes) == calls:
                time.sleep(0.02)
            assert browser.submit(f"{place.origin}/auth/logout").status_code == 303
            expected = {401} if delay else {401, tuple(CAMERAS[ANNA])}
            assert answers.result().keys() <= expected
            assert _is_out(browser, place, server)
    counted = server.control()
    # A thread may still be about to end the tokens that came after the logout.
    give_up_at = time.monotonic() + 10
    while counted["living_refresh_tokens"] and time.monotonic() < give_up_at:
        time.sleep(0.1)
        counted = server.control()
    assert counted["living_refresh_tokens"] == 0
    assert counted["used_refresh_tokens"]
    for old in counted["used_refresh_tokens"]:
        assert _refresh(server, old) == (400, "invalid_grant")


def test_a_thief_of_an_old_refresh_token_ends_the_session_at_most_and_a_login_opens_another(
    server: OtherServer, place: Site, one: Browser
) -> None:
    """Spring Authorization Server notices no thief; nor does it give the thief anything."""
    one.enter(f"{place.origin}/")
    for _ in range(2):
        server.expire()
        one.fetch(f"{place.origin}/cameras")
    oldest, _ = server.control()["used_refresh_tokens"]
    assert _refresh(server, oldest) == (400, "invalid_grant")
    assert server.control()["living_refresh_tokens"] == (0 if server.ends_stolen_grants else 1)
    server.expire()
    if server.ends_stolen_grants:
        assert _is_out(one, place, server)
    assert one.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
    server.expire()
    assert one.fetch(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


def test_a_lost_answer_to_a_refresh_costs_a_login_unless_there_is_a_grace_period(
    server: OtherServer, place: Site, one: Browser
) -> None:
    """The server has rotated, and its answer with the new tokens is lost.

    In a grace period it gives them again; else the second attempt uses an old refresh token.
    """
    one.enter(f"{place.origin}/")
    server.control(expire_access_tokens=True, lose_token_answers=1)
    lost = one.fetch(f"{place.origin}/cameras")
    assert lost.status_code == 503
    time.sleep(float(lost.headers["Retry-After"]))
    if server.has_grace_period:
        assert one.fetch(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
        assert server.refreshes == [200, 200]
    else:
        assert _is_out(one, place, server)
        assert server.refreshes == [200, 400]
        assert one.enter(f"{place.origin}/cameras").json() == CAMERAS[ANNA]
    server.expire()
    assert one.fetch(f"{place.origin}/cameras").json() == CAMERAS[ANNA]


# -- the hosts of the API ----------------------------------------------------------------------


@at_eagle_eye
def test_an_account_that_moves_is_followed_by_100_requests_at_the_cost_of_one_refresh(
    server: OtherServer, place: Site, one: Browser, two: Browser
) -> None:
    """A token is good at the host that its answer named; the next refresh names the other one."""
    one.enter(f"{place.origin}/")
    two.enter(f"{place.origin}/", BOB)
    for moves in (1, 2):
        server.control(move_account=ANNA)
        assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
        assert server.refreshes == [200] * (moves - 1)
        server.expire()
        assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
        assert server.refreshes == [200] * moves
    assert two.fetch(f"{place.other}/cameras").json() == CAMERAS[BOB]


@at_eagle_eye
def test_keys_that_do_not_rotate_refresh_once_at_an_expiry(
    server: OtherServer, place: Site, one: Browser
) -> None:
    server.control(rotate_refresh_tokens=False)
    one.enter(f"{place.origin}/")
    for expiries in (1, 2):
        server.expire()
        assert _ask_100_times(place, one) == {tuple(CAMERAS[ANNA]): 100}
        assert server.refreshes == [200] * expiries
    assert len(set(server.control()["used_refresh_tokens"])) == 1
    assert one.submit(f"{place.other}/auth/logout").status_code == 303
    assert server.control()["living_refresh_tokens"] == 0


# -- the providers -----------------------------------------------------------------------------


def test_a_wrong_key_is_an_error_that_the_provider_lists(server: OtherServer) -> None:
    _, error = _refresh(server, "unknown", secret="wrong")
    assert error in PROVIDERS[server.name].key_errors
    assert _refresh(server, "unknown") == (400, "invalid_grant")


def test_a_login_without_pkce_is_refused(server: OtherServer, place: Site, one: Browser) -> None:
    url = httpx2.URL(one.ask(f"{place.origin}/").headers["location"])
    without = url.copy_remove_param("code_challenge").copy_remove_param("code_challenge_method")
    told = one.enter(str(without))
    # Not the person's doing: the server says invalid_request.
    assert (told.status_code, told.url.path) == (502, "/auth/callback")
    assert server.control()["token_calls"] == []
    assert one.enter(f"{place.origin}/user").text == ANNA


def test_a_user_who_refuses_is_told_so_and_may_try_again(
    server: OtherServer, place: Site, one: Browser
) -> None:
    told = one.enter(f"{place.origin}/", consents=False)
    assert (told.status_code, told.url.path) == (403, "/auth/callback")
    assert server.control()["token_calls"] == []
    assert one.enter(f"{place.origin}/user").text == ANNA


def _ask_100_times(place: Site, *browsers: Browser) -> Counter[Any]:
    """Ask for the cameras at once, by turns in each process and each browser; count the answers."""
    cookies = [browser.cookie for browser in browsers]

    def ask(number: int) -> tuple[str, ...] | int:
        headers = {"Cookie": cookies[number // 2 % len(cookies)], "Accept": "application/json"}
        origin = (place.origin, place.other)[number % 2]
        answer = client.get(f"{origin}/cameras", headers=headers)
        # On threads, only one waits for a refresh of over a second; the others are told to come
        # again.
        while answer.status_code == 503 and answer.headers.get("server") == "gunicorn":
            time.sleep(int(answer.headers["retry-after"]))
            answer = client.get(f"{origin}/cameras", headers=headers)
        return tuple(answer.json()) if answer.status_code == 200 else answer.status_code

    limits = httpx2.Limits(max_connections=100)
    with httpx2.Client(timeout=60, limits=limits) as client, ThreadPoolExecutor(100) as pool:
        return Counter(pool.map(ask, range(100)))


def _is_out(browser: Browser, place: Site, server: OtherServer) -> bool:
    """Return True if a program gets a 401, and a browser is sent to the server."""
    answer = browser.ask(f"{place.other}/cameras")
    location = answer.headers.get("location", "")
    is_sent = answer.status_code == 302 and location.startswith(f"{server.url}/")
    return is_sent and browser.fetch(f"{place.origin}/cameras").status_code == 401


def _refresh(
    server: OtherServer, refresh_token: str, secret: str = CLIENT_SECRET
) -> tuple[int, str]:
    """Use a refresh token by hand; return the status and the error."""
    key = f"{quote(CLIENT_ID, safe='')}:{quote(secret, safe='')}"
    answer = httpx2.post(
        server.url + PROVIDERS[server.name].token_path,
        headers={"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"},
        data={"grant_type": "refresh_token", "refresh_token": refresh_token},
        timeout=30,
    )
    return answer.status_code, answer.json().get("error", "")
