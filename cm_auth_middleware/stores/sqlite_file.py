"""The SQLite file of a store, and the connections to it that threads share."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from ..display import shown_file
from ..errors import ConfigError, StoreError
from ..events import log

_APPLICATION = 0x434D4175  # "CMAu", in the file's header: this package made it
_VERSION = 1
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS records "
    "(key TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL)",
    "CREATE INDEX IF NOT EXISTS records_by_expiry ON records (expires)",
    "CREATE INDEX IF NOT EXISTS records_by_prefix ON records (substr(value, 1, 17))",
    "CREATE TABLE IF NOT EXISTS leases "
    "(key TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)
# The file and its journals: the endings of their names.
_PARTS = ("", "-wal", "-shm", "-journal")
# Objects that run code when a record is read or written. A virtual table has no page in the file.
_FOREIGN = (
    "SELECT type, name FROM sqlite_master "
    "WHERE type NOT IN ('table', 'index') OR coalesce(rootpage, 0) < 1 LIMIT 1"
)
_LOG_PAGES = 4000  # of the write-ahead log; then SQLite itself moves it, during a write
_LOOK_EVERY = 1.0  # seconds between checks that the file is still the one that was opened
_FORK_PATIENCE = 1.0  # seconds that a fork waits for other threads' statements

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
# These errors leave a connection usable; after others the file may have to be reopened.
_HARMLESS = _BUSY | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_TOOBIG}
_SENTENCES = {
    sqlite3.SQLITE_BUSY: "is locked by another process for too long",
    sqlite3.SQLITE_LOCKED: "is locked by another process for too long",
    sqlite3.SQLITE_FULL: "cannot grow: its disk is full",
    sqlite3.SQLITE_READONLY: "cannot be written: the file or its directory is read-only",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: are it and its directory there and accessible",
    sqlite3.SQLITE_PERM: "cannot be opened: its permissions forbid it",
    sqlite3.SQLITE_CORRUPT: "is damaged: put a backup in its place, or remove it",
    sqlite3.SQLITE_NOTADB: "is not a SQLite database: name another file, or remove it",
    sqlite3.SQLITE_AUTH: "has a trigger or a view that this package did not make: drop it",
    sqlite3.SQLITE_IOERR: "cannot be read or written: is its disk full, or broken",
}

_files: weakref.WeakSet[SQLiteFile] = weakref.WeakSet()
_opening = threading.Lock()  # one for all files, so that two forks cannot wait for each other
_inherited: list[Any] = []  # connections of a parent process; closing them would disturb it


class SQLiteFile:
    """Runs statements on one file, each a transaction of its own, with connections kept open.

    A connection serves one statement at a time and then waits in a list for the next one, of any
    thread. No connection crosses a fork: SQLite keeps a record of its locks in the process's
    memory, and a child that inherits the record without the locks loses writes
    (https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_).

    Only this process's user and root may be able to write it: see `check_access`. Each new
    connection checks this, and that the file has no triggers. A trigger that is added later ends
    the connections that meet it.

    Args:
        path: the file; it and its journal are created with mode 0600.

    Raises:
        ConfigError: the path names no file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.fspath(path)
        if not name or name == ":memory:" or "\0" in name:
            raise ConfigError("store sqlite:// needs the path of a file; in memory is memory://")
        self.path = Path(name).absolute()
        self.label = shown_file(str(self.path))  # its name in messages
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._generation = 0
        self._identity: tuple[int, ...] | None = None
        self._warned: set[tuple[Path, str]] = set()
        self._look_at = 0.0
        self._pid = os.getpid()
        _files.add(self)

    def run(self, statement: str, parameters: tuple[Any, ...] = ()) -> tuple[list[Any], int]:
        """Run a statement; return the rows that it read and the number of rows that it changed."""
        connection = self._take()
        try:
            cursor = connection.execute(statement, parameters)
            result = cursor.fetchall(), cursor.rowcount
        except BaseException as error:
            self._failed(connection, error)
            raise
        self._give(connection)
        return result

    def close(self) -> None:
        """Close the idle connections now, and those in use when they are given back."""
        self._generation += 1
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread took it
                break
            self._close(connection)

    def before_fork(self, deadline: float) -> None:
        """Close every connection, waiting for those that other threads are using."""
        while True:
            self.close()
            if not self._open or time.monotonic() > deadline:
                return
            time.sleep(0.001)

    def after_fork(self) -> None:
        """Drop the connections that could not be closed before this process was forked."""
        _inherited.append((self._idle, self._open))
        self._idle, self._open = [], set()
        self._pid = os.getpid()

    def _take(self) -> _Connection:
        if os.getpid() != self._pid:  # a server in C forked, and Python was not told
            self.after_fork()
        if time.monotonic() >= self._look_at:
            self._look()
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _give(self, connection: _Connection) -> None:
        if connection.generation == self._generation:
            self._idle.append(connection)
        else:
            self._close(connection)

    def _failed(self, connection: _Connection, error: BaseException) -> None:
        if _code(error) not in _HARMLESS:
            self.close()
        self._give(connection)

    def _close(self, connection: _Connection) -> None:
        connection.close()
        self._open.discard(connection)  # last: a fork waits until all are closed

    def _look(self) -> None:
        """Close the connections if the file was replaced, or its mode or owner changed."""
        self._look_at = time.monotonic() + _LOOK_EVERY
        identity = self._identify()
        if identity != self._identity:
            self.close()
            self._identity = identity

    def _identify(self) -> tuple[int, ...] | None:
        try:
            status = self.path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mode, status.st_uid

    def _connect(self) -> _Connection:
        for entry, reason in check_access(self.path):
            if (entry, reason) not in self._warned:
                self._warned.add((entry, reason))
                log("store_permissions", path=entry, reason=reason)
        with _opening:
            self._create()
            generation = self._generation
            connection = sqlite3.connect(
                self.path,
                timeout=0,  # the caller waits: here it would block an event loop
                isolation_level=None,
                check_same_thread=False,
                factory=_Connection,
            )
            connection.generation = generation
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._open.add(connection)
            return connection

    def _create(self) -> None:
        descriptor, reason = None, None
        try:
            # O_EXCL follows no link, and makes no file at the end of one (POSIX, open()).
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            # Do not open it here: closing it would drop the locks of this process's connections
            # (POSIX; howtocorrupt.html §2.2).
            return
        except OSError as error:  # whose text quotes the path
            reason = error.strerror
        if descriptor is None:
            raise StoreError(
                f"{self.label} cannot be created: {reason}; is its directory there and writable"
            )
        os.close(descriptor)
        self._identity = self._identify()

    def _prepare(self, connection: _Connection) -> None:
        def number(query: str) -> int:
            return int(connection.execute(query).fetchone()[0])

        # SQLite advises both for files that others may have written
        # (https://www.sqlite.org/security.html).
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.set_authorizer(_deny_triggers)
        # Keep this order: another process may commit the whole schema between two of these.
        tables = number("SELECT count(*) FROM sqlite_master")
        version = number("PRAGMA user_version")
        if number("PRAGMA application_id") != _APPLICATION and (tables or version):
            raise StoreError(f"{self.label} is another program's database: name another file")
        if version > _VERSION:
            raise StoreError(
                f"{self.label} was written by a newer version of cm_auth_middleware: upgrade this "
                "one, or name another file"
            )
        foreign = connection.execute(_FOREIGN).fetchone()
        if foreign:
            kind = foreign[0] if foreign[0] in ("trigger", "view") else "virtual table"
            raise StoreError(
                f"{self.path} has a {kind} that this package did not make, "
                f"{str(foreign[1])!r:.60}: drop it, or remove the file"
            )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"{self.label} has to be on a local file system: WAL is impossible")
        if version < _VERSION:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute("COMMIT")


class _Connection(sqlite3.Connection):
    generation = 0


def check_access(path: Path) -> list[tuple[Path, str]]:
    """Return which of the file, its journals and its folder a group may write, and the remedy.

    A user who may write there can put back old sessions, or another file. The folder counts as much
    as the file, and the sticky bit does not help: it still lets users add files. On Windows nothing
    is checked.

    Raises:
        StoreError: every user may write one of them, it belongs to neither this process's user
            nor root, or it is a link; the message has the remedy.
    """
    if os.name != "posix":  # pragma: no cover - Windows
        return []
    folder = Path(os.path.realpath(path.parent))  # links among the folders are allowed
    shared = []
    for entry in (folder, *(Path(f"{path}{part}") for part in _PARTS)):
        try:
            status = entry.lstat()
        except OSError:  # it does not exist yet; other problems show when it is opened
            continue
        if stat.S_ISLNK(status.st_mode):
            raise StoreError(f"{entry} is a link: name the file that it leads to, or remove it")
        if status.st_mode & stat.S_IWOTH:
            mend = f"chmod o-w {entry}"
            if entry == folder:
                own_folder = "put the file in a folder of its own with mode 0700"
                is_sticky = status.st_mode & stat.S_ISVTX  # as /tmp is, and has to be
                mend = own_folder if is_sticky else f"{mend}, or {own_folder}"
            raise StoreError(f"{entry} can be written by everybody: {mend}")
        if status.st_uid not in (0, os.geteuid()):
            raise StoreError(
                f"{entry} belongs to another user ({status.st_uid}): run as that user, or chown "
                f"it to this one ({os.geteuid()})"
            )
        if status.st_mode & stat.S_IWGRP:
            shared.append((entry, f"its group may write it: chmod g-w {entry}"))
    return shared


def _deny_triggers(*action: object) -> int:
    """Deny the actions of triggers and views, and no others.

    SQLite asks for each action of a statement when it compiles it. The last argument is the name of
    the trigger or view that contains the action (https://www.sqlite.org/c3ref/set_authorizer.html).
    """
    return sqlite3.SQLITE_OK if action[-1] is None else sqlite3.SQLITE_DENY


def is_busy(error: sqlite3.Error) -> bool:
    """True if the statement may succeed in a moment, when another process has finished."""
    return _code(error) in _BUSY


def explain(label: str, error: sqlite3.Error) -> str:
    """Return a sentence that says what is wrong with the file."""
    sentence = _SENTENCES.get(_code(error), "cannot be used")
    return f"{label} {sentence} ({getattr(error, 'sqlite_errorname', error)})"


def _code(error: BaseException) -> int:
    """Return SQLite's primary result code; extended ones have more in the upper bits."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF


def _before_fork() -> None:
    _opening.acquire()
    deadline = time.monotonic() + _FORK_PATIENCE
    for file in list(_files):
        file.before_fork(deadline)


def _after_fork_in_child() -> None:
    for file in list(_files):
        file.after_fork()
    _opening.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_opening.release,
        after_in_child=_after_fork_in_child,
    )
