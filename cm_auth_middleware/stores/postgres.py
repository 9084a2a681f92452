"""Sessions in PostgreSQL: they survive restarts and serve every process of every machine."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, LiteralString

from .postgres_pool import Target  # isort: skip - first, since it reports a missing psycopg

from psycopg import sql

from ..errors import StoreError
from .leases import CLAIMED, LAPSED
from .postgres_pool import (
    LOCK,
    Answer,
    AsyncPools,
    BlockingPools,
    Statement,
    compose,
    identifier,
)

_TIMELINE = b"SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
_VERSION = 1  # of the table; the schema names it, too
_PURGE_BATCH = 50  # expired rows that one write removes: a few ms
_PURGE_EVERY = 30.0  # seconds between looking for expired rows when there were few
# What the statement "put" has for its row; a statement with more rows sets several values.
_ROW = b"('record', %b, %b, clock_timestamp() + make_interval(secs => %s))"


_SCHEMA: LiteralString = """\
CREATE TABLE IF NOT EXISTS {table} (
  kind text NOT NULL,
  key bytea NOT NULL,
  value bytea NOT NULL,
  expires timestamptz NOT NULL,
  PRIMARY KEY (kind, key)
);
CREATE INDEX IF NOT EXISTS {by_expiry} ON {table} (expires);
CREATE INDEX IF NOT EXISTS {by_user} ON {table} (substring(value FROM 1 FOR 17))
  WHERE kind = 'record';
INSERT INTO {table} (kind, key, value, expires)
  VALUES ('schema', 'version', '1', 'infinity') ON CONFLICT DO NOTHING;
"""


def schema(table: str = "cm_auth") -> str:
    """Return the SQL that makes the table of a store, if it is not there.

    Args:
        table: its name, or ``schema.name``.
    """
    own = table.rpartition(".")[2]
    return compose(
        _SCHEMA,
        table=identifier(table),
        by_expiry=identifier(f"{own}_by_expiry"),
        by_user=identifier(f"{own}_by_user"),
    ).decode()


SCHEMA = schema()
"""The SQL that makes the table ``cm_auth``; its owner runs it where the store's user may not."""


class PostgresStore:
    """A store in one table of a PostgreSQL database, of version 12 or later.

    ``postgresql://user:password@host:5432/db?sslmode=verify-full``, with the options of libpq after
    the question mark. Several hosts (``a:5432,b:5432``) with ``target_session_attrs=read-write``
    are a primary and its standbys. Options of this package:

    - ``table=cm_auth``: the name of the table, or ``schema.name``. It is made at first use.
    - ``max_connections=5``: per event loop, and per process for threads; further requests wait for
      a free one.

    The time is the database's, so the clocks of the machines need not agree. A connection keeps no
    state between statements, so PgBouncer may pool transactions. Writes delete expired rows in
    small batches.

    Args:
        url: the URL.

    Raises:
        ConfigError: the URL is wrong, or psycopg is not installed.
        StoreError: by every method, if the database cannot be used; once it can, they work again.
    """

    def __init__(self, url: str) -> None:
        self._target = Target.parse(url)
        # Two processes that start at once would otherwise collide in the catalogue.
        lock = f"SELECT pg_advisory_xact_lock({LOCK});\n"
        setup = (lock + schema(self._target.table)).encode()
        self._blocking = BlockingPools(self._target, setup, _VERSION)
        self._pools: AsyncPools | BlockingPools
        self._pools = AsyncPools(self._target, setup, _VERSION, self._blocking)
        self._sql = _statements(identifier(self._target.table))
        self._purge_at = 0.0

    def blocking(self) -> PostgresStore:
        """Return a twin for threads, with connections of its own."""
        twin = copy.copy(self)
        twin._pools = self._blocking
        return twin

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        statement = Statement(self._sql["get"], (key.encode(),))
        # What has a dot in its key is no session, and somebody may wait for a refresh.
        rows, _ = await self._pools.run(statement, statement, can_wait="." not in key)
        return rows[0][0] if rows else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        await self._repeatable("put", key.encode(), value, ttl)
        await self._tidy()

    async def put_all(self, records: Sequence[tuple[str, bytes, float]]) -> None:
        """Set values by one statement."""
        put = self._sql["put"].replace(_ROW, b", ".join([_ROW] * len(records)))
        rows = [(key.encode(), value, ttl) for key, value, ttl in records]
        statement = Statement(put, tuple(itertools.chain.from_iterable(rows)))
        await self._pools.run(statement, statement)
        await self._tidy()

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        # When a connection breaks, the statement may have run or not. If the second try finds
        # `new`, it did: the value is encrypted with a nonce, so no other caller wrote it.
        statement, again = (
            Statement(self._sql["replace"], (new, ttl, key.encode(), old, accepted))
            for accepted in (old, new)
        )
        _, replaced = await self._pools.run(statement, again)
        await self._tidy()
        return replaced == 1

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it.

        Raises:
            StoreError: also when a connection breaks before the reply: a second try would not find
                a value that the first try deleted.
        """
        rows, _ = await self._pools.run(Statement(self._sql["delete"], (key.encode(),)), None)
        return next((value for value, is_live in rows if is_live), None)

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        _, taken = await self._repeatable("acquire", key.encode(), owner.encode(), ttl)
        await self._tidy()  # visitors can cause writes of leases and of nothing else
        return taken == 1

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        """Take or extend a lease, unless another owner let it run out."""
        name, lapsed = key.encode(), LAPSED if even_lapsed else 0.0
        claimed = (CLAIMED + owner).encode()
        _, taken = await self._repeatable(
            "claim", name, claimed, ttl + LAPSED, owner.encode(), lapsed
        )
        await self._tidy()
        if taken == 1:
            return True
        rows, _ = await self._repeatable("lapsed", name, LAPSED)
        return None if rows else False

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        owners = owner.encode(), (CLAIMED + owner).encode()
        await self._repeatable("release", key.encode(), *owners)

    async def purge(self) -> int:
        """Delete everything that has expired, batch by batch; return how many records it was."""
        removed: int = 0
        while True:
            kinds, batch = await self._repeatable("purge", _PURGE_BATCH)
            removed += sum(kind == "record" for (kind,) in kinds)
            if batch < _PURGE_BATCH:
                return removed

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Return the records whose value begins with `prefix`, by an index of 17 bytes."""
        rows, _ = await self._with_prefix("find", prefix)
        return [(key.decode(), value) for key, value in rows if value.startswith(prefix)]

    async def count(self, prefix: bytes = b"") -> int:
        """Count the live records; only the first 17 bytes of a prefix are compared."""
        rows, _ = await self._with_prefix("count", prefix)
        return int(rows[0][0])

    async def epochs(self, key: str | None = None) -> frozenset[str]:  # noqa: ARG002
        """Return the primary's timeline: a standby that is promoted begins another one.

        A server that only speaks like PostgreSQL may have none, and tells nothing.
        """
        statement = Statement(_TIMELINE, unsupported=Answer([], 0))
        rows, _ = await self._pools.run(statement, statement)
        return frozenset(f"timeline {name}" for (name,) in rows)

    async def ping(self) -> None:
        """Write a row: a standby, or a server with a full disk, would still answer a question."""
        await self._repeatable("acquire", b"ping", b"", 1.0)

    async def close(self) -> None:
        """Close the connections of this event loop, or for the twin those of this process."""
        await self._pools.close()

    def __repr__(self) -> str:
        return f"<PostgresStore {self._target}>"

    async def _with_prefix(self, name: str, prefix: bytes) -> Answer:
        prefix = prefix[:17]
        # Values that begin with b"ab" are from b"ab" to below b"ac"; none are above b"\xff".
        above = prefix.rstrip(b"\xff")
        if not above:
            return await self._repeatable(f"{name} from", prefix)
        return await self._repeatable(
            f"{name} between", prefix, above[:-1] + bytes([above[-1] + 1])
        )

    async def _repeatable(self, name: str, *parameters: Any) -> Answer:
        """Run a statement; repeat it once if the connection breaks, which does no harm."""
        statement = Statement(self._sql[name], parameters)
        return await self._pools.run(statement, statement)

    async def _tidy(self) -> None:
        """Delete a batch of expired rows, if it is time to.

        It runs after a write that succeeded, so errors are ignored: a later write tries again.
        """
        now = time.monotonic()
        if now < self._purge_at:
            return
        self._purge_at = now + _PURGE_EVERY
        with suppress(StoreError):
            _, removed = await self._repeatable("purge", _PURGE_BATCH)
            if removed == _PURGE_BATCH:
                self._purge_at = now  # there are more: go on at the next write


def _statements(table: sql.Identifier) -> dict[str, bytes]:
    """Return the statements on a table.

    The clock of a statement that waits for a lock goes on (`clock_timestamp`), but an index serves
    only a time that stands still (`statement_timestamp`). The kinds are no parameters, because the
    index by user is one of records.
    """
    live = sql.SQL("{table} WHERE kind = 'record' AND expires > clock_timestamp()").format(
        table=table
    )
    # The expression must be exactly the indexed one: see the schema.
    prefix = sql.SQL("substring(value FROM 1 FOR 17)")
    parts: dict[str, sql.Composable] = {"table": table, "live": live, "prefix": prefix}
    return {name: compose(text, **parts) for name, text in _STATEMENTS.items()}


_STATEMENTS: dict[str, LiteralString] = {
    "get": "SELECT value FROM {live} AND key = %b",
    "put": """
        INSERT INTO {table} (kind, key, value, expires)
        VALUES ('record', %b, %b, clock_timestamp() + make_interval(secs => %s))
        ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, expires = excluded.expires
        """,
    "replace": """
        UPDATE {table} SET value = %b, expires = clock_timestamp() + make_interval(secs => %s)
        WHERE kind = 'record' AND key = %b AND value IN (%b, %b) AND expires > clock_timestamp()
        """,
    "delete": """
        DELETE FROM {table} WHERE kind = 'record' AND key = %b
        RETURNING value, expires > clock_timestamp()
        """,
    "acquire": """
        INSERT INTO {table} AS stored (kind, key, value, expires)
        VALUES ('lease', %b, %b, clock_timestamp() + make_interval(secs => %s))
        ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, expires = excluded.expires
        WHERE stored.value = excluded.value OR stored.expires <= clock_timestamp()
        """,
    # A lease that was claimed is kept for `LAPSED` after it has run out.
    "claim": """
        INSERT INTO {table} AS stored (kind, key, value, expires)
        VALUES ('lease', %b, %b, clock_timestamp() + make_interval(secs => %s))
        ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, expires = excluded.expires
        WHERE stored.value IN (excluded.value, %b) OR stored.expires <= clock_timestamp()
          OR substring(stored.value FROM 1 FOR 1) = '+'
            AND stored.expires <= clock_timestamp() + make_interval(secs => %s)
        """,
    "lapsed": """
        SELECT 1 FROM {table} WHERE kind = 'lease' AND key = %b
          AND substring(value FROM 1 FOR 1) = '+'
          AND expires <= clock_timestamp() + make_interval(secs => %s)
        """,
    "release": "DELETE FROM {table} WHERE kind = 'lease' AND key = %b AND value IN (%b, %b)",
    # The condition stands twice: a row may be written anew between the reading and the lock.
    "purge": """
        DELETE FROM {table} WHERE expires <= statement_timestamp() AND (kind, key) IN (
          SELECT kind, key FROM {table} WHERE expires <= statement_timestamp()
          ORDER BY expires LIMIT %s FOR UPDATE SKIP LOCKED
        ) RETURNING kind
        """,
    "find from": "SELECT key, value FROM {live} AND {prefix} >= %b",
    "find between": "SELECT key, value FROM {live} AND {prefix} >= %b AND {prefix} < %b",
    "count from": "SELECT count(*) FROM {live} AND {prefix} >= %b",
    "count between": "SELECT count(*) FROM {live} AND {prefix} >= %b AND {prefix} < %b",
}
