"""psycopg connections to PostgreSQL: a pool for each event loop and one for threads, per process.

psycopg has a pool of its own. It connects in the background, so that a request would wait for
seconds and then learn nothing but that there is no connection; here a request connects itself, and
reports that the password is wrong.
"""

from __future__ import annotations

import asyncio
import os
import queue
import re
import select
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import anyio.to_thread

from ..display import is_option, shown_location
from ..errors import ConfigError, StoreError
from ..runtime.run_sync import run_sync
from ..runtime.running_loop import running_loop
from .circuit_breaker import SILENT, SLOW, CircuitBreaker
from .turns import Turns

try:
    import psycopg
    from psycopg import conninfo, sql, waiting
except ImportError:  # neither psycopg, or psycopg without a libpq that it can use
    raise ConfigError(
        "store postgresql:// needs psycopg 3 and libpq: "
        "pip install 'cm_auth_middleware[postgres]' 'psycopg[binary]'"
    ) from None

CONNECTIONS = 5
_TIMEOUT = 5  # seconds to connect, and that a statement may take
_MARGIN = 0.5  # seconds after which a server is dead that should have ended the statement itself
_QUEUE = 5.0  # seconds that a request waits for one of the connections
_THREADS = 40  # threads that may wait for PostgreSQL at once on such an event loop as trio's
_IDLE = 300.0  # seconds after which an unused connection is closed
_RENEW_EVERY = 0.5  # seconds, at least, between two renewals of a pool whose server is a standby
_CONFLICTS = 50  # repetitions where the database is set to "repeatable read" or above
_LOOK_EVERY = 0.1  # seconds between two looks at the clock while a connection waits
LOCK = 0x434D4175  # "CMAu", the advisory lock under which the table is made
_EXAMPLE = "postgresql://user:password@host:5432/db, special characters of the password as %XX"
_TABLE = re.compile(r"[a-z_][a-z0-9_]{0,49}(\.[a-z_][a-z0-9_]{0,49})?")

# The server's answers, by SQLSTATE (PostgreSQL's documentation, appendix A).
_STANDBY = "25006"
_NO_TABLE = "42P01"
_NO_RIGHT = "42501"
_NO_SCHEMA = "3F000"
_CONFLICT = {"40001", "40P01"}
_UNSUPPORTED = {"0A000", "42883", _NO_RIGHT}  # not implemented, no such function
_ENDED = {"57P01", "57P02", "57P03", "57P05"}
_CONNECTION = "08"  # class of errors; PgBouncer's, if its connection to the server breaks
_SENTENCES = {
    _STANDBY: "is a standby that cannot be written: name the primary",
    _NO_TABLE: "has no table for the sessions any more",
    _NO_SCHEMA: "lets this user use no schema of its search_path: name one, ?table=schema.cm_auth",
    "42703": "has a table of this name that this package did not make: name another one, ?table=…",
    "42804": "has a table of this name that this package did not make: name another one, ?table=…",
    "53100": "cannot store anything: its disk is full",
    "53200": "is out of memory",
    "53300": "has no connection left: raise its max_connections, or lower ?max_connections=…",
    "55P03": "did not answer in time: a row is locked",
    "57014": "did not answer in time",
    "58030": "cannot read or write its disk",
    **dict.fromkeys(_ENDED, "is shutting down or starting"),
    **dict.fromkeys(_CONFLICT, "is too busy with the same record"),
}
_FORBIDDEN = "does not permit the user what a store needs; let the table's owner run"
_USER = "user_name"  # in SQL that an owner runs; the name itself is not for a log
_LOOK_UP = b"""
SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE relnamespace = schema.oid AND relname = %s)
FROM pg_catalog.pg_namespace AS schema WHERE nspname = %s
"""
_UNREACHABLE = "cannot be reached"
# libpq has no SQLSTATE of a failed connection, only text: the first that is found in it counts.
_CONNECT_SENTENCES = (
    ("certificate", "cannot be reached: its certificate cannot be verified"),
    ("root certificate file", "cannot be reached: the file of sslrootcert is not there"),
    ("password authentication failed", "refuses the user or the password"),
    ("no password supplied", "refuses the user or the password"),
    ("no pg_hba.conf entry", "refuses this host, user and database (pg_hba.conf)"),
    ("authentication failed", "refuses the user or the password"),
    ('role "', "refuses the user or the password"),
    ('database "', "has no such database, or does not let this user in"),
    ("too many clients", _SENTENCES["53300"]),
    ("too many connections", _SENTENCES["53300"]),
    ("connection slots", _SENTENCES["53300"]),
    ("does not support SSL", "does not support TLS"),
    ("server is in hot standby mode", _SENTENCES[_STANDBY]),
    ("session is read-only", _SENTENCES[_STANDBY]),
    ("starting up", "is shutting down or starting"),
    ("shutting down", "is shutting down or starting"),
    ("recovery mode", "is shutting down or starting"),
    ("not accepting connections", "is shutting down or starting"),
    ("not yet accepting connections", "is shutting down or starting"),
    ("timeout expired", "did not answer in time"),
    ("Connection refused", f"{_UNREACHABLE} (Connection refused)"),
    ("No such file", f"{_UNREACHABLE} (No such file or directory)"),
    ("resolve", f"{_UNREACHABLE} (its name is unknown)"),
    ("Name or service not known", f"{_UNREACHABLE} (its name is unknown)"),
    ("FATAL", "refuses the connection"),
)
# PgBouncer and Amazon's RDS Proxy refuse a connection that comes with settings.
_NO_SETTINGS = ("unsupported startup parameter", "command-line options")

# psycopg can wait on every event loop of asyncio but the default one of Windows.
_NOT_PSYCOPGS: Any = getattr(asyncio, "ProactorEventLoop", ())

_inherited: list[Any] = []  # connections of the parent process; closing them would disturb it

T = TypeVar("T")


class _SilentError(Exception):
    """The server did not answer in time. psycopg would take an OSError for a closed socket."""


_ERRORS = (psycopg.Error, OSError, _SilentError)


class Answer(NamedTuple):
    """The rows of a statement, and how many it returned or changed."""

    rows: list[Any]
    affected: int


class Statement(NamedTuple):
    """A statement and its parameters.

    Attributes:
        unsupported: the answer that stands for one of a server that cannot do this, or may not;
            None if it is an error.
    """

    sql: bytes
    parameters: tuple[Any, ...] = ()
    unsupported: Answer | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """A database and the table in it.

    Attributes:
        label: the URL as `shown_location` shows it: without user, password and options.
        table: the name of the table, which may begin with that of a schema.
        connections: the most connections at a time.
        parameters: those of libpq.
    """

    label: str
    table: str
    connections: int
    parameters: dict[str, Any]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a URL.

        Raises:
            ConfigError: it is wrong, or could be read in two ways. Neither the message nor a
                chained error holds a part of the URL.
        """
        try:
            return cls._parse(url)
        except ConfigError:
            raise
        except (ValueError, psycopg.Error) as error:
            unknown = re.search(r'invalid URI query parameter: "(\w+)"', str(error))
        if unknown and is_option(unknown[1], url):
            raise ConfigError(f"store has the unknown option {unknown[1]}; give {_EXAMPLE}")
        raise ConfigError(f"store is not a URL of PostgreSQL; give {_EXAMPLE}")

    @classmethod
    def _parse(cls, url: str) -> Self:
        parts = urlsplit(url)
        if parts.scheme not in ("postgresql", "postgres") or parts.fragment:
            raise ValueError
        if "@" in parts.path or "@" in parts.query:
            raise ValueError  # urlsplit() takes "user" for the host of "postgres://user:12/34@host"
        own = {"table": "cm_auth", "max_connections": str(CONNECTIONS)}
        others = []  # for libpq, which does not know ours
        for option in parts.query.split("&"):
            name, _, value = option.partition("=")
            if name in own:
                own[name] = value
            elif option:
                others.append(option)
        if not _TABLE.fullmatch(own["table"]):
            raise ConfigError(
                "store postgresql:// needs a table of lower-case letters, digits and _: "
                "?table=cm_auth, or ?table=schema.cm_auth"
            )
        connections = int(own["max_connections"])
        if connections < 1:
            raise ValueError
        parameters = conninfo.conninfo_to_dict(f"{url.partition('?')[0]}?{'&'.join(others)}")
        numbers = [
            *str(parameters.get("port", "")).split(","),
            parameters.get("connect_timeout", ""),
        ]
        if not all(not number or str(number).isdecimal() for number in numbers):
            raise ValueError  # libpq would say so at the first request
        parameters.setdefault("connect_timeout", _TIMEOUT)
        parameters.setdefault("application_name", "cm_auth")
        # A firewall may forget an idle connection, and the kernel would wait for minutes.
        parameters.setdefault("keepalives_idle", 60)
        parameters.setdefault("tcp_user_timeout", _TIMEOUT * 1000)
        return cls(shown_location(url), own["table"], connections, parameters)

    def conninfo(self, *, settings: bool) -> str:
        """Return libpq's form of it.

        Args:
            settings: set the statement timeout and the isolation level; a proxy may refuse it.
        """
        parameters = dict(self.parameters)
        if settings:
            own = parameters.get("options") or os.environ.get("PGOPTIONS", "")
            parameters["options"] = (
                f"-c statement_timeout={_TIMEOUT * 1000} "
                f"-c default_transaction_isolation=read\\ committed {own}"
            )
        return conninfo.make_conninfo("", **parameters)

    def __repr__(self) -> str:
        return self.label


class _Blocking(psycopg.Connection[Any]):
    """A connection for threads, which waits for a server that does not answer for a time only."""

    generation = 0

    def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        return waiting.wait(_bounded(gen), self.pgconn.socket, _LOOK_EVERY)


class _Awaiting(psycopg.AsyncConnection[Any]):
    """A connection for asyncio. If the task is cancelled, the connection is of no further use.

    psycopg would first ask the server to cancel the statement and wait for the answer, for
    seconds if there is none.
    """

    generation = 0

    async def wait(self, gen: Any, *_: Any, **__: Any) -> Any:
        return await waiting.wait_async(_bounded(gen), self.pgconn.socket, _LOOK_EVERY)


def _bounded(gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
    """Drive one of psycopg's generators, and raise an error when it has taken too long."""
    deadline = time.monotonic() + _TIMEOUT + _MARGIN
    try:
        state = next(gen)
        while True:
            ready = yield state
            if not ready and time.monotonic() > deadline:
                raise _SilentError
            state = gen.send(ready)
    except StopIteration as stop:
        result: T = stop.value
        return result


class _Pool:
    """The connections of one event loop, or of the threads of this process.

    Attributes:
        idle: connections that wait for the next statement, and since when.
        slots: bound how many statements run at a time.
        has_table: True if the table was found to be of this package's version.
        generation: of the connections that may be used.
        is_over: True if no connection may be kept.
    """

    def __init__(self, slots: Any) -> None:
        self.slots = slots
        self.idle: deque[tuple[Any, float]] = deque()
        self.has_table = False
        self.generation = 0
        self.renewed_at = float("-inf")
        self.is_over = False
        self._pid = os.getpid()

    def take(self) -> Any:
        """Return a connection that is alive as far as one can see; None if there is none."""
        while True:
            try:
                connection, since = self.idle.pop()
            except IndexError:
                return None
            if time.monotonic() < since + _IDLE and _is_silent(connection.pgconn.socket):
                return connection
            connection.pgconn.finish()

    def give_back(self, connection: Any) -> None:
        """Keep a connection for the next statement, unless it is in the midst of one."""
        is_free = connection.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE
        if not is_free or connection.generation != self.generation:
            connection.pgconn.finish()
            return
        self.idle.append((connection, time.monotonic()))
        if self.is_over:
            self.clear()
        with suppress(IndexError):  # another thread may have been faster
            while self.idle[0][1] + _IDLE < time.monotonic():
                connection, _ = self.idle.popleft()
                connection.pgconn.finish()

    def renew(self) -> bool:
        """Let new connections replace all others; False if that was done just now."""
        now = time.monotonic()
        if now < self.renewed_at + _RENEW_EVERY:
            return False
        self.renewed_at = now
        self.generation += 1
        self.clear()
        return True

    def close(self) -> None:
        self.is_over = True
        self.clear()

    def clear(self) -> None:
        with suppress(IndexError):
            while True:
                connection, _ = self.idle.pop()
                connection.pgconn.finish()

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self.clear()


class _Pools(ABC):
    """Runs statements, and connects anew where a connection broke or leads to a standby.

    Args:
        schema: the SQL that makes the table and names its version.
        version: the version of the table that this package needs.
        breaker: of this process, for a server that does not answer.
    """

    _connection: Any

    def __init__(
        self, target: Target, schema: bytes, version: int, breaker: CircuitBreaker
    ) -> None:
        self._target = target
        self._breaker = breaker
        self._version = version
        self._schema = schema
        self._look = compose(
            "SELECT value FROM {table} WHERE kind = 'schema' AND key = 'version'",
            table=identifier(target.table),
        )
        self._has_settings = True

    @abstractmethod
    async def run(
        self, statement: Statement, again: Statement | None, *, can_wait: bool = False
    ) -> Answer:
        """Run `statement`, and `again` on another connection if the first one breaks.

        Raises:
            StoreError: the server refuses it, or cannot be reached. If two statements in a row had
                no answer in time, at once, but for one a second that tries the server.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections made here; those in use are closed after their statement."""

    async def _attempt(
        self, pool: _Pool, is_trial: bool, statement: Statement, again: Statement | None
    ) -> Answer:
        if self._breaker.is_open and not is_trial:  # since this statement began to wait
            raise StoreError(f"{self._target} {SILENT}")
        conflicts = _CONFLICTS
        while True:
            connection: Any = None
            began = time.monotonic()
            had_table = pool.has_table
            try:
                connection = pool.take() or await self._connect(pool)
                if not had_table:
                    await self._find_table(connection)
                    pool.has_table = True
                answer = await _execute(connection, statement)
            except _ERRORS as error:
                state = getattr(error, "sqlstate", None) or ""
                failure = StoreError(f"{self._target} {self._sentence(error)}")
            else:
                self._breaker.answered()
                return answer
            finally:
                if connection is not None:
                    is_broken = connection.pgconn.status == psycopg.pq.ConnStatus.BAD
                    pool.give_back(connection)
            # Not raised in the clause above: it would be chained to an error that may quote values.
            if state and not state.startswith(_CONNECTION):
                self._breaker.answered()
            elif time.monotonic() > began + SLOW:
                self._breaker.timed_out()
                raise failure
            if state in _UNSUPPORTED and statement.unsupported is not None:
                return statement.unsupported
            if state == _STANDBY:  # the statement was not run, so it may be repeated
                if connection.generation == pool.generation and not pool.renew():
                    raise failure
            elif state == _NO_TABLE and had_table:
                pool.has_table = False
            elif state in _CONFLICT and conflicts:
                conflicts -= 1
            elif again and (is_broken or state in _ENDED or state.startswith(_CONNECTION)):
                statement, again = again, None
            else:
                raise failure

    async def _connect(self, pool: _Pool) -> Any:
        generation = pool.generation
        began = time.monotonic()
        while True:
            settings = self._has_settings
            try:
                connection = await outcome(
                    self._connection.connect(
                        self._target.conninfo(settings=settings),
                        autocommit=True,
                        prepare_threshold=None,  # PgBouncer may change the server in between
                    )
                )
            except _ERRORS as error:
                text = str(error)
            else:
                connection.generation = generation
                return connection
            if not settings or not any(words in text for words in _NO_SETTINGS):
                break
            self._has_settings = False
        if time.monotonic() > began + SLOW:
            self._breaker.timed_out()
        sentence = next((s for words, s in _CONNECT_SENTENCES if words in text), _UNREACHABLE)
        raise StoreError(f"{self._target} {sentence}")

    async def _find_table(self, connection: Any) -> None:
        """Make the table if it is not there.

        Raises:
            StoreError: the user may not make it, or it is of another version.
        """
        is_permitted = True
        try:
            found, _ = await _execute(connection, Statement(self._look))
        except psycopg.errors.UndefinedTable:
            found = []
        except psycopg.errors.InsufficientPrivilege:
            is_permitted = False
        if not is_permitted:  # to read it, or even to use its schema, which may be without it
            _, has_table = await self._look_it_up(connection)
            if has_table:
                raise StoreError(f"{self._target} {_FORBIDDEN}: {self._grants()}")
            raise StoreError(f"{self._target} {self._setup(has_schema=True)}")
        if not found:
            try:
                # Without parameters, psycopg sends it as one simple query, and the server runs all
                # of it in one transaction.
                await outcome(connection.execute(self._schema))
            except psycopg.errors.InsufficientPrivilege:
                is_permitted = False
            except psycopg.errors.InvalidSchemaName:
                if "." not in self._target.table:
                    raise
                is_permitted = False
            if not is_permitted:
                has_schema, _ = await self._look_it_up(connection)
                raise StoreError(f"{self._target} {self._setup(has_schema=has_schema)}")
            found, _ = await _execute(connection, Statement(self._look))
        version = found[0][0].decode(errors="replace") if found else ""
        if version != str(self._version):
            shown = version if version.isdecimal() and len(version) < 10 else "unknown"
            raise StoreError(
                f"{self._target} has a table {self._target.table} of version {shown}, and this "
                f"release needs version {self._version}: name another one, ?table=…"
            )

    async def _look_it_up(self, connection: Any) -> tuple[bool, bool]:
        """Return if the schema, and if the table is there, which everybody may know."""
        schema, _, table = self._target.table.rpartition(".")
        if not schema:  # the first of the search_path that this user may use
            return True, True
        rows, _ = await _execute(connection, Statement(_LOOK_UP, (table, schema)))
        return (True, rows[0][0]) if rows else (False, False)

    def _setup(self, *, has_schema: bool) -> str:
        """Say that there is no table, and what makes one, in the order in which it has to run."""
        schema, _, _ = self._target.table.rpartition(".")
        first = "" if has_schema else f"CREATE SCHEMA {_quoted(schema)}; "
        return (
            f"has no table {self._target.table}, and this user may not create it: "
            f"let an owner of the database run: {first}"
            f'the SQL of cm_auth_middleware.stores.postgres.schema("{self._target.table}"); '
            f"{self._grants()}"
        )

    def _grants(self) -> str:
        schema, _, _ = self._target.table.rpartition(".")
        usage = f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {_USER}; " if schema else ""
        return (
            f"{usage}GRANT SELECT, INSERT, UPDATE, DELETE ON {_quoted(self._target.table)} "
            f"TO {_USER} ({_USER}: that of the URL; docs: Deployment, PostgreSQL)"
        )

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, _SilentError):
            return "did not answer in time"
        state = getattr(error, "sqlstate", None) or _CONNECTION
        if state == _NO_RIGHT:
            return f"{_FORBIDDEN}: {self._grants()}"
        if state.startswith(_CONNECTION):
            return _UNREACHABLE
        return _SENTENCES.get(state) or f"refused a statement (SQLSTATE {state})"


class BlockingPools(_Pools):
    """The pool of this process for threads."""

    _connection = _Blocking

    def __init__(self, target: Target, schema: bytes, version: int) -> None:
        super().__init__(target, schema, version, CircuitBreaker())
        self._pools: dict[int, _Pool] = {}

    async def run(
        self,
        statement: Statement,
        again: Statement | None,
        *,
        can_wait: bool = False,  # noqa: ARG002
    ) -> Answer:
        is_trial = self._breaker.enter(self._target, _TIMEOUT)
        pool = self._pools.get(os.getpid())
        if pool is None:
            # Without a lock, which a fork could leave locked: of two threads, one's pool stays.
            pool = self._pools.setdefault(os.getpid(), _Pool(self._slots()))
        try:
            pool.slots.get(timeout=_QUEUE)
        except queue.Empty:
            raise _queued(self._target) from None
        try:
            return await self._attempt(pool, is_trial, statement, again)
        finally:
            pool.slots.put(None)

    async def close(self) -> None:
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def _slots(self) -> queue.SimpleQueue[None]:
        # Looked up now: gevent may have replaced it since this module was imported (--preload).
        slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(self._target.connections):
            slots.put(None)
        return slots


class AsyncPools(_Pools):
    """The pools of this process for event loops: asyncio's own, threads elsewhere."""

    _connection = _Awaiting

    def __init__(
        self, target: Target, schema: bytes, version: int, blocking: BlockingPools
    ) -> None:
        super().__init__(target, schema, version, blocking._breaker)
        self._blocking = blocking
        self._pid = os.getpid()
        self._pools: weakref.WeakKeyDictionary[Any, _Pool] = weakref.WeakKeyDictionary()
        self._threads: weakref.WeakKeyDictionary[Any, anyio.CapacityLimiter]
        self._threads = weakref.WeakKeyDictionary()

    async def run(
        self, statement: Statement, again: Statement | None, *, can_wait: bool = False
    ) -> Answer:
        loop = running_loop()
        if not _is_psycopgs(loop):
            return await self._in_a_thread(lambda: run_sync(self._blocking.run(statement, again)))
        is_trial = self._breaker.enter(self._target)
        pool = self._pool(loop)
        if not pool.slots.take():
            try:
                await pool.slots.wait(_QUEUE, goes_first=not can_wait)
            except TimeoutError:
                raise _queued(self._target) from None
        try:
            return await self._attempt(pool, is_trial, statement, again)
        finally:
            pool.slots.give_back()

    async def close(self) -> None:
        loop = running_loop()
        if not _is_psycopgs(loop):
            await self._in_a_thread(lambda: run_sync(self._blocking.close()))
            return
        pool = self._pools.pop(loop, None) if os.getpid() == self._pid else None
        if pool is not None:
            pool.close()

    async def _in_a_thread(self, work: Callable[[], T]) -> T:
        # Not one of anyio's shared threads: routes that wait for this result may use all of them.
        limiter = self._threads.setdefault(running_loop(), anyio.CapacityLimiter(_THREADS))
        return await anyio.to_thread.run_sync(work, limiter=limiter)

    def _pool(self, loop: Any) -> _Pool:
        if os.getpid() != self._pid:
            _inherited.append(self._pools)
            self._pools = weakref.WeakKeyDictionary()
            self._pid = os.getpid()
        pool = self._pools.get(loop)
        if pool is None:
            for other in [other for other in self._pools if other.is_closed()]:
                self._pools.pop(other).close()
            pool = self._pools[loop] = _Pool(Turns(self._target.connections))
        return pool


async def outcome(answer: Any) -> Any:
    """Return the answer of psycopg, which has to be awaited if it is for asyncio."""
    return await answer if hasattr(answer, "__await__") else answer


def _is_psycopgs(loop: Any) -> bool:
    return isinstance(loop, asyncio.AbstractEventLoop) and not isinstance(loop, _NOT_PSYCOPGS)


def identifier(table: str) -> sql.Identifier:
    """Return the name of a table, and of its schema if it has one, as SQL needs it."""
    return sql.Identifier(*table.split("."))


def _quoted(name: str) -> str:
    return identifier(name).as_string(None)


def compose(text: LiteralString, **parts: sql.Composable) -> bytes:
    """Return SQL in which parts take the places of their names in braces."""
    return sql.SQL(text).format(**parts).as_bytes(None)


async def _execute(connection: Any, statement: Statement) -> Answer:
    cursor = await outcome(
        connection.execute(statement.sql, statement.parameters, prepare=False, binary=True)
    )
    rows = await outcome(cursor.fetchall()) if cursor.description else []
    return Answer(rows, cursor.rowcount)


def _is_silent(fileno: int) -> bool:
    """True if an idle server has sent nothing: neither that it ends, nor a late answer."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return not poll.poll(0)
    return not select.select([fileno], [], [], 0)[0]  # Windows


def _queued(target: Target) -> StoreError:
    return StoreError(f"{target} is too slow: requests wait for a connection")
