"""Connections that last, and clients that a handler keeps: they end with their session."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx2
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.websockets import WebSocket, WebSocketDisconnect

from cm_auth_middleware import (
    MemoryStore,
    SessionDataError,
    SessionExpiredError,
    StoreError,
    UnavailableError,
    client,
)
from cm_auth_middleware.auth import connections
from tests.helpers.apps import make_app
from tests.helpers.world import World, both_providers

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY", 0.05)


@pytest.fixture(params=["logout", "logout_user", "idle", "allow"])
def end(request: pytest.FixtureRequest) -> str:
    """The ways in which a session ends."""
    return str(request.param)


async def end_session(world: World, cookie: str, how: str) -> None:
    if how == "logout":
        answer = await world.browser(Cookie=f"cm_auth={cookie}").post("/auth/logout")
        assert answer.status_code == 303
    elif how == "logout_user":
        await world.on_its_side(lambda: world.engine.logout_user(world.user_id()))
    elif how == "idle":
        world.clock.tick(8 * 86_400)
    else:
        world.clock.tick(1000)  # for the next look to read the user anew
        world.admitted.clear()


async def logged_in(make_world: Any, app: Any = None, **options: Any) -> tuple[World, str]:
    admitted = {"anna@example.com"}
    world = make_world(app=app, allow=lambda user: user["email"] in admitted, **options)
    world.admitted = admitted
    browser = await world.login()
    return world, browser.named("cm_auth")[0]


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - what is waited for tells nobody
        await anyio.sleep(0.01)


class Connection:
    """One connection to an ASGI app: what it was sent, and what the browser may still say."""

    def __init__(self, world: World, cookie: str, kind: str = "http") -> None:
        self.world = world
        self.sent: list[dict[str, Any]] = []
        self._said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.scope = {
            "type": kind,
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "scheme": "ws" if kind == "websocket" else "http",
            "method": "GET",
            "path": "/lasting",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost:8000"), (b"cookie", f"cm_auth={cookie}".encode())],
        }

    def say(self, **message: Any) -> None:
        self._said.put_nowait(message)

    async def run(self) -> None:
        async def send(message: dict[str, Any]) -> None:
            await anyio.lowlevel.checkpoint()
            self.sent.append(message)

        await self.world.app(self.scope, self._said.get, send)

    async def has_sent(self, count: int) -> None:
        await until(lambda: len(self.sent) >= count)

    async def said(self, kind: str) -> dict[str, Any]:
        while True:
            for message in self.sent:
                if message["type"] == kind:
                    return message
            await anyio.sleep(0.01)

    @property
    def parts(self) -> list[dict[str, Any]]:
        return [message for message in self.sent if message["type"] == "http.response.body"]


class OnlyASGI:
    @pytest.fixture
    def side(self) -> str:
        return "asgi"


class TestASGI(OnlyASGI):
    @both_providers
    @pytest.mark.parametrize("kind", ["sends", "waits", "waits for the browser"])
    async def test_a_stream_ends_with_its_session(self, make_world, kind: str, end: str) -> None:
        """R8: server-sent events and downloads, by ASGI."""
        learnt: list[BaseException | dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            body = {"type": "http.response.body", "body": b"tick", "more_body": True}
            await send(body)
            try:
                while kind == "sends":
                    await send(body)
                if kind == "waits for the browser":
                    learnt.append(await receive())
                    return
                await anyio.sleep_forever()
            except BaseException as error:
                learnt.append(error)
                raise

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("http.response.body")
                await end_session(world, cookie, end)
                await until(lambda: not connection.parts[-1].get("more_body"))
                count = len(connection.sent)
                await anyio.sleep(0.05)
                assert len(connection.sent) == count
                group.cancel_scope.cancel()
        if kind == "sends":
            assert isinstance(learnt[0], OSError)
        if kind == "waits for the browser":
            assert learnt == [{"type": "http.disconnect"}]

    @both_providers
    @pytest.mark.parametrize("kind", ["sends", "waits"])
    async def test_half_of_a_recording_does_not_look_whole(self, make_world, kind: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            headers = [(b"content-type", b"video/mp4")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            body = {"type": "http.response.body", "body": b"half", "more_body": True}
            await send(body)
            while kind == "sends":
                await send(body)
            await anyio.sleep_forever()

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("http.response.body")
                await end_session(world, cookie, "logout")
                if kind == "waits":  # at last it is ended for a handler that never acts
                    await until(lambda: not connection.parts[-1].get("more_body"))
                    group.cancel_scope.cancel()
        # A handler that learnt it has returned: the server breaks off what is not complete.
        assert connection.parts[-1]["more_body"] is (kind == "sends")

    @both_providers
    @pytest.mark.parametrize("kind", ["sends", "receives", "waits"])
    async def test_a_websocket_ends_with_its_session(self, make_world, kind: str, end: str) -> None:
        learnt: list[BaseException] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await PlainTextResponse("x")(scope, receive, send)
                return
            websocket = WebSocket(scope, receive, send)
            await websocket.accept()
            try:
                while kind == "sends":
                    await websocket.send_text("tick")
                while kind == "receives":
                    await websocket.receive_text()
                await anyio.sleep_forever()
            except WebSocketDisconnect as error:
                learnt.append(error)
                raise

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie, "websocket")
        connection.say(type="websocket.connect")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("websocket.accept")
                await end_session(world, cookie, end)
                close = await connection.said("websocket.close")
                assert close["code"] == 4401
                await anyio.sleep(0.05)
                group.cancel_scope.cancel()
        assert len(learnt) == (kind != "waits")
        assert connection.sent[-1] is close

    @both_providers
    async def test_an_upload_ends_with_its_session(self, make_world, end: str) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            while (await receive())["type"] != "http.disconnect":
                connection.say(type="http.request", body=b"x", more_body=True)
                await anyio.sleep(0.01)

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        connection.say(type="http.request", body=b"x", more_body=True)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await anyio.sleep(0.1)
                await end_session(world, cookie, end)
        # An `allow` that says no has its page; every other end asks for a login.
        assert connection.sent[0]["status"] == 401

    @both_providers
    async def test_a_late_answer_is_not_given_to_who_was_logged_out(self, make_world) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/lasting":
                world.clock.tick(40)
                await end_session(world, cookie, "logout")
            await PlainTextResponse("computed for long")(scope, receive, send)

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        connection.say(type="http.request", body=b"", more_body=False)
        await connection.run()
        assert connection.sent[0]["status"] == 401

    @both_providers
    async def test_a_store_that_cannot_be_asked_ends_nothing(self, make_world) -> None:
        class Store(MemoryStore):
            is_down = False
            asked = 0

            async def get(self, key: str) -> bytes | None:
                if self.is_down:
                    self.asked += 1
                    raise StoreError("down")
                return await super().get(key)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await PlainTextResponse("x")(scope, receive, send)
                return
            await receive()
            await send({"type": "websocket.accept"})
            while True:
                await send({"type": "websocket.send", "text": "tick"})
                await anyio.sleep(0.01)

        store = Store()
        world, cookie = await logged_in(make_world, app, store=store)
        connection = Connection(world, cookie, "websocket")
        connection.say(type="websocket.connect")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("websocket.send")
                store.is_down = True
                await until(lambda: store.asked > 4)
                assert connection.sent[-1]["type"] == "websocket.send"
                store.is_down = False
                await end_session(world, cookie, "logout")
                await connection.said("websocket.close")
                group.cancel_scope.cancel()

    @both_providers
    async def test_who_works_only_through_a_websocket_is_not_timed_out(self, make_world) -> None:
        """R7: messages of the browser are a use of the session."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await PlainTextResponse("x")(scope, receive, send)
                return
            websocket = WebSocket(scope, receive, send)
            await websocket.accept()
            async for text in websocket.iter_text():
                world.clock.tick(8)
                await websocket.send_text(text)

        world, cookie = await logged_in(make_world, app, idle_timeout=40)
        connection = Connection(world, cookie, "websocket")
        connection.say(type="websocket.connect")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                for number in range(20):
                    connection.say(type="websocket.receive", text=str(number))
                    await connection.has_sent(number + 2)
                answer = await world.browser(Cookie=f"cm_auth={cookie}").get("/auth/session")
                assert answer.json()["authenticated"] is True
                world.clock.tick(41)  # what the server pushes would be no use
                await connection.said("websocket.close")
                group.cancel_scope.cancel()

    @both_providers
    async def test_what_a_websocket_puts_into_the_session_is_saved(self, make_world) -> None:
        """R27: a message or an end later."""
        kept: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                data = dict(scope["state"]["cm_session"].data)
                await PlainTextResponse(str(data))(scope, receive, send)
                return
            session = scope["state"]["cm_session"]
            kept.append(session)
            websocket = WebSocket(scope, receive, send)
            await websocket.accept()
            session.data["x"] = 1
            await websocket.send_text("x is there")
            await websocket.receive_text()
            session.data["y"] = 2

        world, cookie = await logged_in(make_world, app)
        browser = world.browser(Cookie=f"cm_auth={cookie}")
        connection = Connection(world, cookie, "websocket")
        connection.say(type="websocket.connect")
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("websocket.send")
                assert (await browser.get("/")).text == "{'x': 1}"
                connection.say(type="websocket.receive", text="go on")
        assert (await browser.get("/")).text == "{'x': 1, 'y': 2}"
        with pytest.raises(SessionDataError, match="the request that it belongs to is over"):
            kept[0].data["z"] = 3

    @both_providers
    async def test_what_a_background_task_puts_into_the_session_is_saved(self, make_world) -> None:
        """R27: once it has ended."""

        async def page(request: Request) -> Response:
            session = request.state.cm_session

            def later() -> None:
                session.data["done"] = True

            return PlainTextResponse("accepted", background=BackgroundTask(later))

        async def stream(request: Request) -> Response:
            async def parts() -> AsyncIterator[str]:
                yield "a"
                request.state.cm_session.data["streamed"] = True
                yield "b"

            return StreamingResponse(parts())

        app = make_app([Route("/page", page), Route("/stream", stream)])
        world, cookie = await logged_in(make_world, app)
        browser = world.browser(Cookie=f"cm_auth={cookie}")
        await browser.get("/page")
        await browser.get("/stream")
        assert (await browser.get("/data")).json() == {"done": True, "streamed": True}


@both_providers
@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.__setitem__("a", 1),
        lambda data: data.update(a=1),
        lambda data: data.setdefault("b", 1),
        lambda data: data.pop("x"),
        lambda data: data.popitem(),
        lambda data: data.clear(),
        lambda data: data.__delitem__("x"),
        lambda data: data.__ior__({"a": 1}),
    ],
)
async def test_a_change_that_nothing_would_save_is_refused(make_world, change: Any) -> None:
    kept: list[Any] = []

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        kept.append(scope["state"]["cm_session"])
        kept[-1].data["x"] = 1
        await PlainTextResponse("x")(scope, receive, send)

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        kept.append(environ["cm_auth.session"])
        kept[-1].data["x"] = 1
        start_response("200 OK", [])
        return [b"x"]

    world = make_world()
    world.app.app = asgi if world.side == "asgi" else wsgi
    await world.login()
    with pytest.raises(SessionDataError, match="cannot be changed any more"):
        change(kept[-1].data)
    assert kept[-1].data == {"x": 1}


class TestWSGI:
    @pytest.fixture
    def side(self) -> str:
        return "wsgi"

    def start(self, world: World, cookie: str, **environ: Any) -> Any:
        started: list[Any] = []
        return world.app(
            {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/",
                "HTTP_HOST": "localhost:8000",
                "HTTP_COOKIE": f"cm_auth={cookie}",
                "wsgi.url_scheme": "http",
                **environ,
            },
            lambda *arguments: started.append(arguments),
        )

    @both_providers
    async def test_a_generator_ends_with_its_session(self, make_world, end: str) -> None:
        """R8: the same by WSGI."""
        learnt: list[BaseException] = []

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/event-stream")])
            try:
                while True:
                    yield b"tick"
            except BaseException as error:
                learnt.append(error)
                raise

        world, cookie = await logged_in(make_world)
        world.app.app = app

        def read() -> None:
            for part in body:
                assert part == b"tick"
                time.sleep(0.01)
            body.close()

        body = await anyio.to_thread.run_sync(lambda: self.start(world, cookie))
        assert next(body) == b"tick"
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, read)
                await anyio.sleep(0.1)
                assert not learnt
                await end_session(world, cookie, end)
        assert isinstance(learnt[0], GeneratorExit)

    @both_providers
    @pytest.mark.parametrize("is_websocket", [True, False])
    async def test_one_that_waits_is_cut_where_the_server_tells_its_socket(
        self, make_world, end: str, is_websocket: bool
    ) -> None:
        """R8, R16: a stream, and a WebSocket that a handler has taken over."""

        class Socket:
            is_shut = False

            def shutdown(self, _: int) -> None:
                self.is_shut = True

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            def parts() -> Iterator[bytes]:
                start_response("200 OK", [])
                yield b"first"
                while not connection.is_shut:
                    time.sleep(0.01)
                yield b"never seen"

            if not is_websocket:
                return parts()
            while not connection.is_shut:
                time.sleep(0.01)
            start_response("200 OK", [])
            return iter(())

        connection = Socket()
        upgrade = {"HTTP_UPGRADE": "websocket"} if is_websocket else {}
        world, cookie = await logged_in(make_world)
        world.app.app = app

        def read() -> None:
            body = self.start(world, cookie, **{"gunicorn.socket": connection}, **upgrade)
            seen.extend(body)
            if hasattr(body, "close"):
                body.close()

        seen: list[bytes] = []
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, read)
                await anyio.sleep(0.1)
                assert not connection.is_shut
                await end_session(world, cookie, end)
        assert connection.is_shut
        assert b"never seen" not in seen or not is_websocket

    @both_providers
    async def test_what_a_generator_puts_into_the_session_is_saved(self, make_world) -> None:
        """R27: by WSGI."""

        def app(environ: Any, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"a"
            environ["cm_auth.session"].data["streamed"] = True
            yield b"b"

        world, cookie = await logged_in(make_world)
        inner, world.app.app = world.app.app, app
        browser = world.browser(Cookie=f"cm_auth={cookie}")
        assert (await browser.get("/")).text == "ab"
        world.app.app = inner
        assert (await browser.get("/data")).json() == {"streamed": True}


class Kept:
    """A client that a handler keeps beyond its request."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client: Any = None

    def asgi(self, inner: Any) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.client = scope["state"]["cm"]
            await inner(scope, receive, send)

        return app

    def wsgi(self, inner: Any) -> Any:
        def app(environ: Any, start_response: Any) -> Any:
            self.client = environ["cm_auth.client"]
            return inner(environ, start_response)

        return app

    async def get(self) -> httpx2.Response:
        answer = await self.world.on_its_side(lambda: self.client.get(f"{self.world.root}/cameras"))
        assert isinstance(answer, httpx2.Response)
        return answer


async def kept_client(make_world: Any, **options: Any) -> tuple[World, str, Kept]:
    world, cookie = await logged_in(make_world, **options)
    kept = Kept(world)
    wrap = kept.asgi if world.side == "asgi" else kept.wsgi
    world.app.app = wrap(world.app.app)
    assert (await world.browser(Cookie=f"cm_auth={cookie}").get("/")).status_code == 200
    return world, cookie, kept


@both_providers
async def test_a_kept_client_raises_when_its_session_has_ended(make_world, end: str) -> None:
    world, cookie, kept = await kept_client(make_world)
    assert (await kept.get()).status_code == 200
    await end_session(world, cookie, end)

    async def call_on() -> None:
        while True:  # an `allow` that says no is asked beside a call
            world.clock.tick(31)
            await kept.get()
            await anyio.sleep(0.01)

    with anyio.fail_after(20), pytest.raises(SessionExpiredError):
        await call_on()


@both_providers
async def test_a_kept_client_goes_on_after_another_worker_refreshed(make_world) -> None:
    world, cookie, kept = await kept_client(make_world)
    other = make_world(beside=world)
    world.clock.tick(43_300)
    assert (await other.browser(Cookie=f"cm_auth={cookie}").get("/cameras")).status_code == 200
    assert (await kept.get()).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1


@both_providers
async def test_a_kept_client_survives_a_short_outage_of_the_store_only(make_world) -> None:
    class Store(MemoryStore):
        is_down = False

        async def get(self, key: str) -> bytes | None:
            if self.is_down:
                raise StoreError("down")
            return await super().get(key)

    store = Store()
    world, _, kept = await kept_client(make_world, store=store)
    store.is_down = True
    world.clock.tick(45)
    assert (await kept.get()).status_code == 200
    world.clock.tick(45)
    with pytest.raises(UnavailableError):  # a logout elsewhere could not be seen
        await kept.get()
    store.is_down = False
    assert (await kept.get()).status_code == 200


@both_providers
async def test_an_ordinary_request_asks_the_store_once(make_world) -> None:
    class Store(MemoryStore):
        asked = 0

        async def get(self, key: str) -> bytes | None:
            self.asked += 1
            return await super().get(key)

    store = Store()
    world, cookie = await logged_in(make_world, store=store)
    browser = world.browser(Cookie=f"cm_auth={cookie}")
    await browser.get("/cameras")
    store.asked = 0
    await browser.get("/cameras")
    assert store.asked == 1


@both_providers
async def test_the_watch_stops_when_nothing_is_open(make_world) -> None:
    """It keeps neither a loop nor a process from ending, and is there again when it is needed."""
    world = make_world()
    browser = await world.login()
    for _ in range(2):
        async with browser.stream("GET", "/snapshot/1") as answer:
            with contextlib.suppress(httpx2.HTTPError):
                await answer.aread()
        await anyio.sleep(0.15)
    assert (await browser.get("/")).status_code == 200


@both_providers
async def test_a_live_view_of_a_kept_client_ends_with_its_session(
    make_world, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_LOOK_EVERY", 0.01)
    world, cookie, kept = await kept_client(make_world)
    assert (await kept.get()).status_code == 200
    # A camera's live view, part by part: the network in process hands an answer on whole.
    kept.client._transport = LiveView()
    parts = 0

    async def watch() -> None:
        nonlocal parts
        async with kept.client.stream("GET", "/live") as answer:
            async for _ in answer.aiter_raw():
                parts += 1
                if parts == 3:
                    await end_session(world, cookie, "logout")
                    world.clock.tick(31)

    def watch_in_thread() -> None:
        nonlocal parts
        with kept.client.stream("GET", "/live") as answer:
            for _ in answer.iter_raw():
                parts += 1
                if parts == 3:
                    anyio.from_thread.run(end_session, world, cookie, "logout")
                    world.clock.tick(31)

    in_thread = world.side == "wsgi"
    work = anyio.to_thread.run_sync(watch_in_thread) if in_thread else watch()
    with anyio.fail_after(20), pytest.raises(SessionExpiredError):
        await work
    assert parts >= 3


class LiveView(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """Answers with parts that never end."""

    class Parts(httpx2.AsyncByteStream, httpx2.SyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                await anyio.sleep(0.01)
                yield b"part"

        def __iter__(self) -> Iterator[bytes]:
            while True:
                time.sleep(0.01)
                yield b"part"

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=self.Parts(), request=request)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, stream=self.Parts(), request=request)


class TestSilentHandlers(OnlyASGI):
    """Handlers that say nothing for long, at their start or after it."""

    @both_providers
    async def test_a_poll_that_does_nothing_is_answered_for(self, make_world) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/lasting":
                await anyio.sleep_forever()
            await PlainTextResponse("x")(scope, receive, send)

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await anyio.sleep(0.1)
                await end_session(world, cookie, "logout")
                start = await connection.said("http.response.start")
                assert start["status"] == 401
                group.cancel_scope.cancel()

    @both_providers
    async def test_who_listens_and_answers_at_the_end_is_answered_for(self, make_world) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            while scope["path"] == "/lasting" and (await receive())["type"] != "http.disconnect":
                pass
            await PlainTextResponse("news")(scope, receive, send)

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        connection.say(type="http.request", body=b"", more_body=False)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await anyio.sleep(0.1)
                await end_session(world, cookie, "logout")
        start, body = connection.sent  # whole: some servers say 500 to a start without a body
        assert start["status"] == 401
        assert b"news" not in body["body"]

    @both_providers
    async def test_an_answer_for_a_handler_is_whole_before_the_application_returns(
        self, make_world
    ) -> None:
        """Some servers say 500 to an application that returns in the middle of its response."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/lasting":
                await until(lambda: bool(connection.sent))
            await PlainTextResponse("news")(scope, receive, send)

        class Slow(Connection):
            async def run(self) -> None:
                async def send(message: dict[str, Any]) -> None:
                    self.sent.append(message)
                    await anyio.sleep(0.2)

                await self.world.app(self.scope, self._said.get, send)

        world, cookie = await logged_in(make_world, app)
        connection = Slow(world, cookie)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await anyio.sleep(0.1)
                await end_session(world, cookie, "logout")
                await until(lambda: bool(connection.sent))
        start, body = connection.sent
        assert start["status"] == 401
        assert b"news" not in body["body"]

    @both_providers
    @pytest.mark.parametrize("more", [True, False])
    async def test_what_comes_long_after_the_start_is_not_sent(self, make_world, more) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await end_session(world, cookie, "logout")
            await anyio.sleep(0.2)  # for the watch to look
            await send({"type": "http.response.body", "body": b"late", "more_body": more})

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        await connection.run()
        assert b"late" not in [part["body"] for part in connection.parts]

    @both_providers
    async def test_a_download_that_stands_still_is_broken_off(self, make_world) -> None:
        learnt: list[BaseException] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            headers = [(b"content-length", b"100")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            try:
                await anyio.sleep_forever()
            except BaseException as error:
                learnt.append(error)
                raise

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(connection.run)
                await connection.said("http.response.body")
                await end_session(world, cookie, "logout")
        assert isinstance(learnt[0], asyncio.CancelledError)
        assert connection.parts[-1]["more_body"] is True  # the server breaks it off

    @both_providers
    async def test_a_stream_ends_by_the_clock_of_the_engine_too(self, make_world) -> None:
        """However fast time passes: an engine may have a clock of its own."""
        count = 0

        async def app(scope: Any, receive: Any, send: Any) -> None:
            nonlocal count
            if scope["path"] != "/lasting":
                await PlainTextResponse("x")(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"tick", "more_body": True})
                count += 1
                if count == 2:
                    await end_session(world, cookie, "logout")
                world.clock.tick(20)

        world, cookie = await logged_in(make_world, app)
        connection = Connection(world, cookie)
        with anyio.fail_after(20):
            await connection.run()
        assert count < 6
