"""Run an event loop in a thread, so that synchronous code can call asynchronous code."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
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
                self._portal = self._stack.enter_context(start_blocking_portal())
            return self._portal
