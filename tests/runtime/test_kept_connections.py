"""The middleware's own calls use their connections again; a broken one disturbs no call."""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress

import anyio
import httpx2
import pytest

from cm_auth_middleware import UnavailableError
from cm_auth_middleware.runtime.base import Runtime
from cm_auth_middleware.runtime.event_loops import EventLoopRuntime
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.runtime.threads import ThreadRuntime

pytestmark = pytest.mark.slow

TIMEOUT = 1.0  # seconds that a call may take


class Server:
    """A server that answers by the path, and knows its connections."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            asked = b""
            while part := connection.recv(4096):
                asked += part
                if b"\r\n\r\n" not in asked:
                    continue
                path, asked = asked.split(b" ", 2)[1], b""
                if path == b"/hang":
                    continue
                if path == b"/drip":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                    while True:
                        connection.sendall(b"o")
                        time.sleep(TIMEOUT / 10)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                if path == b"/half":
                    connection.sendall(b"o")
                    continue
                connection.sendall(b"ok")
                if path == b"/leave":
                    connection.close()
                    return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=["asyncio", "trio", "threads"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def calls(side: str, server: Server, *paths: str, pause: float = 0.0) -> list[bytes | str]:
    """Make one call after the other; return the bodies, and the names of errors."""
    kind = ThreadRuntime if side == "threads" else EventLoopRuntime
    runtime: Runtime = kind(TIMEOUT, server.url)

    async def all_of_them() -> list[bytes | str]:
        found: list[bytes | str] = []
        for path in paths:
            try:
                url = path if path.startswith("http") else server.url + path
                response = await runtime.call("GET", url, headers={})
                found.append(response.content)
            except (UnavailableError, httpx2.HTTPError) as error:
                found.append(type(error).__name__)
            if pause:
                await runtime.sleep(pause)
        await runtime.close()
        return found

    if side == "threads":
        return run_sync(all_of_them())
    return anyio.run(all_of_them, backend=side)


def test_calls_that_follow_each_other_share_a_connection(side: str, server: Server) -> None:
    assert calls(side, server, "/token", "/users/self", "/token") == [b"ok"] * 3
    assert len(server.connections) == 1


def test_a_connection_that_the_server_has_closed_is_not_used(side: str, server: Server) -> None:
    assert calls(side, server, "/leave", "/leave", "/token", pause=0.2) == [b"ok"] * 3
    assert len(server.connections) == 3


def test_a_connection_that_many_servers_are_about_to_close_is_not_used(
    side: str, server: Server
) -> None:
    """They close it when it was idle for 5 s, and a request that meets this gets an error."""
    assert calls(side, server, "/token", "/token", pause=4.5) == [b"ok"] * 2
    assert len(server.connections) == 2


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/hang", "/half"])
def test_a_call_that_hangs_on_a_kept_connection_is_cut(
    side: str, server: Server, path: str
) -> None:
    began = time.monotonic()
    found = calls(side, server, "/token", path, "/token", "/token")
    assert time.monotonic() - began < 20 * TIMEOUT
    assert found == [b"ok", "UnavailableError", b"ok", b"ok"]
    assert len(server.connections) == 2, "what was cut is not used again"


@pytest.mark.slow
def test_a_call_that_drips_on_one_of_two_kept_connections_is_cut(side: str, server: Server) -> None:
    """API v3 has two hosts: one for the tokens, and one for the user of each account."""
    user = f"{server.url.replace('127.0.0.1', 'localhost')}/users/self"
    began = time.monotonic()
    found = calls(side, server, "/token", user, "/drip", "/token", user)
    assert time.monotonic() - began < 20 * TIMEOUT
    assert found == [b"ok", b"ok", "UnavailableError", b"ok", b"ok"]


@pytest.mark.slow
def test_calls_at_once_have_connections_of_their_own(server: Server) -> None:
    """A deadline cuts its own call only, though the connection served another one before."""
    runtime = ThreadRuntime(TIMEOUT, server.url)
    run_sync(runtime.call("GET", f"{server.url}/token", headers={}))
    found: list[str] = []

    def hang() -> None:
        try:
            run_sync(runtime.call("GET", f"{server.url}/hang", headers={}))
        except UnavailableError:
            found.append("cut")

    hanging = [threading.Thread(target=hang) for _ in range(3)]
    for thread in hanging:
        thread.start()
    answered = 0
    while any(thread.is_alive() for thread in hanging):
        assert run_sync(runtime.call("GET", f"{server.url}/token", headers={})).content == b"ok"
        answered += 1
        time.sleep(0.01)
    assert found == ["cut"] * 3
    assert answered
    run_sync(runtime.close())


def test_connections_of_a_runtime_that_nobody_closes_are_closed(server: Server) -> None:
    """Those of the middleware's own calls, and those of the clients that handlers were given."""
    runtime = ThreadRuntime(TIMEOUT, server.url)
    run_sync(runtime.call("GET", f"{server.url}/token", headers={}))
    client = httpx2.Client(transport=runtime.transport())
    assert client.get(f"{server.url}/cameras").content == b"ok"
    assert len(server.connections) == 2
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        del runtime, client
        gc.collect()
    assert not [str(one.message) for one in warned]
