"""This store keeps sessions in a SQLite file, for restarts and all processes of one machine."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ..display import shown_file
from ..errors import StoreError
from ..events import log
from .file_system import sentence, unfit_file_system
from .leases import CLAIMED, LAPSED
from .sqlite_file import SQLiteFile, check_access, explain, is_busy

_PATIENCE = 2.0  # seconds that a write waits for another process's lock
_BACKOFF = (0.001, 0.02)  # seconds between two attempts: from, to
_PURGE_BATCH = 50  # expired records that one write removes: a few ms
_PURGE_EVERY = 30.0  # seconds between looking for expired records when there were few

# SQLite itself would do it during some write, and block the event loop while the disk works.
_CHECKPOINT_EVERY = 200  # records written: 4 MB of log

_GET = "SELECT value FROM records WHERE key = ? AND expires > ?"
_PUT = (
    "INSERT INTO records (key, value, expires) VALUES (?, ?, ?) ON CONFLICT (key) "
    "DO UPDATE SET value = excluded.value, expires = excluded.expires"
)
_REPLACE = "UPDATE records SET value = ?, expires = ? WHERE key = ? AND value = ? AND expires > ?"
_READ = "SELECT value, expires FROM records WHERE key = ?"
_DELETE = "DELETE FROM records WHERE key = ? AND value = ?"
_ACQUIRE = (
    "INSERT INTO leases (key, owner, expires) VALUES (?, ?, ?) ON CONFLICT (key) "
    "DO UPDATE SET owner = excluded.owner, expires = excluded.expires "
    "WHERE owner = excluded.owner OR expires <= ?"
)
# A lease that was claimed is kept for `LAPSED` after it has run out.
_CLAIM = (
    "INSERT INTO leases (key, owner, expires) VALUES (?, ?, ?) ON CONFLICT (key) "
    "DO UPDATE SET owner = excluded.owner, expires = excluded.expires "
    "WHERE owner IN (excluded.owner, ?) OR expires <= ? OR (owner LIKE '+%' AND expires <= ?)"
)
_HOLDER = "SELECT 1 FROM leases WHERE key = ? AND owner LIKE '+%' AND expires <= ?"
_RELEASE = "DELETE FROM leases WHERE key = ? AND owner IN (?, ?)"
# The expression must be exactly the indexed one: see the schema.
_FIND = "SELECT key, value FROM records WHERE substr(value, 1, 17) >= ? AND expires > ?"
_FIND_BELOW = f"{_FIND} AND substr(value, 1, 17) < ?"
_COUNT = "SELECT count(*) FROM records WHERE expires > ?"
_COUNT_FROM, _COUNT_BELOW = (q.replace("key, value", "count(*)") for q in (_FIND, _FIND_BELOW))
_PURGE = (
    "DELETE FROM records WHERE rowid IN "
    "(SELECT rowid FROM records WHERE expires <= ? ORDER BY expires LIMIT ?)"
)
_PURGE_LEASES = (
    "DELETE FROM leases WHERE key IN (SELECT key FROM leases WHERE expires <= ? LIMIT ?)"
)


class SQLiteStore:
    """A store in one SQLite file in WAL mode, shared by the threads and processes of a machine.

    Statements run in the calling thread: a read takes 10 µs and waits for no lock. A write that
    finds the file locked by another process sleeps and retries for two seconds, while an event
    loop serves others. Writes delete expired records in small batches.

    Args:
        path: the file, on a local file system; it is created with mode 0600.
        clock: epoch seconds.
        lease_clock: seconds, the same for all processes of this machine; by default the time since
            the machine started, so that setting the time of day ends no lease early.

    Raises:
        StoreError: by every method, if the file cannot be used; once it can, they work again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.time,
        lease_clock: Callable[[], float] | None = None,
    ) -> None:
        self._file = SQLiteFile(path)
        self._clock = clock
        self._era, self._lease_clock = ("", lease_clock) if lease_clock else machine_time()
        self._sleep: Callable[[float], Awaitable[None]] = anyio.sleep
        self._apart: Callable[[Callable[[], Any]], Awaitable[None]] = _in_a_thread
        self._purge_at = 0.0
        self._changed = 0

    def blocking(self) -> SQLiteStore:
        """Return a twin for threads, which shares the connections and blocks while it sleeps."""
        twin = copy.copy(self)
        twin._sleep, twin._apart = _block, _here
        return twin

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None."""
        parameters = (key, self._clock())
        try:
            rows, _ = self._file.run(_GET, parameters)  # the hot path, without a second coroutine
        except sqlite3.Error:
            rows, _ = await self._run(_GET, parameters)
        return rows[0][0] if rows else None

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        _, changed = await self._run(_PUT, (key, value, self._clock() + ttl))
        await self._tidy(changed)

    async def put_all(self, records: Sequence[tuple[str, bytes, float]]) -> None:
        """Set values in one transaction."""
        now = self._clock()
        row = "(?, ?, ?)"
        statement = _PUT.replace(row, ", ".join([row] * len(records)))
        rows = [(key, value, now + ttl) for key, value, ttl in records]
        _, changed = await self._run(statement, tuple(itertools.chain.from_iterable(rows)))
        await self._tidy(changed)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        now = self._clock()
        _, replaced = await self._run(_REPLACE, (new, now + ttl, key, old, now))
        await self._tidy(replaced)
        return replaced == 1

    async def delete(self, key: str) -> bytes | None:
        """Delete the value and return it."""
        # Not DELETE … RETURNING: SQLite 3.34 of RHEL 9 lacks it. Of two callers who read the same
        # value, only one deletes it.
        while True:
            rows, _ = await self._run(_READ, (key,))
            if not rows:
                return None
            value, expires = rows[0]
            _, deleted = await self._run(_DELETE, (key, value))
            if deleted:
                return bytes(value) if expires > self._clock() else None

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        now = self._lease_clock()
        _, taken = await self._run(_ACQUIRE, (self._era + key, owner, now + ttl, now))
        await self._tidy(0)  # visitors can cause writes of leases and of nothing else
        return taken == 1

    async def claim(
        self, key: str, owner: str, ttl: float, *, even_lapsed: bool = False
    ) -> bool | None:
        """Take or extend a lease, unless another owner let it run out."""
        name, now = self._era + key, self._lease_clock()
        lapsed_by = now + LAPSED
        most = lapsed_by if even_lapsed else now
        values = name, CLAIMED + owner, lapsed_by + ttl, owner, now, most
        _, taken = await self._run(_CLAIM, values)
        await self._tidy(0)
        if taken == 1:
            return True
        rows, _ = await self._run(_HOLDER, (name, lapsed_by))
        return None if rows else False

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        await self._run(_RELEASE, (self._era + key, owner, CLAIMED + owner))

    async def purge(self) -> int:
        """Delete everything that has expired, batch by batch."""
        removed = 0
        while True:
            _, batch = await self._run(_PURGE, (self._clock(), _PURGE_BATCH))
            removed += batch
            if batch < _PURGE_BATCH:
                return removed

    async def find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        """Return the records whose value begins with `prefix`, by an index of 17 bytes."""
        rows = await self._with_prefix(_FIND, _FIND_BELOW, prefix)
        return [(key, value) for key, value in rows if value.startswith(prefix)]

    async def count(self, prefix: bytes = b"") -> int:
        """Count the live records; only the first 17 bytes of a prefix are compared."""
        if prefix:
            rows = await self._with_prefix(_COUNT_FROM, _COUNT_BELOW, prefix)
        else:
            rows, _ = await self._run(_COUNT, (self._clock(),))
        return int(rows[0][0])

    def check(self) -> None:
        """Raise `StoreError` if the file, or its folder, cannot or must not be used.

        Nothing is opened: a server may fork this process later. Log a warning if its file system
        is one where SQLite's WAL may not work.
        """
        folder = self._file.path.parent
        if not folder.is_dir():
            raise StoreError(f"there is no folder {shown_file(str(folder))}")
        check_access(self._file.path)
        file_system = unfit_file_system(self._file.path)
        if file_system is not None:
            log("store_file_system", reason=sentence(self._file.label, file_system))

    async def ping(self) -> None:
        """Run a write that changes nothing: it fails as other writes do, except on a full disk."""
        await self._run(_RELEASE, ("", "", ""))

    async def close(self) -> None:
        """Close the connections that are not in use, also those of the twin."""
        self._file.close()

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._file.label}>"

    async def _with_prefix(self, query: str, query_below: str, prefix: bytes) -> list[Any]:
        parameters: tuple[bytes | float, ...] = (prefix[:17], self._clock())
        # Values that begin with b"ab" are from b"ab" to below b"ac"; none are above b"\xff".
        above = prefix[:17].rstrip(b"\xff")
        if above:
            parameters += (above[:-1] + bytes([above[-1] + 1]),)
            query = query_below
        rows, _ = await self._run(query, parameters)
        return rows

    async def _run(self, statement: str, parameters: tuple[Any, ...]) -> tuple[list[Any], int]:
        """Run a statement, and retry it while another process holds the lock."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._file.run(statement, parameters)
            except sqlite3.Error as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise StoreError(explain(self._file.label, error)) from error
            # Random, so that processes that collided once do not collide again.
            await self._sleep(random.uniform(*_BACKOFF))  # noqa: S311

    async def _tidy(self, changed: int) -> None:
        """Delete a batch of expired records and empty the log, if it is time to.

        It runs after a write that succeeded, so errors are ignored: the next write tries again.
        """
        with contextlib.suppress(sqlite3.Error, StoreError):
            self._changed += changed + self._purge_some()
            if self._changed >= _CHECKPOINT_EVERY:
                self._changed = 0
                # Into the file, as far as no reader prevents it.
                await self._apart(partial(self._file.run, "PRAGMA wal_checkpoint(PASSIVE)"))

    def _purge_some(self) -> int:
        now = self._clock()
        if now < self._purge_at:
            return 0
        self._purge_at = now + _PURGE_EVERY
        _, records = self._file.run(_PURGE, (now, _PURGE_BATCH))
        _, leases = self._file.run(_PURGE_LEASES, (self._lease_clock(), _PURGE_BATCH))
        if _PURGE_BATCH in (records, leases):
            self._purge_at = now  # there are more: go on at the next write
        return records + leases


def machine_time() -> tuple[str, Callable[[], float]]:
    """Return a clock that this machine's processes share, and a name for this start of the machine.

    Where there is no such clock, return the time of day and an empty name.
    """
    try:
        era = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{era}.", partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return "", time.time


async def _in_a_thread(work: Callable[[], Any]) -> None:
    # A thread of its own: routes that wait for this very write may use all the shared ones.
    await anyio.to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1))


async def _block(seconds: float) -> None:
    time.sleep(seconds)  # noqa: ASYNC251 - only threads run it


async def _here(work: Callable[[], Any]) -> None:
    work()
