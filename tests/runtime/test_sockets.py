"""The same over real sockets: a server in a thread for the app, and one for CameraManager."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import anyio.from_thread
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.flask import CMAuth
from cm_auth_middleware.flask import cm as client
from cm_auth_middleware.runtime import http as transports
from cm_auth_middleware.stores import sqlite
from cm_auth_middleware.testing import AppServer, SimulatorServer
from tests.chaos.crowd import Ask, Crowd
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.servers import WSGIServer
from tests.helpers.world import HTML, SECRET_KEY

pytestmark = pytest.mark.slow  # a server of its own for each


async def big(request: Request) -> Response:
    cm = request.state.cm
    answer = await cm.send(cm.build_request("GET", "/rest/v2.4/big?bytes=50000000"), stream=True)
    return StreamingResponse(answer.aiter_bytes(), answer.status_code)


def blocking_big() -> Any:
    answer = client.send(client.build_request("GET", "/rest/v2.4/big?bytes=50000000"), stream=True)
    return answer.iter_bytes(), answer.status_code


async def digest(request: Request) -> Response:
    """Stream a large answer through, without holding it."""
    seen, size = hashlib.sha256(), 0
    async with request.state.cm.stream("GET", "/rest/v2.4/big?bytes=20000000") as answer:
        async for chunk in answer.aiter_bytes():
            seen.update(chunk)
            size += len(chunk)
    return JSONResponse({"size": size, "sha256": seen.hexdigest()})


def blocking_digest() -> Any:
    """The same in Flask."""
    seen, size = hashlib.sha256(), 0
    with client.stream("GET", "/rest/v2.4/big?bytes=20000000") as answer:
        for chunk in answer.iter_bytes():
            seen.update(chunk)
            size += len(chunk)
    return {"size": size, "sha256": seen.hexdigest()}


@pytest.fixture
def cm() -> Iterator[SimulatorServer]:
    with SimulatorServer() as server:
        yield server


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ten connections were very many; to be named before `site`."""
    monkeypatch.setattr(transports, "LIMITS", httpx2.Limits(max_connections=10))


@pytest.fixture
def timeout() -> float:
    return 2.0


@pytest.fixture
def site(cm: SimulatorServer, side: str, timeout: float) -> Iterator[AppServer | WSGIServer]:
    options: dict[str, Any] = {
        "client_id": cm.client_id,
        "client_secret": cm.client_secret,
        "secret_key": SECRET_KEY,
        "base_url": cm.url,
        "timeout": timeout,
    }
    if side == "asgi":
        app = make_app([Route("/digest", digest), Route("/big", big)])
        app.add_middleware(CMAuthMiddleware, **options)
        with AppServer(app) as server:
            yield server
    else:
        flask_app = make_wsgi_app()
        flask_app.add_url_rule("/digest", view_func=blocking_digest)
        flask_app.add_url_rule("/big", view_func=blocking_big)
        CMAuth(flask_app, **options)
        with WSGIServer(flask_app) as wsgi_server:
            yield wsgi_server
        flask_app.extensions["cm_auth"].close()


def log_in(
    site: AppServer | WSGIServer, path: str = "/", email: str = "anna@example.com"
) -> httpx2.Client:
    """Walk through CameraManager's real forms, as a person does."""
    browser = httpx2.Client(base_url=site.url, headers=HTML, follow_redirects=True)
    page = browser.get(path)
    for fields in ({"email": email, "password": "cameras"}, {"decision": "allow"}):
        inputs = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text))
        inputs = {k: v.replace("&amp;", "&") for k, v in inputs.items()}
        page = browser.post(page.url, data={**inputs, **fields})
    assert page.status_code == 200, page.text
    return browser


def ask_for(site: AppServer | WSGIServer, browser: httpx2.Client, path: str) -> Ask:
    return Ask(urlsplit(site.url).port or 0, path, browser.cookies["cm_auth"])


def test_a_whole_login_is_one_authorize_one_token_one_users_self(cm, site) -> None:
    log_in(site, "/cameras").close()
    calls = [(c.method, c.path, c.status) for c in cm.simulator.requests]
    assert calls.count(("POST", "/oauth/token", 200)) == 1
    assert calls.count(("GET", "/rest/v2.3/users/self", 200)) == 1
    # A person who is new there sees two forms; logged in and consented, it is straight through.
    cm.simulator.reset()
    with closing(log_in(site)) as browser:
        browser.post("/auth/logout", follow_redirects=False)
        before = len(cm.simulator.requests)
        assert browser.get("/cameras").status_code == 200
    trace = [(c.method, c.path) for c in cm.simulator.requests[before:]]
    assert trace == [
        ("GET", "/oauth/authorize"),
        ("POST", "/oauth/token"),
        ("GET", "/rest/v2.3/users/self"),
        ("GET", "/rest/v2.4/cameras"),
    ]


def test_many_requests_at_expiry_make_one_token_call(cm, site) -> None:
    cm.simulator.settings.rotate_refresh_tokens = True
    cm.simulator.settings.revoke_family_on_reuse = True
    with closing(log_in(site)) as browser:
        cm.simulator.expire_access_tokens()
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(browser.get("/cameras").status_code))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 20
    assert len(cm.simulator.token_calls("refresh_token")) == 1


@pytest.mark.parametrize("timeout", [8.0])
def test_hundreds_of_requests_that_are_refused_at_once_all_get_the_new_token(cm, site) -> None:
    """Each kept a connection until it had the token, which found none of httpx2's 100 left."""
    with closing(log_in(site)) as browser, closing(Crowd()) as crowd:
        cm.simulator.settings.latency = 0.5  # so that all are on their way when the token expires
        asks = [ask_for(site, browser, "/cameras")] * 150
        answers = crowd.ask(asks, (0.25, cm.simulator.expire_access_tokens))
    assert Counter(answer.status for answer in answers) == {200: 150}
    assert len(cm.simulator.token_calls("refresh_token")) == 1


def test_routes_that_occupy_every_thread_leave_one_to_the_refresh(
    cm, monkeypatch, tmp_path
) -> None:
    """They wait for the new token, whose keeping needs a thread of the store's now and then."""
    monkeypatch.setattr(sqlite, "_CHECKPOINT_EVERY", 1)
    cm.simulator.settings.rotate_refresh_tokens = True

    def cameras(request: Request) -> Response:
        answer = anyio.from_thread.run(request.state.cm.get, "/rest/v2.4/cameras")
        return Response(status_code=answer.status_code)

    app = CMAuthMiddleware(
        Starlette(routes=[Route("/", cameras)]),
        client_id=cm.client_id,
        client_secret=cm.client_secret,
        secret_key=SECRET_KEY,
        base_url=cm.url,
        store=f"sqlite:///{tmp_path / 'sessions.db'}",
    )
    with AppServer(app) as site, closing(log_in(site)) as browser, closing(Crowd()) as crowd:
        cm.simulator.expire_access_tokens()
        answers = crowd.ask([ask_for(site, browser, "/")] * 60)
    assert Counter(answer.status for answer in answers) == {200: 60}


@pytest.mark.parametrize("timeout", [20.0])
def test_a_hundred_long_answers_keep_nobody_waiting(cm, site) -> None:
    with closing(log_in(site)) as browser:
        cm.simulator.settings.snapshot_latency = 4.0
        views = [ask_for(site, browser, "/snapshot/2001")] * 120
        assert is_served_before(views, lambda: browser.get("/cameras"))


@pytest.mark.parametrize("timeout", [20.0])
def test_a_login_needs_no_connection_that_the_clients_could_take(cm, few, site) -> None:
    with closing(log_in(site)) as browser:
        cm.simulator.settings.snapshot_latency = 4.0
        views = [ask_for(site, browser, "/snapshot/2001")] * 10
        assert is_served_before(views, lambda: log_in(site).close())


@pytest.mark.parametrize("timeout", [20.0])
def test_who_waits_for_a_new_token_takes_no_connection_from_others(cm, few, site, side) -> None:
    with closing(log_in(site)) as anna:
        cm.simulator.expire_access_tokens()
        with closing(log_in(site, email="bob@example.com")) as bob:
            cm.simulator.settings.token_latency = 4.0
            waiting = [ask_for(site, anna, "/cameras")] * 20
            if side == "asgi":
                assert is_served_before(waiting, lambda: bob.get("/cameras"))
                return
            # Threads do not wait: security/test_waiting_threads.py.
            took: list[float] = []
            with closing(Crowd()) as crowd:
                answers = crowd.ask(waiting, (2.0, lambda: took.append(seconds_of(bob))))
            assert Counter(answer.status for answer in answers) == {200: 1, 503: 19}
            assert took[0] < 1


def seconds_of(browser: httpx2.Client) -> float:
    began = time.monotonic()
    assert browser.get("/cameras").status_code == 200
    return time.monotonic() - began


@pytest.mark.parametrize("timeout", [5.0])
@pytest.mark.parametrize("seconds", [0.05, 0.5])
def test_viewers_who_leave_give_their_connections_back(cm, few, site, seconds) -> None:
    with closing(log_in(site)) as browser, closing(Crowd()) as crowd:
        for _ in range(3):
            views = [ask_for(site, browser, "/big")] * 10
            crowd.send_and_leave(views, seconds)
        assert browser.get("/cameras").status_code == 200


def is_served_before(asks: list[Ask], deed: Callable[[], Any]) -> bool:
    """Whether something is done long before so many requests have their answers."""
    took: list[float] = []

    def timed() -> None:
        began = time.monotonic()
        deed()
        took.append(time.monotonic() - began)

    with closing(Crowd()) as crowd:
        answers = crowd.ask(asks, (1.0, timed))
    assert {answer.status for answer in answers} == {200}
    return took[0] < (min(answer.seconds for answer in answers) - 1.0) / 2


def test_a_large_answer_streams_through(cm, site) -> None:
    with closing(log_in(site)) as browser:
        answer = browser.get("/digest").json()
    assert answer["size"] == 20_000_000
    assert answer["sha256"] == hashlib.sha256(bytes(20_000_000)).hexdigest()


@pytest.mark.parametrize(("size", "first"), [(500_000, 200), (4_000_000, 401)])
def test_a_streamed_body_is_repeated_while_it_is_small(cm, site, size, first) -> None:
    body = bytes(range(256)) * (size // 256)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 50_000):
            yield body[start : start + 50_000]

    with closing(log_in(site)) as browser:
        cm.simulator.expire_access_tokens()
        assert browser.post("/upload", content=chunks()).status_code == first
        again = browser.post("/upload", content=chunks())
    assert again.status_code == 200
    assert again.json()["length"] == len(body)


@pytest.mark.parametrize("what", ["hang", "drop", "lost"])
def test_a_token_endpoint_that_does_not_answer_is_503_and_nobody_is_logged_out(
    cm, site, what
) -> None:
    cm.simulator.settings.access_token_lifetime = 1
    cm.simulator.settings.hang_time = 5
    with closing(log_in(site)) as browser:
        cm.simulator.expire_access_tokens()
        cm.simulator.fail_token(what)
        answer = browser.get("/cameras")
        assert answer.status_code == 503
        assert "still logged in" in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        threading.Event().wait(1.1)  # the back-off of a real server runs on real time
        assert browser.get("/cameras").status_code == 200
