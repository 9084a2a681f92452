"""How many streams one session may have, and what happens when no connection is left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx2
import pytest
from starlette.routing import Mount
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware, ConfigError
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.runtime import http as transports
from cm_auth_middleware.testing import AppServer
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import log_in
from tests.helpers.servers import WSGIServer, served, until
from tests.helpers.world import JSON, SECRET_KEY, both_providers
from tests.ways_in.test_proxy_streams import Upstream

from .held import THREADS, WSGI, Burst

pytestmark = pytest.mark.slow

RULES = ["GET /rest/v2.4/live", "GET /rest/v2.4/cameras"]
RULES_V3 = ["GET /live", "GET /cameras"]
WAIT = 30.0  # seconds until a test gives up
FEW = THREADS // 2


class Site:
    """An application with a proxy on a real socket, and its browsers.

    Args:
        side: asgi (uvicorn) or wsgi (werkzeug), or a server of `WSGI` with `THREADS`, where a
            session has `FEW` streams.
        options: of the proxy.
    """

    def __init__(self, side: str, provider: str, stack: ExitStack, **options: int) -> None:
        self.stack = stack
        self.upstream = Upstream(provider)
        self.root = "/cm" if provider == "eagleeye" else "/cm/rest/v2.4"
        self.live, self.cameras = f"{self.root}/live?endless", f"{self.root}/cameras"
        rules = RULES_V3 if provider == "eagleeye" else RULES
        cm = stack.enter_context(AppServer(self.upstream, log_level="critical"))
        given: dict[str, Any] = {
            "client_id": self.upstream.simulator.client_id,
            "client_secret": self.upstream.simulator.client_secret,
            "secret_key": SECRET_KEY,
            "base_url": cm.url,
            "provider": provider,
            "timeout": 2.0,
        }
        if side in WSGI:
            app: Any = f"{__name__}:application"
            options = {f"CM_AUTH_{name.upper()}": str(value) for name, value in given.items()}
            if side != "gunicorn":
                app, options = _wsgi_app(**given), {}
            port = stack.enter_context(served(side, app, threads=THREADS, **options))
            self.url = f"http://127.0.0.1:{port}"
            return
        engine = AuthEngine(**given)
        if side == "asgi":
            app = make_app([Mount("/cm", CMProxy(allow=rules, **options))])
            server: Any = AppServer(CMAuthMiddleware(app, engine=engine), log_level="critical")
        else:
            proxy = CMWSGIProxy(allow=rules, **options)
            app = DispatcherMiddleware(make_wsgi_app(), {"/cm": proxy})
            server = WSGIServer(CMAuthWSGIMiddleware(app, engine=engine))
            stack.callback(engine.close)
        self.url = stack.enter_context(server).url

    def browser(self) -> httpx2.Client:
        """A browser with a session of its own."""
        client = httpx2.Client(
            base_url=self.url, timeout=WAIT, limits=httpx2.Limits(max_connections=200)
        )
        log_in(self.stack.enter_context(client), self.upstream.simulator)
        return client

    def view(self, browser: httpx2.Client) -> ExitStack:
        """Open a live view and see its first picture; to be closed."""
        with ExitStack() as stack:
            answer = stack.enter_context(browser.stream("GET", self.live))
            assert answer.status_code == 200, answer.read()
            parts = answer.iter_raw()
            assert next(parts).startswith(b"first")
            stack.callback(parts.close)  # which keeps it: dropped, it ends the stream
            view = stack.pop_all()
        self.stack.callback(view.close)
        return view


def _wsgi_app(**given: Any) -> CMAuthWSGIMiddleware:
    proxy = CMWSGIProxy(allow=[*RULES, *RULES_V3], streams_per_session=FEW)
    return CMAuthWSGIMiddleware(DispatcherMiddleware(make_wsgi_app(), {"/cm": proxy}), **given)


def __getattr__(name: str) -> Any:
    """What gunicorn names by ``module:variable``: its options come from the environment."""
    if name == "application":
        return _wsgi_app()
    raise AttributeError(name)


@pytest.fixture
def make_site(side: str, provider: str) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:
        yield lambda **options: Site(side, provider, stack, **options)


@both_providers
@pytest.mark.parametrize("options", [{}, {"streams_per_session": 3}])
def test_one_session_has_so_many_streams_and_others_are_served(make_site, options) -> None:
    """60: one more is a 429; it goes again as soon as one of them ends."""
    site = make_site(**options)
    anna, bob = site.browser(), site.browser()
    views = [site.view(anna) for _ in range(options.get("streams_per_session", 32))]
    for path in (site.live, site.cameras):
        with anna.stream("GET", path) as answer:
            assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
    assert bob.get(site.cameras).status_code == 200
    site.view(bob)
    assert anna.get("/cameras").status_code == 200  # the limit is the proxy's
    views.pop().close()
    until(lambda: anna.get(site.cameras).status_code == 200)


@pytest.mark.parametrize("provider", ["cameramanager", "eagleeye"])
@pytest.mark.parametrize("server", WSGI)
def test_with_fewer_streams_than_threads_one_session_leaves_threads_to_others(
    server, provider
) -> None:
    """60: each stream keeps one of a server's threads, and the default is more than four."""
    with ExitStack() as stack:
        site = Site(server, provider, stack)
        anna, bob = site.browser(), site.browser()
        views = [site.view(anna) for _ in range(FEW)]
        with anna.stream("GET", site.live) as answer:
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) >= 1
        for browser in (bob, anna):
            assert browser.get("/").status_code == 200
        assert bob.get(site.cameras).status_code == 200
        views.append(site.view(bob))
        assert bob.get("/").status_code == 200
        for view in views:
            view.close()


@both_providers
@pytest.mark.parametrize(
    ("server", "count", "most"),
    [("asgi", 1_000, 32), *((server, 200, FEW) for server in WSGI)],
)
def test_hundreds_of_streams_of_one_session_leave_a_server_to_others(
    server, provider, count, most
) -> None:
    """60: asked for at one time, each by a connection of its own."""
    with ExitStack() as stack:
        site = Site(server, provider, stack)
        anna, bob = site.browser(), site.browser()
        burst = Burst(anna, [site.live] * count)
        stack.callback(burst.hang_up)
        until(lambda: burst.answered() == count - most)
        for path in ("/", site.cameras):
            assert bob.get(path).status_code == 200
        view = site.view(bob)
        assert anna.get(site.cameras).status_code == 429
        assert burst.answered() == count - most
        view.close()
        burst.hang_up()
        answers = burst.answers()
        assert answers.count((429, "1")) == count - most
        assert answers.count((200, "")) == most
        until(lambda: anna.get(site.cameras).status_code == 200)
        site.view(anna).close()


@both_providers
def test_whatever_becomes_of_a_request_it_counts_no_longer(make_site) -> None:
    """60: else a session would be locked out by and by."""
    site = make_site(streams_per_session=1)
    anna = site.browser()
    simulator = site.upstream.simulator

    def counts_no_longer() -> None:  # the browser may have it all before the proxy is done
        until(lambda: anna.head(site.cameras).status_code == 200)
        until(lambda: anna.get(site.cameras).status_code == 200)

    for _ in range(3):
        counts_no_longer()
        until(lambda: anna.get(f"{site.root}/users").status_code == 404)
        counts_no_longer()
        simulator.fail_api(503)
        until(lambda: anna.get(site.cameras).status_code == 503)
        counts_no_longer()
        simulator.fail_api("drop")
        until(lambda: anna.get(site.cameras).status_code == 502)
        counts_no_longer()
        until(lambda: not _is_busy(anna, site.live))
    counts_no_longer()


def _is_busy(browser: httpx2.Client, live: str) -> bool:
    with browser.stream("GET", live) as answer:
        return answer.status_code == 429


def test_a_response_that_the_server_forgets_counts_no_longer() -> None:
    """60: PEP 3333 has servers close it, but not all do."""
    proxy = CMWSGIProxy(allow=RULES, streams_per_session=1)
    answer = httpx2.Response(200, stream=httpx2.ByteStream(b""))
    session: Any = type("Session", (), {"record_id": "x"})()
    from cm_auth_middleware.proxy import _RefusedError, _StreamedBody

    body = _StreamedBody(answer, answer.iter_raw(), proxy.enter(session))
    with pytest.raises(_RefusedError):
        proxy.enter(session)
    del body
    gc.collect()
    proxy.enter(session)()
    assert not proxy._under_way


def test_at_least_one_stream_has_to_be_allowed() -> None:
    """60: and the message names the option."""
    for proxy in (CMProxy, CMWSGIProxy):
        with pytest.raises(ConfigError, match="streams_per_session"):
            proxy(allow=RULES, streams_per_session=0)


@both_providers
@pytest.mark.parametrize("is_proxied", [False, True])
def test_when_no_connection_is_left_it_is_503(make_site, monkeypatch, is_proxied: bool) -> None:
    """60: a handler's call and the proxy say so alike, and nobody is logged out."""
    monkeypatch.setattr(transports, "LIMITS", httpx2.Limits(max_connections=4))
    site = make_site()
    path = site.cameras if is_proxied else "/cameras"
    anna, bob = site.browser(), site.browser()
    views = [site.view(anna) for _ in range(4)]
    answer = bob.get(path, headers=JSON)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    for view in views:
        view.close()
    until(lambda: bob.get(path).status_code == 200)


@both_providers
def test_many_at_once_are_counted_one_by_one(make_site) -> None:
    """60: threads that come together are not counted as one."""
    site = make_site(streams_per_session=5)
    anna = site.browser()
    statuses: list[int] = []
    go = threading.Event()

    def view() -> None:
        with anna.stream("GET", site.live) as answer:
            statuses.append(answer.status_code)
            go.wait(WAIT)

    threads = [threading.Thread(target=view) for _ in range(30)]
    for thread in threads:
        thread.start()
    until(lambda: len(statuses) == 30)
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 5 + [429] * 25
