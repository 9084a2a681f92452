"""Time contestants in turns, and compare what each of them cost in the same stretch of time.

The machine may be busy with other things. So contestants take short turns, the fastest turn of a
block counts for the block (what disturbs only ever adds), and a ratio is formed inside each block.
What is reported is the median over the blocks; the spread is the lowest and the highest block.

Processor time is what counts, except where a contestant waits for another process. Both then share
one processor: to wake another one up costs 20 µs in a virtual machine, more than what is measured,
and more the less there is to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

Turn = Callable[[int], float]
"""Does something n times and returns the seconds that took."""

_TURN = 0.004  # seconds: shorter than what a scheduler gives to one process at a time


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the lowest and highest of what it is the median of."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values."""
        return cls(median(values), min(values), max(values))


class Costs:
    """Seconds per call of each contestant, one figure a block."""

    def __init__(self, blocks: Mapping[str, Sequence[float]]) -> None:
        self._blocks = blocks

    def cost(self, name: str, *, over: str | None = None) -> Spread:
        """Seconds per call, less those of the contestant `over`."""
        return Spread.of(self._added(name, over))

    def ratio(self, name: str, reference: str, *, over: str | None = None) -> Spread:
        """Cost of one relative to another, both less the cost of `over`."""
        costs, others = self._added(name, over), self._added(reference, over)
        return Spread.of([cost / other for cost, other in zip(costs, others, strict=True)])

    def of_two(self, name: str, base: str, reference: str, over: str | None = None) -> Spread:
        """What `name` adds to `base`, relative to the cost of `reference`, less that of `over`."""
        added, whole = self._added(name, base), self._added(reference, over)
        return Spread.of([cost / other for cost, other in zip(added, whole, strict=True)])

    def _added(self, name: str, over: str | None) -> list[float]:
        costs = self._blocks[name]
        if over is None:
            return list(costs)
        return [cost - base for cost, base in zip(costs, self._blocks[over], strict=True)]


@contextmanager
def one_processor() -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on one processor."""
    if not hasattr(os, "sched_setaffinity"):  # not on macOS or Windows
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def take_turns(turns: Mapping[str, Turn], *, blocks: int = 7, rounds: int = 12) -> Costs:
    """Let contestants take turns of a few milliseconds.

    Args:
        turns: by name.
        blocks: how many independent figures each contestant gets.
        rounds: turns of each contestant in a block, of which the fastest counts.
    """
    calls = {name: _calibrated(turn) for name, turn in turns.items()}
    names, order = list(turns), random.Random(1)
    found: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what was set up is no contestant's garbage; theirs is collected as usual
    try:
        for _ in range(blocks):
            best = dict.fromkeys(names, float("inf"))
            gc.collect()
            for _ in range(rounds):
                # In no fixed order: one contestant leaves caches and clock rates to the next.
                for name in order.sample(names, len(names)):
                    seconds = turns[name](calls[name]) / calls[name]
                    best[name] = min(best[name], seconds)
            for name in names:
                found[name].append(best[name])
    finally:
        gc.unfreeze()
    return Costs(found)


def _calibrated(turn: Turn) -> int:
    """How many calls make a turn; calling it is the warm-up as well."""
    turn(3)  # what is loaded or opened at first would be taken for the price of a call
    calls = 1
    while True:
        seconds = turn(calls)
        if seconds >= _TURN / 8:
            return max(1, round(calls * _TURN / seconds))
        calls *= 4


def repeated(function: Callable[[], Any], *, waits: bool = False) -> Turn:
    """The turn of a function; one that `waits` is timed by the clock on the wall."""
    clock = time.perf_counter if waits else time.thread_time

    def turn(calls: int) -> float:
        started = clock()
        for _ in range(calls):
            function()
        return clock() - started

    return turn


def awaited(
    runner: asyncio.Runner, function: Callable[[], Awaitable[Any]], *, waits: bool = False
) -> Turn:
    """The turn of a coroutine function, on the event loop of `runner`, which stays outside."""
    clock = time.perf_counter if waits else time.thread_time

    async def calls_in_loop(calls: int) -> float:
        started = clock()
        for _ in range(calls):
            await function()
        return clock() - started

    return lambda calls: runner.run(calls_in_loop(calls))
