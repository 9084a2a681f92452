"""Real servers for tests, started on free ports of this machine and stopped by their own pid."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import waitress
from werkzeug.serving import WSGIRequestHandler, make_server

ROOT = Path(__file__).parents[2]
ASGI_SERVERS = ("h11", "httptools")  # uvicorn, by its parser
WSGI_SERVERS = ("werkzeug", "waitress", "gunicorn")
_START_TIMEOUT = 20.0


def free_port() -> int:
    """Return a port that nobody listens on, below those that outgoing connections are given.

    A server that is stopped finds it free when it is started again.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


def require_redis() -> str:
    """Return the path of redis-server; without it the test is skipped, or fails where CI says so.

    Set CM_AUTH_REQUIRE_REDIS=1 where a skip would go unnoticed.
    """
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        message = "NOT TESTED: neither redis-server nor valkey-server is installed"
        if os.environ.get("CM_AUTH_REQUIRE_REDIS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return found


class RedisServer:
    """A redis-server process; it can be stopped, started again, paused and resumed.

    Args:
        directory: for its data and socket; what is saved there survives `stop` and `start`.
        options: more of its configuration, such as ``["--requirepass", "x"]``.
        port: 0 for none (only the socket, or TLS).
        sentinel: the configuration file of a sentinel; it runs as one then.
        host: the address that it listens on.
        program: another program than redis-server.
        inside: a command that runs a command somewhere else, such as in a network namespace.
        conf: a configuration file; the other arguments, and `options`, take precedence.
    """

    def __init__(
        self,
        directory: Path,
        options: list[str],
        port: int | None = None,
        sentinel: Path | None = None,
        *,
        host: str = "127.0.0.1",
        program: str | None = None,
        inside: Sequence[str] = (),
        conf: Path | None = None,
    ) -> None:
        self.directory = directory
        self.options = options
        self.sentinel = sentinel
        self.port = free_port() if port is None else port
        self.host = host
        self.url = f"redis://{host}:{self.port}/0"
        self.socket = directory / "s"
        file = sentinel or conf
        self._command = [*inside, program or require_redis(), *([str(file)] if file else [])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, loaded: bool = True) -> None:
        """Start, and return when it answers on its socket.

        Args:
            loaded: wait until it has loaded its data, too.
        """
        log = self.directory / "log"
        data = ["--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [
                *self._command,
                *("--port", str(self.port), "--bind", self.host),
                *("--unixsocket", str(self.socket), "--dir", str(self.directory)),
                *("--logfile", str(log)),
                *(["--sentinel"] if self.sentinel else data),
                *self.options,
            ]
        )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers(loaded):
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"redis-server did not start:\n{log.read_text()}")
            time.sleep(0.01)

    def stop(self) -> None:
        """Kill it: nothing is saved that was not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)

    def pause(self) -> None:
        """Freeze it: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """Send one command by the socket and return the first part of the raw answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_START_TIMEOUT)
            connection.connect(str(self.socket))
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return connection.recv(65536)

    def _answers(self, loaded: bool) -> bool:
        with contextlib.suppress(OSError):
            return not (loaded and self.command("PING").startswith(b"-LOADING"))
        return False


def server_directory() -> tempfile.TemporaryDirectory[str]:
    """Make a directory for a Redis."""
    # A short path: that of a socket has 108 characters at most. A child of the server that writes
    # its data for a replica may outlive it for a moment, and write when this is removed.
    return tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)


@contextlib.contextmanager
def redis_server(
    *options: str,
    port: int | None = None,
    sentinel: Path | None = None,
    conf: Path | None = None,
) -> Iterator[RedisServer]:
    """Run a redis-server for as long as the `with` lasts; see `RedisServer`."""
    with server_directory() as directory:
        server = RedisServer(Path(directory), list(options), port, sentinel, conf=conf)
        try:
            server.start()
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    at_once = ("--repl-diskless-sync-delay", "0")
    with redis_server(*at_once) as primary, redis_server(*at_once) as replica:
        replica.command("REPLICAOF", "127.0.0.1", str(primary.port))
        until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"))
        yield primary, replica


def catch_up(old: RedisServer, new: RedisServer) -> None:
    """Wait until the replica has all that the primary has now."""

    def offset(server: RedisServer, name: bytes) -> int:
        told = server.command("INFO", "replication")
        return int(told.split(name + b":")[1].split()[0])

    written = offset(old, b"master_repl_offset")
    until(lambda: offset(new, b"slave_repl_offset") >= written)


def exchange(old: RedisServer, new: RedisServer) -> None:
    """Make the replica the primary, with all that it has, and the primary its replica."""
    catch_up(old, new)
    new.command("REPLICAOF", "NO", "ONE")
    old.command("REPLICAOF", "127.0.0.1", str(new.port))


def clients_of(server: RedisServer) -> int:
    """How many are connected, beside this question and replicas."""
    return server.command("CLIENT", "LIST", "TYPE", "normal").count(b"id=") - 1


def loading(server: RedisServer) -> Callable[[], None]:
    """Start it again such that it loads its data for long; return what ends that."""
    server.command("SAVE")
    server.stop()
    # Options for Redis's own tests: 50 ms for each key, and an ear for clients in between.
    slow = ["--key-load-delay", "50000", "--loading-process-events-interval-bytes", "1024"]
    server.options += slow
    server.start(loaded=False)
    until(lambda: is_loading(server))

    def end() -> None:
        server.stop()
        del server.options[-4:]
        server.start()

    return end


def is_loading(server: RedisServer) -> bool:
    with contextlib.suppress(OSError):
        return server.command("PING").startswith(b"-LOADING")
    return False


def lost(server: RedisServer) -> Callable[[], None]:
    """Make it the replica of a primary that it cannot reach; return what ends that."""
    server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    server.command("REPLICAOF", "127.0.0.1", "1")
    return lambda: server.command("REPLICAOF", "NO", "ONE") and None


def lonely(server: RedisServer) -> Callable[[], None]:
    """Let it insist on a replica that it has not; return what ends that."""
    server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    return lambda: server.command("CONFIG", "SET", "min-replicas-to-write", "0") and None


# Why a Redis takes no writes, by its code: what brings that about, and what we say of it.
REFUSALS = {
    "LOADING": (loading, "loading"),
    "MASTERDOWN": (lost, "is a replica"),
    "NOREPLICAS": (lonely, "fewer replicas than its min-replicas-to-write"),
}


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    """Let a server answer from a thread of its own for as long as the `with` lasts."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Forwarder:
    """One address for one of several servers, as a DNS name or a Kubernetes Service is.

    Connections that are open stay with the server that they were made to.

    Args:
        port: of the server to begin with; set `port` to lead new connections elsewhere.

    Attributes:
        answered: what becomes of bytes that a server sends.
        connections: so many were made.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.answered: Callable[[bytes], bytes] = bytes
        self.connections = 0
        self._flows = threading.Event()
        self._flows.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.listens_at: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.listens_at}/0"

    def __enter__(self) -> Forwarder:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.mend()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Hand nothing on any more, and reset nothing, as where packets are dropped."""
        self._flows.clear()

    def mend(self) -> None:
        """Hand on what was held back, too: TCP would send it again."""
        self._flows.set()

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._open)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._open.add(client)
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.socket() as server:
            self._flows.wait()
            server.connect(("127.0.0.1", self.port))
            answers = [server, client, lambda data: self.answered(data)]
            back = threading.Thread(target=self._pump, args=answers, daemon=True)
            back.start()
            self._pump(client, server, bytes)
            back.join()
        self._open.discard(client)

    def _pump(
        self, source: socket.socket, target: socket.socket, passed: Callable[[bytes], bytes]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                target.sendall(passed(data))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class WSGIServer:
    """A WSGI application behind werkzeug's threaded server, for as long as a `with` lasts."""

    def __init__(self, app: Any) -> None:
        server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
        self.port = server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._serving = serving(server)

    def __enter__(self) -> WSGIServer:
        self._serving.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._serving.__exit__(None, None, None)


class _Quiet(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(server: str, app: Any, **options: Any) -> Iterator[int]:
    """Serve an application on a free port, and give the port.

    Args:
        server: of `ASGI_SERVERS` or `WSGI_SERVERS`; or ``uvicorn``, in a process of its own.
        app: ``module:variable`` for that and gunicorn; waitress has a process of its own, too, if
            it is given as that.
        options: of uvicorn or waitress, or the environment of a process.
    """
    starts = {
        "werkzeug": _werkzeug,
        "waitress": _waitress_process if isinstance(app, str) else _waitress,
        "gunicorn": _gunicorn,
        "uvicorn": _uvicorn_process,
    }
    start = starts.get(server)
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
        until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def _werkzeug(app: Any) -> Iterator[int]:
    with WSGIServer(app) as server:
        yield server.port


@contextlib.contextmanager
def _waitress(app: Any, *, threads: int = 8, **options: Any) -> Iterator[int]:
    server = waitress.create_server(app, host="127.0.0.1", port=0, threads=threads, **options)
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
def _waitress_process(app: str, *, threads: int = 8, **environment: str) -> Iterator[int]:
    port = free_port()
    command = ["waitress", "--listen", f"127.0.0.1:{port}", "--threads", str(threads), app]
    with _process(command, port, environment):
        yield port


@contextlib.contextmanager
def _gunicorn(
    app: str,
    *,
    worker: str = "gthread",
    log_level: str = "critical",
    threads: int = 8,
    **environment: str,
) -> Iterator[int]:
    several = ["--threads", str(threads)] if worker == "gthread" else []
    port = free_port()
    command = [
        "gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{port}",
        "--log-level", log_level, "-k", worker, *several, app,
    ]  # fmt: skip
    with _process(command, port, environment):
        yield port


@contextlib.contextmanager
def _uvicorn_process(app: str, **environment: str) -> Iterator[int]:
    port = free_port()
    command = ["uvicorn", "--port", str(port), "--log-level", "critical", app]
    with _process(command, port, environment):
        yield port


@contextlib.contextmanager
def _process(command: list[str], port: int, environment: dict[str, str]) -> Iterator[None]:
    """Run a server as a program of Python's, until it listens and while the `with` lasts."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(_START_TIMEOUT)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another process or thread does."""
    deadline = time.monotonic() + 40  # two cores and a cold cache
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
