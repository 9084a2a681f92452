"""A body that is refused is read on, within bounds; tests/matrix has the real servers."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

from cm_auth_middleware.proxy import CMProxy
from cm_auth_middleware.web import unread_body
from tests.helpers.world import World, both_providers

SIZE = 8 * 1024 * 1024
PART = {"type": "http.request", "body": b"x" * (SIZE // 8), "more_body": True}


class Gunicorn:
    """What gunicorn gives an application: a body that ends, and the socket that it comes by."""

    def __init__(self, body: Any) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.body = body
        self.environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/cameras", "QUERY_STRING": "",
            "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost:8000", "REMOTE_ADDR": "::1",
            "wsgi.url_scheme": "http", "wsgi.input": body, "wsgi.input_terminated": True,
            "gunicorn.socket": self.ours, "CONTENT_LENGTH": str(SIZE),
        }  # fmt: skip

    def serve(self, app: Any) -> str:
        """Call an application; return the status after all is sent, and close the body then."""
        status: list[str] = []
        parts = app(self.environ, lambda line, _: status.append(line))
        assert b"".join(parts)
        self.read_before = self.body.tell() if isinstance(self.body, io.BytesIO) else 0
        getattr(parts, "close", lambda: None)()
        self.ours.close()
        self.theirs.close()
        return status[0]


class FromSocket:
    """A body that comes by a socket, as gunicorn reads it: without a limit of time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self, size: int) -> bytes:
        return self._connection.recv(size)


@pytest.fixture
def wsgi_app() -> Iterator[Any]:
    world = World(side="wsgi")
    yield world.app
    world.engine.close()
    world.net.shut_down()


def test_the_rest_of_a_body_is_read_after_the_response_was_sent(wsgi_app) -> None:
    """R54: a client that writes all before it reads finds the response then."""
    request = Gunicorn(io.BytesIO(b"x" * SIZE))
    assert request.serve(wsgi_app) == "401 Unauthorized"
    assert request.read_before == 0
    assert request.body.tell() == SIZE


@pytest.mark.parametrize(
    "changes",
    [
        {"CONTENT_LENGTH": str(unread_body.MOST_BYTES + 1)},
        {"CONTENT_LENGTH": "9" * 5_000},
        {"CONTENT_LENGTH": "-1"},
        {"CONTENT_LENGTH": "many"},
        {"CONTENT_LENGTH": "0"},
        {"SERVER_PROTOCOL": "HTTP/2.0"},
        {"gunicorn.socket": None},
        {"wsgi.input_terminated": False},
    ],
    ids=["long", "very long", "negative", "no number", "none", "HTTP/2", "a server", "endless"],
)
def test_a_body_is_not_read_that_is_too_long_or_could_hold_a_thread(wsgi_app, changes) -> None:
    """R54: without the socket no wait for a client can be ended."""
    request = Gunicorn(io.BytesIO(b"x" * SIZE))
    request.environ.update(changes)
    assert request.serve(wsgi_app) == "401 Unauthorized"
    assert request.body.tell() == 0


def test_a_body_without_a_length_is_read_up_to_a_limit(wsgi_app, monkeypatch) -> None:
    """R54: it may have no end."""
    monkeypatch.setattr(unread_body, "MOST_BYTES", SIZE // 2)
    request = Gunicorn(io.BytesIO(b"x" * SIZE))
    del request.environ["CONTENT_LENGTH"]
    request.environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    assert request.serve(wsgi_app) == "401 Unauthorized"
    assert SIZE // 2 <= request.body.tell() < SIZE


def test_an_error_of_a_client_is_none_of_the_server(wsgi_app) -> None:
    """R54: it left, or its chunks are none; the response was sent."""

    class Broken:
        def read(self, _: int) -> bytes:
            raise OSError("invalid chunk")

    request = Gunicorn(Broken())
    assert request.serve(wsgi_app) == "401 Unauthorized"


@pytest.mark.slow  # it measures seconds
def test_a_body_that_does_not_come_holds_few_threads_for_long(wsgi_app, monkeypatch) -> None:
    """R54: each for a time that no byte makes longer; those beyond two for a tenth of a second."""
    monkeypatch.setattr(unread_body, "PATIENCE", 1.0)
    seconds: list[float] = []

    def drip(connection: socket.socket, is_over: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while not is_over.wait(0.02):
                connection.send(b"x")

    def upload() -> None:
        request, is_over = Gunicorn(None), threading.Event()
        request.environ["wsgi.input"] = FromSocket(request.ours)
        dripping = threading.Thread(target=drip, args=[request.theirs, is_over])
        dripping.start()
        started = time.monotonic()
        request.serve(wsgi_app)
        seconds.append(time.monotonic() - started)
        is_over.set()
        dripping.join()

    threads = [threading.Thread(target=upload) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seconds) == 5
    assert len([taken for taken in seconds if taken > 0.9]) == 2
    assert max(seconds) < 2.5
    for _ in range(2):  # and they gave their places back
        assert unread_body._places.acquire(blocking=False)
    unread_body._places.release(2)


# -- ASGI ------------------------------------------------------------------------------------


@pytest.fixture
async def asgi_app() -> AsyncIterator[Any]:
    world = World(side="asgi")
    yield world.app
    await world.close()


def scope_of(**changes: Any) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "scheme": "http", "path": "/cameras",
        "raw_path": b"/cameras", "root_path": "", "query_string": b"", "http_version": "1.1",
        "headers": [(b"host", b"localhost:8000"), (b"content-length", b"%d" % SIZE)],
        "client": ("127.0.0.1", 1), "server": ("localhost", 8000), "asgi": {"version": "3.0"},
        **changes,
    }  # fmt: skip


class Server:
    """What an ASGI server does: it gives the body in parts, and sends what it is told.

    Args:
        receive: gives the next message.
    """

    def __init__(self, receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._receive = receive
        self.sent: list[dict[str, Any]] = []
        self.sent_before: list[dict[str, Any]] = []
        self.parts = 0

    async def serve(self, app: Any, **changes: Any) -> int:
        """Call an application; return the status."""
        await app(scope_of(**changes), self.receive, self.send)
        assert not self.sent[-1].get("more_body")
        return int(self.sent[0]["status"])

    async def receive(self) -> dict[str, Any]:
        if not self.parts:
            self.sent_before = list(self.sent)
        self.parts += 1
        return await self._receive()

    async def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


@pytest.mark.anyio
async def test_the_response_is_sent_whole_and_ends_when_the_body_has(asgi_app) -> None:
    """R54: a server that hears of the end closes the connection, and resets it on unread bytes."""

    async def receive() -> dict[str, Any]:
        return {**PART, "more_body": server.parts < 8}

    server = Server(receive)
    assert await server.serve(asgi_app) == 401
    assert server.parts == 8
    start, body = server.sent_before
    assert dict(start["headers"])[b"content-length"] == b"%d" % len(body["body"])
    assert body["more_body"]
    assert server.sent[2:] == [{"type": "http.response.body", "body": b""}]


@pytest.mark.anyio
async def test_an_endless_body_is_read_up_to_a_limit(asgi_app, monkeypatch) -> None:
    """R54: here 8 MB."""
    monkeypatch.setattr(unread_body, "MOST_BYTES", SIZE)

    async def receive() -> dict[str, Any]:
        return PART

    server = Server(receive)
    headers = [(b"host", b"localhost:8000"), (b"transfer-encoding", b"chunked")]
    assert await server.serve(asgi_app, headers=headers) == 401
    assert server.parts == 8


@pytest.mark.anyio
async def test_a_body_that_does_not_come_is_left(asgi_app, monkeypatch) -> None:
    """R54: after a while the response ends, and the server closes."""
    monkeypatch.setattr(unread_body, "PATIENCE", 0.02)
    server = Server(anyio.sleep_forever)  # type: ignore[arg-type]
    with anyio.fail_after(10):
        assert await server.serve(asgi_app) == 401
    assert server.parts == 1


@pytest.mark.anyio
async def test_a_client_that_leaves_in_the_middle_is_no_error(asgi_app) -> None:
    """R54: nor that nothing can be sent to it any more (ASGI: an OSError)."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    class Left(Server):
        async def send(self, message: dict[str, Any]) -> None:
            if self.parts:
                raise OSError
            await super().send({**message, "more_body": False})

    server = Left(receive)
    assert await server.serve(asgi_app) == 401
    assert server.parts == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "changes",
    [
        {"http_version": "2"},
        {"http_version": "3"},
        {"headers": [(b"content-length", b"%d" % (unread_body.MOST_BYTES + 1))]},
        {"headers": [(b"content-length", b"0")]},
        {"headers": []},
    ],
    ids=["HTTP/2", "HTTP/3", "long", "empty", "none"],
)
async def test_a_body_that_would_not_be_read_to_its_end_is_not_read(asgi_app, changes) -> None:
    """R54: HTTP/2 and HTTP/3 close one stream, and reset nothing."""

    async def receive() -> dict[str, Any]:
        raise AssertionError("it was asked for")

    server = Server(receive)
    assert await server.serve(asgi_app, **changes) == 401
    assert len(server.sent) == 2


@both_providers
@pytest.mark.anyio
async def test_what_the_proxy_refuses_is_read_on_too(provider: str) -> None:
    """R54: an upload that no rule allows, of somebody who is logged in."""
    path = "/cameras" if provider == "eagleeye" else "/rest/v2.4/cameras"
    world = World(side="asgi", provider=provider, app=CMProxy(allow=f"GET {path}"))
    browser = await world.login(path=path)
    cookie = f"cm_auth={browser.named('cm_auth')[0]}".encode()

    async def receive() -> dict[str, Any]:
        return {**PART, "more_body": server.parts < 8}

    server = Server(receive)
    headers = [*scope_of()["headers"], (b"cookie", cookie)]
    status = await server.serve(world.app, path=path, raw_path=path.encode(), headers=headers)
    assert status == 405
    assert server.parts == 8
    assert [message["type"] for message in server.sent_before] == [
        "http.response.start", "http.response.body",
    ]  # fmt: skip
    await world.close()
