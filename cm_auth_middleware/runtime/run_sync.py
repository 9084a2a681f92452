"""Running coroutines: to their end without an event loop; and finding the loop, if there is one."""

from __future__ import annotations

import asyncio
import importlib
import sys
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_sync(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose runtime block, to its end."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a port of the WSGI side suspended; does a store's blocking() block?")


def has_event_loop() -> bool:
    """Whether this code runs under asyncio or trio."""
    return _find_loop() is not None


def running_loop() -> Any:
    """The event loop of this thread, asyncio's or trio's.

    Raises:
        RuntimeError: there is none.
    """
    loop = _find_loop()
    if loop is None:
        raise RuntimeError("the ASGI side needs a running event loop")
    return loop


def _find_loop() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    if "trio" not in sys.modules:
        return None
    try:
        return import_trio().lowlevel.current_trio_token()
    except RuntimeError:
        return None


def import_trio() -> Any:
    """Trio, only where the server runs on it."""
    return importlib.import_module("trio")


def run_elsewhere(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own: this one may have an event loop already."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
