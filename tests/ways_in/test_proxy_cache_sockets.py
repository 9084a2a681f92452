"""What the proxies keep, on real sockets: many viewers, viewers who leave, odd bodies."""

from __future__ import annotations

import gzip
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.testing import AppServer, Simulator, settings_for
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import ANNA, BOB, log_in
from tests.helpers.servers import WSGIServer, serving, until
from tests.helpers.world import SECRET_KEY, both_providers
from tests.security.held import WSGI, HeldSite

pytestmark = pytest.mark.slow

SNAPSHOT = "/rest/v2.4/cameras/2001/snapshot"
RULES = ["GET /rest/v2.4/cameras/*/snapshot", "GET /odd/*"]
CACHE = {"/rest/v2.4/cameras/*/snapshot": 30, "/odd/*": 30}
SNAPSHOT_V3 = "/media/liveImage.jpeg"
RULES_V3, CACHE_V3 = [f"GET {SNAPSHOT_V3}", "GET /odd/*"], {SNAPSHOT_V3: 30, "/odd/*": 30}
WAIT = 30.0  # seconds until a test gives up


class Front(socketserver.ThreadingTCPServer):
    """A server before the simulator that answers under /odd byte by byte as a test says.

    Attributes:
        answer: what the socket of a request is given to.
        calls: the number of requests under /odd.
    """

    daemon_threads = allow_reuse_address = True

    def __init__(self, simulator: str) -> None:
        self.simulator = urlsplit(simulator).netloc.split(":")
        self.answer: Callable[[socket.socket], None] = lambda _: None
        self.calls = 0
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(socketserver.BaseRequestHandler):
    server: Front

    def handle(self) -> None:
        begin = self.request.recv(65_536)
        if begin.startswith((b"GET /odd/", b"GET /api/v3.0/odd/")):
            self.server.calls += 1
            with suppress(OSError):  # it may have hung up
                self.server.answer(self.request)
            return
        host, port = self.server.simulator
        with socket.create_connection((host, int(port))) as there:
            there.sendall(begin)
            back = threading.Thread(target=_shovel, args=(there, self.request), daemon=True)
            back.start()
            _shovel(self.request, there)
            back.join()


def _shovel(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while part := one.recv(65_536):
            other.sendall(part)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


class Site:
    """An application with a proxy that keeps pictures, on a real socket."""

    def __init__(self, side: str, provider: str, stack: ExitStack) -> None:
        self._stack = stack
        self.simulator = Simulator(settings_for(provider))
        is_v3 = provider == "eagleeye"
        self.snapshot = f"{SNAPSHOT_V3}?deviceId=000007d1" if is_v3 else SNAPSHOT
        rules, cache = (RULES_V3, CACHE_V3) if is_v3 else (RULES, CACHE)
        cm = stack.enter_context(AppServer(self.simulator, log_level="critical"))
        self.front = stack.enter_context(Front(cm.url))
        stack.enter_context(serving(self.front))
        engine = AuthEngine(
            client_id=self.simulator.client_id,
            client_secret=self.simulator.client_secret,
            secret_key=SECRET_KEY,
            base_url=f"http://127.0.0.1:{self.front.server_address[1]}",
            provider=provider,
            timeout=2.0,
        )
        if side == "asgi":
            app: Any = make_app([Mount("/cm", CMProxy(allow=rules, cache=cache))])
            server: Any = AppServer(CMAuthMiddleware(app, engine=engine), log_level="critical")
        else:
            proxy = CMWSGIProxy(allow=rules, cache=cache)
            app = DispatcherMiddleware(make_wsgi_app(), {"/cm": proxy})
            server = WSGIServer(CMAuthWSGIMiddleware(app, engine=engine))
            stack.callback(engine.close)
        self.url = stack.enter_context(server).url

    def browser(self) -> httpx2.Client:
        """Return a browser with a session of its own."""
        client = httpx2.Client(base_url=self.url, timeout=WAIT)
        log_in(self._stack.enter_context(client), self.simulator)
        return client


@pytest.fixture
def site(side: str, provider: str) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(side, provider, stack)


@both_providers
def test_twenty_viewers_cost_one_call_where_only_one_is_allowed(site: Site) -> None:
    site.simulator.settings.snapshot_limit = 1
    site.simulator.settings.snapshot_latency = 1.0
    browsers = [site.browser() for _ in range(4)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda browser: browser.get(f"/cm{site.snapshot}"), browsers * 5))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(site.simulator.calls(SNAPSHOT) + site.simulator.calls(f"*{SNAPSHOT_V3}")) == 1


@both_providers
def test_a_viewer_who_leaves_takes_the_picture_from_nobody(site: Site) -> None:
    go_on = threading.Event()

    def answer(connection: socket.socket) -> None:
        go_on.wait(WAIT)
        connection.sendall(_head(7) + b"picture")

    site.front.answer = answer
    leaving, staying = site.browser(), site.browser()
    host, port = urlsplit(site.url).netloc.split(":")
    cookies = "; ".join(f"{name}={value}" for name, value in leaving.cookies.items())
    with socket.create_connection((host, int(port))) as connection:
        lines = f"GET /cm/odd/x HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {cookies}\r\n\r\n"
        connection.sendall(lines.encode())
        until(lambda: site.front.calls == 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(staying.get, "/cm/odd/x")
        time.sleep(0.3)
        go_on.set()
        assert waiting.result(WAIT).content == b"picture"
    assert site.front.calls == 1


@both_providers
@pytest.mark.parametrize("length", [None, 100])
def test_a_picture_that_may_have_broken_off_is_not_kept(site: Site, length: int | None) -> None:
    site.front.answer = lambda connection: connection.sendall(_head(length) + b"pict")
    browser = site.browser()
    for _ in range(2):
        if length is None:  # nobody can tell
            assert browser.get("/cm/odd/x").content == b"pict"
        else:
            assert browser.get("/cm/odd/x").status_code == 502
    assert site.front.calls == 2
    site.front.answer = lambda connection: connection.sendall(_head(7) + b"picture")
    assert browser.get("/cm/odd/y").content == b"picture"


_BUSY = gzip.compress(b"busy")
FORMS = {
    "gzip": (b"503 Busy\r\nContent-Encoding: gzip\r\nContent-Length: %d" % len(_BUSY), _BUSY),
    "no length": (b"503 Busy\r\nVary: *\r\nConnection: close", b"busy"),
    "no length, 404": (b"404 Not Found\r\nConnection: close", b"busy"),
    "no length, 200": (b"200 OK\r\nConnection: close", b"busy"),
    "empty": (b"204 No Content", b""),
}


@both_providers
@pytest.mark.parametrize("form", FORMS)
def test_an_answer_of_whatever_form_goes_to_all_who_wait_and_ends_no_keeping(
    site: Site, form: str
) -> None:
    head, body = FORMS[form]
    go_on = threading.Event()

    def answer(connection: socket.socket) -> None:
        go_on.wait(WAIT)
        connection.sendall(b"HTTP/1.1 %s\r\n\r\n%s" % (head, body))

    site.front.answer = answer
    browsers = [site.browser() for _ in range(2)]
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(browser.get, "/cm/odd/x") for browser in browsers * 3]
        until(lambda: site.front.calls)
        time.sleep(0.3)
        go_on.set()
        answers = [one.result(WAIT) for one in waiting]
    assert {(a.status_code, a.content) for a in answers} == {
        (int(head[:3]), b"busy" if body else b"")
    }
    assert site.front.calls == 1
    site.front.answer = lambda connection: connection.sendall(_head(7) + b"picture")
    for _ in range(2):
        assert browsers[0].get("/cm/odd/x").content == b"picture"
    assert site.front.calls == 2


@both_providers
def test_a_picture_that_never_ends_holds_its_viewers_for_a_while_only(site: Site) -> None:

    def drip(connection: socket.socket) -> None:
        connection.sendall(_head(1000))
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.2)

    site.front.answer = drip
    browsers = [site.browser() for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda browser: browser.get("/cm/odd/x"), browsers * 2))
    assert [answer.status_code for answer in answers] == [504] * 4
    assert site.front.calls == 1


def _head(length: int | None) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: image/jpeg", "Connection: close"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


class Numbered:
    """The simulator, but for one camera's snapshots, which are numbered as they are made."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.made = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (SNAPSHOT, f"/api/v3.0{SNAPSHOT_V3}"):
            await self.simulator(scope, receive, send)
            return
        self.made += 1
        headers = [(b"content-type", b"image/jpeg"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"picture %d" % self.made})


@pytest.fixture(params=["uvicorn", *WSGI])
def held(request: pytest.FixtureRequest, provider: str) -> Iterator[HeldSite]:
    with ExitStack() as stack:
        yield HeldSite(request.param, stack, provider=provider)


@pytest.fixture
def picture(provider: str) -> str:
    """Where a camera's picture is below the proxy."""
    return f"/cm{SNAPSHOT_V3}?deviceId=000007d1" if provider == "eagleeye" else f"/cm{SNAPSHOT}"


@both_providers
def test_a_picture_that_a_server_keeps_has_an_age_and_answers_conditions(
    held: HeldSite, picture: str
) -> None:
    anna = held.user()
    new = anna.get(picture)
    assert (new.status_code, new.headers["content-type"]) == (200, "image/jpeg")
    assert "age" not in new.headers
    tag, changed = new.headers["etag"], new.headers["last-modified"]
    until(lambda: int(anna.get(picture).headers["age"]) >= 1)
    again = held.user().get(picture)
    assert again.content == new.content
    assert 1 <= int(again.headers["age"]) <= 10
    assert (again.headers["etag"], again.headers["last-modified"]) == (tag, changed)
    for condition, status in (
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": '"another"'}, 200),
        ({"If-Modified-Since": changed}, 304),
        ({"If-Modified-Since": "Wed, 01 Jan 2025 00:00:00 GMT"}, 200),
    ):
        answer = anna.get(picture, headers=condition)
        assert (answer.status_code, answer.headers["etag"]) == (status, tag), condition
        assert answer.content == (b"" if status == 304 else new.content)
        assert "age" in answer.headers
    path = SNAPSHOT_V3 if SNAPSHOT_V3 in picture else SNAPSHOT
    assert len(held.simulator.calls(f"*{path}")) == 1


@both_providers
def test_a_picture_that_a_server_keeps_is_for_one_account_while_somebody_is_logged_in(
    held: HeldSite, picture: str
) -> None:
    held.simulator.settings.shared_access_token = False  # or one logout ends both sessions
    pictures = Numbered(held.simulator)
    held.calls.simulator = pictures  # type: ignore[assignment]
    anna, twin, bob = held.user(ANNA), held.user(ANNA), held.user(BOB)

    def seen(user: httpx2.Client) -> tuple[str, bool]:
        answer = user.get(picture)
        return answer.text, "age" in answer.headers

    assert (seen(anna), seen(bob)) == (("picture 1", False), ("picture 2", False))
    for _ in range(2):
        assert {seen(anna), seen(twin)} == {("picture 1", True)}
        assert seen(bob) == ("picture 2", True)
    assert anna.post("/auth/logout").status_code == 303
    assert seen(twin) == ("picture 1", True)
    assert twin.post("/auth/logout").status_code == 303
    assert anna.get(picture).status_code in (302, 401)
    assert seen(held.user(ANNA)) == ("picture 3", False)
    assert seen(bob) == ("picture 2", True)
    assert pictures.made == 3
