"""R54: a client that uploads without a session can read the response, and keeps nobody waiting."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from cm_auth_middleware.web import unread_body
from tests.helpers.browser import Visitor

from .server_processes import (
    APPS,
    ASGI,
    WSGI,
    Simulated,
    Site,
    environment,
    needs,
    needs_server,
    serve,
)

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

SIZE = 8 * 1024 * 1024
PART = b"x" * 65_536
FOREIGN = "Origin: https://elsewhere.example"
# granian resets some uploads that an application answers early, although it reads on; and its WSGI
# tells no socket, so that nothing could end the wait for a slow client.
CELLS = [
    (f"{server} ({side})", server, command, app)
    for side, servers, app in (("ASGI", ASGI, "starlette_app"), ("WSGI", WSGI, "flask_app"))
    for server, command in servers.items()
    if server != "granian"
]
FOUR_THREADS = [*WSGI["gunicorn-gthread"][:-1], "--threads", "4", "{app}"]


@contextmanager
def connected(site: Site, method: str, *headers: str) -> Iterator[socket.socket]:
    """Connect, and send the head of a request."""
    lines = [f"{method} /data HTTP/1.1", f"Host: 127.0.0.1:{site.port}", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", site.port), 30) as connection:
        connection.sendall("\r\n".join(lines).encode())
        yield connection


def answer(connection: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def upload(site: Site, method: str, *headers: str) -> int:
    """Send 8 MB as a client that reads nothing before all is written; return the status."""
    with connected(site, method, f"Content-Length: {SIZE}", *headers) as connection:
        for _ in range(SIZE // len(PART)):
            connection.sendall(PART)
        status, body = answer(connection)
    assert body or status in (302, 303)
    return status


def upload_in_chunks(site: Site) -> int:
    """Do the same without a Content-Length."""
    with connected(site, "POST", "Transfer-Encoding: chunked") as connection:
        for _ in range(SIZE // len(PART)):
            connection.sendall(b"%x\r\n%b\r\n" % (len(PART), PART))
        connection.sendall(b"0\r\n\r\n")
        return answer(connection)[0]


def is_left(connection: socket.socket, part: bytes, pace: float, until: float) -> bool:
    """Send parts until nobody takes them any more; False if somebody does for too long."""
    try:
        while time.monotonic() < until:
            connection.sendall(part)
            time.sleep(pace)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("server", "command", "module"), [cell[1:] for cell in CELLS], ids=[cell[0] for cell in CELLS]
)
def test_a_large_upload_that_is_refused_ends_in_its_response(
    server: str, command: list[str], module: str, simulator: Simulated, tmp_path: Path
) -> None:
    """R54: 401, the redirect to a login, 403 of somebody who is logged in, and once more."""
    needs_server(server)
    needs("flask")
    app, variables = f"{APPS}{module}:app", environment(simulator)
    with (
        serve(server, command, tmp_path / "log", variables, app=app) as site,
        Visitor(site.origin) as visitor,
    ):
        for _ in range(3):
            assert upload(site, "POST", "Accept: application/json") == 401
        assert upload_in_chunks(site) == 401
        assert upload(site, "GET", "Accept: text/html") == 302
        visitor.enter("/cameras")
        assert upload(site, "POST", f"Cookie: {visitor.cookie_header}", FOREIGN) == 403
        assert visitor.fetch("/cameras").status_code == 200


def test_uploads_that_do_not_come_keep_no_threads(simulator: Simulated, tmp_path: Path) -> None:
    """R54, and line 57's kind: two threads wait for three seconds, others for a tenth of one."""
    needs("gunicorn", "flask")
    app, variables = f"{APPS}flask_app:app", environment(simulator)
    with (
        serve(
            "gunicorn-gthread", FOUR_THREADS, tmp_path / "log", variables, app=app, silent=False
        ) as site,
        ExitStack() as stack,
    ):
        for _ in range(30):
            request = connected(site, "POST", f"Content-Length: {SIZE}")
            stack.enter_context(request).sendall(b"x" * 1000)
        started = time.monotonic()
        assert httpx2.get(f"{site.origin}/health", timeout=60).text == "nobody"
        assert time.monotonic() - started < unread_body.PATIENCE + 3


@pytest.mark.parametrize("pace", [0.05, 0.0], ids=["a byte now and then", "as fast as it goes"])
@pytest.mark.parametrize("server", ["gunicorn-sync", "gunicorn-gthread"])
def test_an_upload_without_an_end_is_left(
    server: str, pace: float, simulator: Simulated, tmp_path: Path
) -> None:
    """R54: its response is there at once, and the connection is over after a few seconds."""
    needs_server(server)
    needs("flask")
    app, variables = f"{APPS}flask_app:app", environment(simulator)
    part = b"1\r\nx\r\n" if pace else b"%x\r\n%b\r\n" % (len(PART), PART)
    with (
        serve(server, WSGI[server], tmp_path / "log", variables, app=app, silent=False) as site,
        connected(site, "POST", "Transfer-Encoding: chunked") as connection,
    ):
        started = time.monotonic()
        connection.sendall(part)
        assert answer(connection)[0] == 401
        assert time.monotonic() - started < 2
        assert is_left(connection, part, pace, started + unread_body.PATIENCE + 10)
