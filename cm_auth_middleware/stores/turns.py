"""Turns at the connections of a store, on an event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress


class Turns:
    """Bounds how many calls use a store at a time, and lets some go first.

    Many requests that read their sessions at one moment would keep what they all need soon, the
    commands of a refresh, waiting behind them. asyncio's semaphore knows one order only.

    Args:
        most: calls at a time.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a turn and return True, if one is free."""
        if self._free:
            self._free -= 1
            return True
        return False

    async def wait(self, seconds: float, *, goes_first: bool) -> None:
        """Wait for a turn.

        Raises:
            TimeoutError: none was free for so many seconds.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._first if goes_first else self._others
        line.append(turn)
        try:
            async with asyncio.timeout(seconds):
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it came at that very moment
            else:
                with suppress(ValueError):
                    line.remove(turn)
            raise

    def give_back(self) -> None:
        """Give a turn to the next call that waits, or to whichever comes."""
        for line in (self._first, self._others):
            while line:
                turn = line.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._free += 1
