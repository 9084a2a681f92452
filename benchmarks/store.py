"""What a search for one user's sessions, and a count, cost in a Redis with many sessions."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from redis import Redis

from cm_auth_middleware.stores import RedisStore

from .measure import Spread
from .report import Figure, number
from .world import redis_server

NAME = "store"
_SIZES = (1_000, 100_000, 1_000_000)
_TTL = 3600  # seconds
_MINE = 5  # sessions of the user who is looked for
_BATCH = 10_000


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
    with Redis.from_url(url) as client:
        for size in _SIZES:
            _fill(client, size - filled)
            filled = size
            times["sessions of a user", size] = await _best(lambda: store.find(tag), 20)
            times["count", size] = await _best(lambda: store.count(b"\x04"), 1)
    await store.close()
    return times


def _tag() -> bytes:
    return b"\x04" + secrets.token_bytes(16)


def _fill(client: Redis, count: int) -> None:
    """Store what the store writes for sessions of others, without waiting for each."""
    ends = (time.time() + _TTL) * 1000
    while count > 0:
        pipeline = client.pipeline(transaction=False)
        for _ in range(min(count, _BATCH)):
            tag, key = _tag(), secrets.token_hex(32)
            pipeline.zadd(f"cm_auth:u:{tag.hex()}", {key: ends})
            pipeline.pexpireat(f"cm_auth:u:{tag.hex()}", int(ends))
            pipeline.set(f"cm_auth:s:{key}", tag + bytes(500), ex=_TTL)
        pipeline.execute()
        count -= _BATCH


async def _best(call: Callable[[], Awaitable[Any]], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return min(taken)
