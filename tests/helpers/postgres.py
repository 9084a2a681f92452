"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, ended by its own pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
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
        # The server refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(directory, "postgres", "postgres")
        self.data = directory / "data"
        command = [self._programs / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust"]
        subprocess.run(
            [*command, "--no-sync", "--no-locale", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=directory,
            **self._user,
        )
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
                **self._user,
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

    def clients(self) -> int:
        """How many connections a store has to it."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cm_auth'"
        return int(self.command(query)[0][0])

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
