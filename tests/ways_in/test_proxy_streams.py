"""The proxy on real sockets: bodies flow both ways as they come, and stop when somebody leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware, proxy
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.testing import AppServer, Simulator, settings_for
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import log_in
from tests.helpers.servers import WSGIServer
from tests.helpers.world import SECRET_KEY, both_providers

pytestmark = pytest.mark.slow

RULES = ["GET /rest/v2.4/live", "POST /rest/v2.4/live"]
RULES_V3 = ["GET /live", "POST /live", "GET /feeds"]
VIDEO = "GET /media/streams/preview/multipart"
NAMED = 'attachment; filename="Caf\xe9 \u2192.mp4"'.encode()  # not allowed, and widespread
WAIT = 20.0  # seconds until a test gives up


class Upstream:
    """The simulator, and a recording that goes on when the test says so."""

    def __init__(self, provider: str) -> None:
        self.simulator = Simulator(settings_for(provider))
        self.go_on = threading.Event()
        self.arrived = threading.Event()
        self.left = threading.Event()
        self.received = b""
        self.asked: list[tuple[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/rest/v2.4/live", "/api/v3.0/live"):
            await self.simulator(scope, receive, send)
        elif scope["method"] == "POST":
            await self._upload(receive, send)
        else:
            await self._download(scope, receive, send)

    async def _upload(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            self.received += message.get("body", b"")
            if self.received:
                self.arrived.set()
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"thanks"})

    async def _download(self, scope: Scope, receive: Receive, send: Send) -> None:
        endless = b"endless" in scope["query_string"]
        broken = b"broken" in scope["query_string"]
        self.asked = scope["headers"]
        kind = b"image/jpeg" if b"picture" in scope["query_string"] else b"video/mp4"
        headers = [(b"content-type", kind), (b"content-disposition", NAMED)]
        if b"length" in scope["query_string"]:
            headers.append((b"content-length", b"900000"))
        if not endless:
            headers.append((b"content-length", b"10"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        if endless:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    self.left.set()
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 9, "more_body": True})
                    await anyio.sleep(0.01)
        last = b" last"
        if b"slow" in scope["query_string"]:
            await anyio.sleep(0.2)
            await send({"type": "http.response.body", "body": last[:1], "more_body": True})
            last = last[1:]
        await anyio.to_thread.run_sync(self.go_on.wait, WAIT)
        if broken:
            raise ConnectionError("the recording ends here")
        await send({"type": "http.response.body", "body": last})


@pytest.fixture
def upstream(provider: str) -> Upstream:
    return Upstream(provider)


@pytest.fixture
def live(provider: str) -> str:
    """The path of the recording below the proxy."""
    return "/cm/live" if provider == "eagleeye" else "/cm/rest/v2.4/live"


@pytest.fixture
def browser(side: str, provider: str, upstream: Upstream) -> Iterator[httpx2.Client]:
    """A browser that is logged in to an app with the proxy, each on a server of its own."""
    with AppServer(upstream, log_level="critical") as cm:
        options: dict[str, Any] = {
            "client_id": upstream.simulator.client_id,
            "client_secret": upstream.simulator.client_secret,
            "secret_key": SECRET_KEY,
            "base_url": cm.url,
            "provider": provider,
        }
        rules: dict[str, Any] = {
            "allow": RULES_V3 if provider == "eagleeye" else RULES,
            "media": [VIDEO],
        }
        engine = AuthEngine(**options)
        if side == "asgi":
            app: Any = make_app([Mount("/cm", CMProxy(**rules))])
            server: Any = AppServer(CMAuthMiddleware(app, engine=engine), log_level="critical")
        else:
            app = DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(**rules)})
            server = WSGIServer(CMAuthWSGIMiddleware(app, engine=engine))
        with server, httpx2.Client(base_url=server.url, timeout=WAIT) as client:
            log_in(client, upstream.simulator)
            yield client
        engine.close()


@both_providers
def test_a_recording_flows_as_it_comes(
    browser: httpx2.Client, upstream: Upstream, live: str
) -> None:
    with browser.stream("GET", live) as answer:
        assert answer.headers["content-length"] == "10"
        parts = answer.iter_raw()
        assert next(parts) == b"first"
        upstream.go_on.set()
        assert b"".join(parts) == b" last"


@both_providers
def test_an_upload_flows_as_it_comes(browser: httpx2.Client, upstream: Upstream, live: str) -> None:
    def parts() -> Iterator[bytes]:
        yield b"a" * 70_000
        assert upstream.arrived.wait(WAIT), "the first part waited for the last"
        yield b"b" * 70_000

    headers = {"Content-Length": "140000"}
    answer = browser.post(live, content=parts(), headers=headers)
    assert (answer.status_code, answer.content) == (201, b"thanks")
    assert upstream.received == b"a" * 70_000 + b"b" * 70_000


@both_providers
@pytest.mark.parametrize("query", ["endless", "endless&length", "endless&length&picture"])
def test_a_browser_that_leaves_ends_the_recording(browser, upstream: Upstream, live, query) -> None:
    with browser.stream("GET", f"{live}?{query}") as answer:
        assert next(answer.iter_raw()).startswith(b"first")
    assert upstream.left.wait(WAIT)


@both_providers
@pytest.mark.parametrize("quick", [0.0, WAIT])
def test_a_recording_that_breaks_off_does_not_look_whole(
    browser, upstream: Upstream, live, quick, monkeypatch
) -> None:
    monkeypatch.setattr(proxy, "_QUICK", quick)
    upstream.go_on.set()
    with (
        pytest.raises(httpx2.RemoteProtocolError),
        browser.stream("GET", f"{live}?broken") as answer,
    ):
        answer.read()


@both_providers
@pytest.mark.parametrize("quick", [0.0, WAIT])
def test_a_slow_picture_flows_as_it_comes(
    browser: httpx2.Client, upstream: Upstream, live: str, quick: float, monkeypatch
) -> None:
    monkeypatch.setattr(proxy, "_QUICK", quick)
    with browser.stream("GET", f"{live}?picture&slow") as answer:
        parts, received = answer.iter_raw(), b""
        while len(received) < 6:
            received += next(parts)
        assert received == b"first "
        upstream.go_on.set()
        assert b"".join(parts) == b"last"


@both_providers
def test_a_picture_that_breaks_off_at_once_is_a_502(
    browser: httpx2.Client, upstream: Upstream, live: str, monkeypatch
) -> None:
    monkeypatch.setattr(proxy, "_HELD_FOR", WAIT)  # however slow this machine is
    upstream.go_on.set()
    answer = browser.get(f"{live}?picture&broken")
    assert answer.status_code == 502
    assert answer.json()["title"] == "The API cannot be reached"
    assert browser.get(f"{live}?picture").content == b"first last"
    answer = browser.head(f"{live}?picture")
    assert (answer.status_code, answer.headers["content-length"]) == (200, "10")


@both_providers
def test_headers_that_are_no_ascii_pass_as_they_are(browser, upstream: Upstream, live) -> None:
    upstream.go_on.set()
    answer = browser.get(live, headers=[(b"if-none-match", b'"\xe9"')])
    assert (answer.status_code, answer.content) == (200, b"first last")
    assert {name.lower(): value for name, value in answer.headers.raw}[
        b"content-disposition"
    ] == NAMED
    assert dict(upstream.asked)[b"if-none-match"] == b'"\xe9"'


@pytest.mark.parametrize("provider", ["eagleeye"])
def test_a_live_view_flows_picture_by_picture(browser: httpx2.Client, upstream: Upstream) -> None:
    listed = browser.get("/cm/feeds?deviceId=000007d1&type=preview&include=multipartUrl")
    video = httpx2.URL(listed.json()["results"][0]["multipartUrl"])
    path = f"/cm/{video.netloc.decode()}{video.raw_path.decode()}&resolution=64x36"
    seen = b""
    with browser.stream("GET", path) as answer:
        assert answer.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        for part in answer.iter_raw():
            seen += part
            if seen.count(b"--frame\r\n") == 3:
                break
    assert seen.count(b"\xff\xd8") >= 2  # JPEG's start of an image
    [call] = upstream.simulator.calls("/media/streams/preview/multipart")
    assert call.headers["authorization"].startswith("Bearer ")
    assert call.headers["host"] == video.netloc.decode()
