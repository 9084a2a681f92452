"""Running one ``async def`` for event loops and for threads.

The login, the refresh, the sessions and the stores are written once, as coroutines. They suspend
only where they await I/O, and all I/O is behind two objects that differ by side: the runtime
(`base.Runtime`) and the store.

On the ASGI side both await, and the server's event loop drives the coroutines as usual. On the
WSGI side both block: their methods are ``async def`` as well, but do their work at once and never
suspend. A coroutine that only awaits such methods runs from its beginning to its end in a single
``send(None)``, and its result is the value of the `StopIteration` that ends it. That is all that
`run_sync` does. It needs no event loop and no thread, and a traceback reads straight through.

A coroutine that suspends all the same (a store for event loops that was given to a WSGI
application) could only be resumed by an event loop, so `run_sync` raises instead of waiting.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end.

    Raises:
        RuntimeError: it suspended.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("code for threads suspended; does the store's blocking() block?")


def has_event_loop() -> bool:
    """Return True if this code runs on an event loop, asyncio's or trio's."""
    if "asyncio" not in sys.modules and "trio" not in sys.modules:
        return False  # what is not loaded does not run
    from .running_loop import running_loop

    try:
        running_loop()
    except RuntimeError:
        return False
    return True


def run_elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own, because this one may have an event loop already."""
    import asyncio  # which threads alone do not need

    return begin(lambda: asyncio.run(coroutine)).result()


def begin(work: Callable[[], T]) -> Future[T]:
    """Run work that blocks in a thread of its own; return what tells its outcome."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    # No ThreadPoolExecutor: it refuses work as soon as the interpreter begins to exit, and then
    # waits for refreshes under way, which may still call an application's hooks.
    try:
        threading.Thread(target=run).start()
    except RuntimeError:  # no thread is left
        run()
    return future
