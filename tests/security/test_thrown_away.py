"""Answers that are thrown away: how much of them is read, and for how long."""

from __future__ import annotations

import gzip
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2
import pytest
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.testing import AppServer, Simulator, settings_for
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import log_in
from tests.helpers.servers import Forwarder, WSGIServer, until
from tests.helpers.world import CM, SECRET_KEY, MakeWorld, World, both_providers

pytestmark = pytest.mark.slow

CAMERAS = ("/rest/v2.4/cameras", "/api/v3.0/cameras")
USER = ("/rest/v2.3/users/self", "/api/v3.0/users/self")
LOGOUT = ("/rest/v2.0/users/self/tokens/current", "/oauth2/revoke")
TIMEOUT = 1.5  # seconds, of the middleware's
WAIT = 20.0  # seconds until a test gives up
BLOCK = bytes(65_536)
MOST = 12_000_000  # bytes that fit into the buffers of two sockets, with room to spare
PART, MOST_READ = 4_096, 65_536  # bytes


class Flood:
    """The simulator, but for paths whose 401 has no end, or comes a byte at a time.

    Attributes:
        shape: of the bodies: ``endless``, ``long`` (announced and never sent), ``drip``, ``silent``
            or ``short``.
        refused: gives the status of an answer to a path and a token; 0 for the simulator's own.
    """

    def __init__(self, shape: str, provider: str) -> None:
        self.simulator = Simulator(settings_for(provider))
        self.shape = shape
        self.refused: Callable[[str, bytes], int] = lambda *_: 0
        self.sent = 0
        self.answers = 0
        self.left = threading.Semaphore(0)
        self.peers: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.simulator(scope, receive, send)
            return
        bearer = dict(scope["headers"]).get(b"authorization", b"")
        status = self.refused(scope["path"], bearer)
        if scope["path"].startswith(("/rest/", "/api/")):
            self.peers.append(scope["client"])
        if not status:
            await self.simulator(scope, receive, send)
            return
        self.answers += 1
        headers = [(b"content-type", b"text/plain")]
        if self.shape == "long":
            headers.append((b"content-length", b"1000000000000"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if self.shape == "short":
            await send({"type": "http.response.body", "body": b"no"})
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, receive, group)
            if self.shape in ("long", "silent"):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await anyio.sleep_forever()
            while True:
                block = BLOCK if self.shape == "endless" else b"x"
                await send({"type": "http.response.body", "body": block, "more_body": True})
                self.sent += len(block)
                await anyio.sleep(0 if self.shape == "endless" else 0.1)

    async def _watch(self, receive: Receive, group: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left.release()
        group.cancel_scope.cancel()


class Frames(Forwarder):
    """Hands everything on, but answers one request itself, in long chunks with one byte each.

    Attributes:
        answered_here: what the request begins with, and the status of its answer.
        sent: bytes of the answer.
        left: set when the other side has closed the connection.
    """

    answered_here = (b"", 0)
    sent = 0

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.left = threading.Event()

    def _pump(self, source: Any, target: Any, passed: Any) -> None:
        if passed is bytes:  # from the client
            source = _Heard(source, self._answer)
        super()._pump(source, target, passed)

    def _answer(self, client: Any, data: bytes) -> bool:
        begin, status = self.answered_here
        if not begin or not data.startswith(begin):
            return False
        self.answered_here = b"", 0
        try:
            client.sendall(b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
            while self.sent < 3 * MOST:
                client.sendall(b"1;" + b"e" * 16_000 + b"\r\n \r\n")
                self.sent += 16_000
        except OSError:
            self.left.set()
        return True


class _Heard:
    """A socket whose data somebody else may take; then it looks closed."""

    def __init__(self, client: Any, take: Callable[[Any, bytes], bool]) -> None:
        self._client, self._take = client, take

    def recv(self, size: int) -> bytes:
        data: bytes = self._client.recv(size)
        return b"" if self._take(self._client, data) else data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class Site:
    """An application with a proxy, on a real socket, whose CameraManager is a `Flood`.

    Attributes:
        front: what its calls pass through, for the shape ``frames``.
    """

    front: Any = None

    def __init__(self, side: str, flood: Flood, stack: ExitStack) -> None:
        self.side, self.flood = side, flood
        provider = flood.simulator.settings.provider
        self.cameras = "/cameras" if provider == "eagleeye" else CAMERAS[0]
        cm = stack.enter_context(AppServer(flood, log_level="critical"))
        if flood.shape == "frames":
            self.front = stack.enter_context(Frames(urlsplit(cm.url).port or 0))
        self.engine = AuthEngine(
            client_id=flood.simulator.client_id,
            client_secret=flood.simulator.client_secret,
            secret_key=SECRET_KEY,
            base_url=f"http://127.0.0.1:{self.front.listens_at}" if self.front else cm.url,
            provider=provider,
            timeout=TIMEOUT,
        )
        rules = [f"GET {self.cameras}"]
        if side == "asgi":
            app: Any = make_app([Mount("/cm", CMProxy(allow=rules))])
            server: Any = AppServer(CMAuthMiddleware(app, engine=self.engine), log_level="critical")
        else:
            app = DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(allow=rules)})
            server = WSGIServer(CMAuthWSGIMiddleware(app, engine=self.engine))
            stack.callback(self.engine.close)
        stack.enter_context(server)
        self.browser = stack.enter_context(httpx2.Client(base_url=server.url, timeout=WAIT))
        log_in(self.browser, flood.simulator)

    def by_client(self) -> int:
        return self.browser.get("/cameras").status_code

    def by_proxy(self) -> int:
        return self.browser.get(f"/cm{self.cameras}").status_code

    def by_handle(self) -> int:
        handle = self.browser.get("/export").text
        if self.side == "wsgi":
            return self.engine.sync_client_for(handle).get(self.cameras).status_code

        async def ask() -> int:
            client = await self.engine.client_for(handle)
            status = (await client.get(self.cameras)).status_code
            await self.engine.close()
            return status

        return anyio.run(ask)


@pytest.fixture
def make_site(side: str, provider: str) -> Iterator[Callable[[str], Site]]:
    with ExitStack() as stack:
        yield lambda shape: Site(side, Flood(shape, provider), stack)


def bearer_of_the_login(site: Site) -> bytes:
    [call] = [call for call in site.flood.simulator.requests if call.path in USER]
    return call.headers["authorization"].encode()


def refuse_the_first_token(site: Site) -> None:
    """Answer 401 to the token of the login, and to no later one."""
    old = bearer_of_the_login(site)
    site.flood.refused = lambda path, bearer: 401 * (path in CAMERAS and bearer == old)


@both_providers
@pytest.mark.parametrize("shape", ["endless", "long", "drip", "silent"])
@pytest.mark.parametrize("way", ["by_client", "by_proxy", "by_handle"])
def test_a_401_without_end_is_left_and_the_request_is_sent_again(make_site, shape, way) -> None:
    """59: 64 kB of it are read at most, within the timeout, and its connection is closed."""
    site = make_site(shape)
    refuse_the_first_token(site)
    begin = time.monotonic()
    assert getattr(site, way)() == 200
    assert time.monotonic() - begin < WAIT / 2
    assert site.flood.answers == 1
    assert site.flood.left.acquire(timeout=WAIT), "the connection was not closed"
    assert site.flood.sent < MOST
    assert len(site.flood.simulator.token_calls("refresh_token")) == 1


@both_providers
@pytest.mark.parametrize("way", ["by_client", "by_proxy", "by_handle"])
def test_what_is_around_the_chunks_of_a_401_counts_too(make_site, way) -> None:
    """59: a chunk may have an extension that is longer than what it carries (RFC 9112 §7.1.1)."""
    site = make_site("frames")
    site.front.answered_here = b"GET ", 401
    assert getattr(site, way)() == 200
    assert site.front.left.wait(WAIT), "the connection was not closed"
    assert site.front.answered_here == (b"", 0)


@both_providers
@pytest.mark.parametrize("status", [500, 200])
def test_what_is_around_the_chunks_of_a_token_answer_counts_too(make_site, status) -> None:
    """59, 67: it is an outage, and the next attempt succeeds."""
    site = make_site("frames")
    site.flood.simulator.expire_access_tokens()
    site.front.answered_here = b"POST ", status
    assert site.by_client() == 503
    assert site.front.left.wait(WAIT), "the connection was not closed"
    until(lambda: site.by_client() == 200)


@both_providers
def test_a_short_401_gives_its_connection_back(make_site) -> None:
    """59: nothing is closed without a need: the next request goes by the same connection."""
    site = make_site("short")
    assert site.by_client() == 200
    refuse_the_first_token(site)
    before = len(site.flood.peers)
    assert site.by_client() == 200
    assert site.flood.answers == 1
    assert len(set(site.flood.peers[before - 1 :])) == 1


@both_providers
@pytest.mark.parametrize("shape", ["endless", "long"])
def test_a_refusal_to_the_middleware_itself_is_known_by_its_status(make_site, shape) -> None:
    """59: whatever follows it. The token is dead, so a 403 is not the user's fault."""
    site = make_site(shape)
    old = bearer_of_the_login(site)
    shapes = {**dict.fromkeys(CAMERAS, 403), **dict.fromkeys(USER, 401)}
    site.flood.refused = lambda path, bearer: shapes.get(path, 0) * (bearer == old)
    assert site.by_client() == 200
    assert site.flood.answers == 2
    until(lambda: site.flood.left.acquire(blocking=False))
    assert site.flood.sent < 2 * MOST


@both_providers
@pytest.mark.parametrize("shape", ["endless", "long", "drip"])
def test_a_logout_does_not_wait_for_the_end_of_an_answer(make_site, shape) -> None:
    """59: nor does it read it all."""
    site = make_site(shape)
    site.flood.refused = lambda path, _: 502 * (path in LOGOUT)
    begin = time.monotonic()
    assert site.browser.post("/auth/logout").status_code == 303
    assert time.monotonic() - begin < WAIT / 2
    assert site.flood.left.acquire(timeout=WAIT)
    assert site.flood.sent < MOST


class Counted(httpx2.AsyncByteStream, httpx2.SyncByteStream):
    """A body without an end, in small parts.

    Attributes:
        read: bytes of it that were asked for.
    """

    def __init__(self, body: bytes) -> None:
        self._parts = [body[at : at + PART] for at in range(0, len(body), PART)]
        self.read = 0
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            for part in self._parts:
                assert not self.is_closed
                self.read += len(part)
                yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part

    async def aclose(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


BODIES = {
    "plain": (b"x" * PART, {}),
    "announced": (b"x" * PART, {"Content-Length": "1000000000000"}),
    # Both have more than 64 kB as they are sent; the second becomes 200 times as large.
    "gzip": (gzip.compress(secrets.token_bytes(80_000), 1), {"Content-Encoding": "gzip"}),
    "bomb": (gzip.compress(bytes(20_000_000), 1), {"Content-Encoding": "gzip"}),
    "no gzip": (b"x" * PART, {"Content-Encoding": "gzip"}),
}


def answer_once(
    world: World, method: str, paths: tuple[str, ...], status: int, body: str
) -> Counted:
    """Let the next call of the API to a path get an answer whose bytes are counted."""
    content, headers = BODIES[body]
    counted, is_due = Counted(content), [True]
    origins = {CM, *world.sim.origins(CM)}
    there = world.net.apps[CM]

    def instead(request: httpx2.Request) -> httpx2.Response | None:
        if request.method != method or request.url.path not in paths or not is_due:
            return None
        is_due.clear()
        return httpx2.Response(status, headers=headers, stream=counted)

    class Instead:
        async def call_async(self, request: httpx2.Request) -> httpx2.Response:
            return instead(request) or await there.call_async(request)

        def call(self, request: httpx2.Request) -> httpx2.Response:
            return instead(request) or there.call(request)

    world.net.apps.update(dict.fromkeys(origins, Instead()))
    return counted


@pytest.mark.anyio
@both_providers
@pytest.mark.parametrize("body", BODIES)
async def test_64_kb_of_a_401_are_read_and_no_part_more(make_world: MakeWorld, body: str) -> None:
    """59: as they were sent: nothing is decoded. What is announced to be longer is not begun."""
    world = make_world()
    anna = await world.login()
    counted = answer_once(world, "GET", CAMERAS, 401, body)
    assert (await anna.get("/cameras")).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1
    most = 0 if body == "announced" else MOST_READ
    assert most - PART <= counted.read <= most
    assert counted.is_closed


@pytest.mark.anyio
@both_providers
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("what", ["logout", "refresh"])
async def test_64_kb_of_a_refusal_to_the_middleware_are_read(
    make_world: MakeWorld, body: str, what: str, provider: str
) -> None:
    """59: whatever they decode to."""
    world = make_world()
    anna = await world.login()
    if what == "logout":
        method = "POST" if provider == "eagleeye" else "DELETE"
        counted = answer_once(world, method, LOGOUT, 502, body)
    else:
        counted = answer_once(world, "POST", (world.token_path,), 503, body)
    if what == "logout":
        assert (await anna.post("/auth/logout")).status_code == 303
    else:
        world.clock.tick(world.lifetime)
        assert (await anna.get("/")).status_code == 503
    assert counted.read <= MOST_READ
    assert counted.is_closed
