"""What a search for one user's sessions, and a count, cost in a Redis with many sessions."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from cm_auth_middleware.stores import RedisStore

from .measure import Spread
from .report import Figure, number
from .world import redis_server

NAME = "store"
_SIZES = (1_000, 100_000, 1_000_000)
_TTL = 3600  # seconds
_MINE = 5  # sessions of the user who is looked for
_BATCH = 10_000  # sessions that are written at a time
_WRITTEN = b":1\r\n:1\r\n+OK\r\n"  # what Redis answers to the commands of a session


def run() -> Iterator[Figure]:
    """Fill a Redis more and more, and search it."""
    with redis_server() as url:
        if url is None:
            return
        times = asyncio.run(_measure(url))
    for what in ("sessions of a user", "count"):
        for size in _SIZES:
            taken = times[what, size]
            ratio = Spread.of([taken / times[what, _SIZES[0]]])
            target = "<= 2" if what != "count" and size == _SIZES[-1] else ""
            title = f"{what}, {number(size)} sessions"
            yield Figure(NAME, title, taken * 1e3, "ms", ratio, "1 000 sessions", target)


async def _measure(url: str) -> dict[tuple[str, int], float]:
    store, tag = RedisStore(url), _tag()
    times: dict[tuple[str, int], float] = {}
    for _ in range(_MINE):
        await store.put(secrets.token_hex(32), tag + bytes(500), _TTL)
    filled = _MINE
    for size in _SIZES:
        _fill(url, size - filled)
        filled = size
        times["sessions of a user", size] = await _best(lambda: store.find(tag), 20)
        times["count", size] = await _best(lambda: store.count(b"\x04"), 1)
    await store.close()
    return times


def _tag() -> bytes:
    return b"\x04" + secrets.token_bytes(16)


def _fill(url: str, count: int) -> None:
    """Store what the store writes for sessions of others, many at a time.

    redis-py takes longer to write and read these commands than Redis to carry them out, so they are
    written as the server reads them: "Bulk loading" in the documentation of Redis.
    """
    address, ends = urlsplit(url), b"%d" % int((time.time() + _TTL) * 1000)
    with socket.create_connection((address.hostname or "", address.port or 6379), 60) as connection:
        while count > 0:
            size = min(count, _BATCH)
            connection.sendall(b"".join(_session(ends) for _ in range(size)))
            wanted, answers = size * _WRITTEN, bytearray()
            while len(answers) < len(wanted):
                piece = connection.recv(1 << 20)
                if not piece:
                    raise RuntimeError("Redis closed the connection")
                answers += piece
            if answers != wanted:
                raise RuntimeError(f"Redis answered otherwise: {bytes(answers[:200])!r}")
            count -= size


def _session(ends: bytes) -> bytes:
    """Return the three commands that store a session of another user, until some milliseconds."""
    tag, key = _tag(), secrets.token_hex(32).encode()
    index = b"cm_auth:u:%s" % tag.hex().encode()
    return (
        _command(b"ZADD", index, ends, key)
        + _command(b"PEXPIREAT", index, ends)
        + _command(b"SET", b"cm_auth:s:%s" % key, tag + bytes(500), b"EX", b"%d" % _TTL)
    )


def _command(*words: bytes) -> bytes:
    parts = [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"*%d\r\n%s" % (len(words), b"".join(parts))


async def _best(call: Callable[[], Awaitable[Any]], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return min(taken)
