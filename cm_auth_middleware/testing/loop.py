"""Run an event loop in a thread, so that synchronous code can call asynchronous code."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

T = TypeVar("T")


class LoopThread:
    """An event loop that starts when it is first needed, and runs until it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
        """Start `function` in the loop, and return at once."""
        return self._running().start_task_soon(function, *args)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Run `function` in the loop, and wait for its result."""
        return self._running().call(function, *args)

    def close(self) -> None:
        """Cancel the tasks that still run, and end the thread."""
        with self._lock:
            portal, self._portal = self._portal, None
        if portal is not None:
            portal.call(portal.stop, True)
            self._stack.close()

    def _running(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                options = {"loop_factory": new_event_loop}
                portal = start_blocking_portal("asyncio", backend_options=options)
                self._portal = self._stack.enter_context(portal)
            return self._portal


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop that works in spite of what a test does to its process.

    A loop wakes itself by a pair of sockets, which ``pytest --disable-socket`` would forbid
    although they reach no network; and it would wait for ever for a clock that freezegun stopped.
    """
    forbidding = socket.socket
    allowing = next(kind for kind in forbidding.__mro__ if kind.__module__ == "socket")
    socket.socket = allowing  # type: ignore[assignment, misc]
    try:
        loop = asyncio.new_event_loop()
    finally:
        socket.socket = forbidding  # type: ignore[misc]
    if hasattr(time, "clock_gettime"):  # not on Windows
        loop.time = partial(time.clock_gettime, time.CLOCK_MONOTONIC)  # type: ignore[method-assign]
    return loop
