"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, ended by its own pid."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from .servers import free_port

_START_TIMEOUT = 30.0
_DEBIAN = Path("/usr/lib/postgresql")  # Debian keeps the server's programs out of PATH
PASSWORD = "pass-word/that?nobody#sees"
QUOTED = "pass-word%2Fthat%3Fnobody%23sees"
_HBA = """
local all all trust
host all cm 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
host replication all 127.0.0.1/32 trust
"""


def require_postgres() -> Path:
    """Return the folder of PostgreSQL's programs; without it the test is skipped, or fails.

    Set CM_AUTH_REQUIRE_POSTGRES=1 where a skip would go unnoticed.
    """
    found = shutil.which("postgres")
    folders = [Path(found).parent] if found else sorted(_DEBIAN.glob("*/bin"))
    folders = [folder for folder in folders if (folder / "initdb").exists()]
    if not folders:
        message = "NOT TESTED: PostgreSQL is not installed (initdb and postgres)"
        if os.environ.get("CM_AUTH_REQUIRE_POSTGRES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return folders[-1]


def _owner(directory: Path) -> dict[str, Any]:
    """Return options of `subprocess` for a user other than root, to whom `directory` is given."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(directory, "postgres", "postgres")  # the server refuses to run as root
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


@functools.cache
def _template() -> Path:
    """Make a cluster to copy from: that is faster than making each anew."""
    directory = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    atexit.register(shutil.rmtree, directory)
    command = [require_postgres() / "initdb", "-D", directory / "data", "-U", "postgres"]
    subprocess.run(
        [*command, "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=directory,
        **_owner(directory),
    )
    return directory / "data"


class PostgresServer:
    """A PostgreSQL server; it can be stopped, started again, paused and resumed.

    The user ``postgres`` needs no password, ``cm`` has `PASSWORD` and owns nothing.

    Args:
        directory: for its data and socket; what is saved there survives `stop` and `start`.
        options: more of its configuration, such as ``["max_connections=10"]``.
    """

    def __init__(self, directory: Path, options: list[str]) -> None:
        self.directory = directory
        self.options = options
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._programs = require_postgres()
        self._process: subprocess.Popen[bytes] | None = None
        self.data = directory / "data"
        self._owner = _owner(directory)
        # With owner and modes, on which the server insists.
        subprocess.run(["cp", "-a", _template(), self.data], check=True)
        (self.data / "pg_hba.conf").write_text(_HBA)

    def start(self) -> None:
        """Start, and return when it answers."""
        log = self.directory / "log"
        settings = [
            f"port={self.port}",
            "listen_addresses=127.0.0.1",
            f"unix_socket_directories={self.directory}",
            "fsync=off",
            *self.options,
        ]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.data]
                + [part for setting in settings for part in ("-c", setting)],
                stdout=output,
                stderr=output,
                cwd=self.directory,
                **self._owner,
            )
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start:\n{log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once ("immediate"): connections break, and it recovers when it starts again."""
        if self._process is not None:
            self.resume()
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_START_TIMEOUT)
            self._process = None

    def pause(self) -> None:
        """Freeze it and all that serve its clients: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def command(self, sql: str, *parameters: Any) -> list[Any]:
        """Run a statement as the owner and return its rows."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def connected(self) -> Iterator[psycopg.Connection[Any]]:
        """Give a connection of the owner; its transaction is rolled back."""
        with psycopg.connect(self.url) as connection:
            yield connection
            connection.rollback()

    def set(self, name: str, value: str) -> None:
        """Change a setting, and return when new connections and old ones have it."""
        # "default_transaction_read_only" forbids the next statement, unless it is switched off.
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
            connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + _START_TIMEOUT
        while self.command(f"SHOW {name}") != [(value,)]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.1)  # until idle connections have read it, too

    def secure(self, certificate: str, key: str) -> None:
        """Speak TLS, with a certificate and a key in `directory`."""
        if self._owner:
            for name in (certificate, key):
                shutil.chown(self.directory / name, "postgres", "postgres")
        (self.directory / key).chmod(0o600)
        self.options += [f"ssl_cert_file={self.directory / certificate}"]
        self.options += [f"ssl_key_file={self.directory / key}", "ssl=on"]
        self.stop()
        self.start()

    def clients(self) -> int:
        """How many connections a store has to it."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cm_auth'"
        return int(self.command(query)[0][0])

    def loses_its_clients(self) -> None:
        """Wait until no connection is left: a backend ends some time after its client went."""
        deadline = time.monotonic() + 10
        while self.clients():
            assert time.monotonic() < deadline, "connections are left"
            time.sleep(0.02)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.Error):
            return self.command("SELECT 1") == [(1,)]
        return False


@contextlib.contextmanager
def postgres_server(*options: str) -> Iterator[PostgresServer]:
    """Run a PostgreSQL for as long as the `with` lasts; see `PostgresServer`."""
    require_postgres()
    # A short path: that of a socket has 108 characters at most.
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as directory:
        server = PostgresServer(Path(directory), list(options))
        try:
            server.start()
            server.command("CREATE ROLE cm LOGIN PASSWORD '" + PASSWORD + "'")
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """Run a standby that follows a primary, which is restarted for that."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as directory:
        server = PostgresServer(Path(directory), primary.options)
        primary.stop()
        shutil.rmtree(server.data)
        subprocess.run(["cp", "-a", primary.data, server.data], check=True)
        (server.data / "standby.signal").touch()
        (server.data / "postmaster.pid").unlink(missing_ok=True)
        primary.start()
        server.options = [
            *primary.options,
            f"primary_conninfo=host=127.0.0.1 port={primary.port} user=postgres",
        ]
        try:
            server.start()
            yield server
        finally:
            server.stop()


class Cutter:
    """A proxy that hands a statement on and then cuts the connection instead of answering.

    Attributes:
        cut_at: what the statement has in it; None once it was cut.
    """

    def __init__(self, server: PostgresServer) -> None:
        self.cut_at: bytes | None = None
        self._port = server.port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = server.url.replace(str(server.port), str(self._listener.getsockname()[1]))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._port)) as server,
        ):
            while request := client.recv(65536):
                server.sendall(request)
                answer = server.recv(65536)
                if self.cut_at and self.cut_at in request:
                    self.cut_at = None
                    return
                client.sendall(answer)


@contextlib.contextmanager
def pgbouncer(server: PostgresServer) -> Iterator[str]:
    """Run a PgBouncer that pools transactions over one connection; yield its URL."""
    program = shutil.which("pgbouncer")
    if program is None:
        message = "NOT TESTED: PgBouncer is not installed"
        if os.environ.get("CM_AUTH_REQUIRE_POSTGRES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="pgb", dir="/tmp") as name:
        directory = Path(name)
        (directory / "users").write_text('"postgres" ""\n')
        (directory / "ini").write_text(
            "[databases]\n"
            f"postgres = host=127.0.0.1 port={server.port} user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = any\nauth_file = {directory / 'users'}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\n"
        )
        for file in directory.iterdir():
            file.chmod(0o644)
        process = subprocess.Popen(
            [program, "-q", directory / "ini"],
            stderr=subprocess.DEVNULL,
            cwd=directory,
            **_owner(directory),
        )
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while True:
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", port), timeout=1),
                ):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("PgBouncer did not start")
                time.sleep(0.02)
            yield server.url.replace(str(server.port), str(port))
        finally:
            process.terminate()
            process.wait(_START_TIMEOUT)
