"""Real servers for what a client refuses to send: requests are written to the socket as bytes."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import waitress
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.helpers.servers import free_port, serving

ASGI = ("h11", "httptools")
WSGI = ("werkzeug", "waitress", "gunicorn")
_ROOT = Path(__file__).parents[2]
_START = 40.0  # seconds
_ANSWER = 20.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back, or status 0 if the server closed the connection without an answer."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str:
        return ", ".join(v for k, v in self.headers if k.lower() == name)


def say(port: int, request: bytes) -> Answered:
    """Write a request as it stands to the socket and read the answer.

    Args:
        request: all of it; it should ask for ``Connection: close``.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER) as connection:
        with contextlib.suppress(OSError):  # a server may answer before it has read all
            connection.sendall(request)
        received = bytearray()
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    response = http.client.HTTPResponse(_Readable(bytes(received)))  # type: ignore[arg-type]
    try:
        response.begin()
        return Answered(response.status, response.getheaders(), response.read())
    except http.client.HTTPException:
        # HTTP/0.9, which a server may speak to a request line that it cannot read.
        return Answered(0, [], bytes(received))


def ask(
    port: int, target: str | bytes, *lines: str, method: str = "GET", host: str = "localhost"
) -> Answered:
    """Ask for a request target as it stands."""
    raw = target if isinstance(target, bytes) else target.encode("latin-1")
    head = [f"Host: {host}", "Connection: close", *lines, "", ""]
    return say(port, method.encode() + b" " + raw + b" HTTP/1.1\r\n" + "\r\n".join(head).encode())


class _Readable:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *args: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


@contextlib.contextmanager
def served(server: str, app: Any, **options: Any) -> Iterator[int]:
    """Serve an application on a free port, and give the port.

    Args:
        server: of `ASGI` or `WSGI`; gunicorn's `app` is ``module:variable``.
        options: of uvicorn or waitress, or the environment of gunicorn.
    """
    start = {"werkzeug": _werkzeug, "waitress": _waitress, "gunicorn": _gunicorn}.get(server)
    with start(app, **options) if start else _uvicorn(app, server, **options) as port:
        yield port


@contextlib.contextmanager
def _uvicorn(app: Any, http_parser: str, **options: Any) -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    config: dict[str, Any] = {"lifespan": "off", "log_level": "critical", **options}
    server = uvicorn.Server(uvicorn.Config(app, http=http_parser, **config))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        _wait_for(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def _werkzeug(app: Any) -> Iterator[int]:
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    with serving(server):
        yield server.server_port


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def _waitress(app: Any, **options: Any) -> Iterator[int]:
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=8, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        # In its own thread, between two polls: closing from here would pull the sockets away.
        server.task_dispatcher.shutdown()
        server.trigger.pull_trigger(server.close)
        thread.join(2)


@contextlib.contextmanager
def _gunicorn(
    app: str, *, worker: str = "gthread", log_level: str = "critical", **environment: str
) -> Iterator[int]:
    threads = ["--threads", "8"] if worker == "gthread" else []
    port = free_port()
    command = [
        sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{port}",
        "--log-level", log_level, "-k", worker, *threads, app,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=_ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL
    )
    try:
        _wait_for(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None
        yield port
    finally:
        process.terminate()
        process.wait(_START)


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + _START
    while not condition():
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
