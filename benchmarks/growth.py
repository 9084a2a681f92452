"""What becomes of cost and memory when there are many sessions, or many who are logging in."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import cycle
from pathlib import Path
from typing import Any

from cm_auth_middleware import CMAuthMiddleware, MemoryStore
from cm_auth_middleware.runtime.loading import wait_until_loaded

from .measure import Costs, Turn, awaited, take_turns
from .processes import in_new_process, memory
from .report import Figure, number
from .request_path import Call, bare, forgetting, reading_state
from .world import COOKIE, Requests, SimulatedWorld, close, sqlite_url

NAME = "growth"
_SIZES = (1_000, 100_000, 1_000_000)
_REAL = 100  # sessions that were really logged in and make the requests, in turn
_LOGINS = 10_000
_TTL = 30 * 86_400.0  # seconds


def run() -> Iterator[Figure]:
    """Fill stores, and see what it changes."""
    yield from in_new_process(_memory)
    yield from in_new_process(_sqlite)
    yield from in_new_process(_logins_in_flight)


class _Measuring(MemoryStore):
    """Notes the size of what is stored."""

    sizes: tuple[int, int] = (0, 0)

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        self.sizes = (len(key), len(value))
        await super().put(key, value, ttl)


async def _fill(store: _Measuring, count: int) -> None:
    """Put in what looks like sessions of others: objects of their own, as in real life."""
    key_length, value_length = store.sizes
    value = secrets.token_bytes(value_length - 8)
    for n in range(count):
        await store.put(f"{n:0{key_length}x}", value + n.to_bytes(8), _TTL)


def _memory() -> list[Figure]:
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        world = stack.enter_context(SimulatedWorld())
        turns, forgetful, used = {}, {}, {}
        for size in _SIZES:
            store = _Measuring(2 * size)
            requests = _requests(stack, runner, world, store)
            turns[f"{size}"] = awaited(runner, _in_turn(requests))
            forgetful[f"{size}"] = awaited(runner, _in_turn(map(forgetting, requests)))
            before = memory()
            runner.run(_fill(store, size - _REAL))
            used[size] = (memory() - before) * 1e6 / (size - _REAL)
        costs, forgetful_costs = _steady_costs(turns), take_turns(forgetful, rounds=8)
    target = {1_000_000: "<= 1.25"}
    figures = list(_cost_figures("memory", costs, target))
    figures += _cost_figures("memory, nothing remembered", forgetful_costs, target)
    for size in _SIZES[1:]:
        title = f"memory: bytes per session, {number(size)} sessions"
        figures.append(Figure(NAME, title, used[size], "bytes", target="<= 700"))
    return figures


def _requests(
    stack: ExitStack, runner: asyncio.Runner, world: SimulatedWorld, store: Any
) -> list[Requests]:
    """The requests of each session."""
    app = CMAuthMiddleware(reading_state, **world.options(store=store))
    stack.callback(lambda: runner.run(close(app)))

    async def log_in() -> list[Requests]:
        return [Requests(app, f"{COOKIE}={await world.log_in(app)}") for _ in range(_REAL)]

    return runner.run(log_in())


def _in_turn(requests: Iterable[Call]) -> Call:
    """The next request of so many."""
    following = cycle(requests)
    return lambda: next(following)()


def _steady_costs(turns: dict[str, Turn]) -> Costs:
    """Measure once each session was opened, and noted as used in this minute."""
    for turn in turns.values():
        turn(_REAL)
    return take_turns(turns, rounds=8)


def _cost_figures(store: str, costs: Costs, targets: dict[int, str]) -> Iterator[Figure]:
    first = f"{_SIZES[0]}"
    for size in _SIZES:
        title = f"{store}: a request, {number(size)} sessions"
        cost, ratio = costs.cost(f"{size}").value * 1e6, costs.ratio(f"{size}", first)
        yield Figure(NAME, title, cost, "µs", ratio, "1 000 sessions", targets.get(size, ""))


def _sqlite() -> list[Figure]:
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        world = stack.enter_context(SimulatedWorld())
        turns, sizes = {}, {}
        for size in _SIZES:
            url = stack.enter_context(sqlite_url())
            turns[f"{size}"] = awaited(runner, _in_turn(_requests(stack, runner, world, url)))
            sizes[size] = _copy_rows(Path(url.removeprefix("sqlite:///")), size)
        costs = _steady_costs(turns)
    figures = list(_cost_figures("SQLite", costs, {}))
    for size in _SIZES[1:]:
        title = f"SQLite: bytes per session in the file, {number(size)} rows"
        figures.append(Figure(NAME, title, sizes[size] / size, "bytes"))
    return figures


def _copy_rows(path: Path, size: int) -> int:
    """Copy a row under other keys, in their order, until there are `size`; bytes of the file."""
    with closing(sqlite3.connect(path)) as database, database:
        table, (key, *rest) = _a_session(database)
        marks = ", ".join("?" * (1 + len(rest)))
        rows = ((f"{n:0{len(key)}x}", *rest) for n in range(size - _REAL))
        database.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        database.commit()
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def _a_session(database: sqlite3.Connection) -> tuple[str, tuple[Any, ...]]:
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        if database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] >= _REAL:
            return table, database.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    raise RuntimeError("no table has the sessions")


def _logins_in_flight() -> list[Figure]:
    """Visitors who are sent to the login and do not come back."""
    with asyncio.Runner() as runner, SimulatedWorld() as world:
        store = _Measuring()
        app = CMAuthMiddleware(bare, **world.options(store=store))
        visit = Requests(app, status=302)

        async def visits(times: int) -> float:
            started = time.perf_counter()
            for _ in range(times):
                await visit()
            return (time.perf_counter() - started) / times

        runner.run(visits(_LOGINS // 10))
        wait_until_loaded()  # the HTTP client, for the first callback: no login's memory
        before = memory()
        cost = runner.run(visits(_LOGINS))
        grown = memory() - before
    if store.sizes != (0, 0):
        raise AssertionError("a visitor's login was put into the store")
    title = f"{number(_LOGINS)} logins in flight: memory that grew by"
    return [
        Figure(NAME, title, grown, "MB", target="<= 1"),
        Figure(NAME, "a login that starts", cost * 1e6, "µs"),
    ]
