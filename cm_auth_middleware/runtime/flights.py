"""One run of something that several wait for, on an event loop and between threads."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from ..errors import UnavailableError
from .run_sync import import_trio, run_sync, running_loop

Work = Callable[[], Coroutine[Any, Any, Any]]


class Flight:
    """One run of something that several wait for."""

    def __init__(self, done: Any) -> None:
        self.done = done
        self._result: Any = None
        self._error: Exception | None = None

    async def run(self, work: Work) -> None:
        """Do the work, and keep its outcome."""
        try:
            self._result = await work()
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = UnavailableError("the server is shutting down")
            raise

    def outcome(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            # A fresh traceback for every waiter; one exception object shared by hundreds grows.
            raise _again(self._error) from None
        return self._result


class AsyncFlights:
    """The flights of each event loop of this process."""

    def __init__(self) -> None:
        self._flights: weakref.WeakKeyDictionary[Any, dict[str, Flight]]
        self._flights = weakref.WeakKeyDictionary()
        self._tasks: set[Any] = set()

    async def single_flight(self, key: str, work: Work) -> Any:
        """Run `work` once for all who ask for `key` meanwhile, and give each its outcome.

        It runs beside the request: a client that hangs up cannot cancel a refresh halfway, when
        the new token exists at CameraManager and nowhere else.
        """
        flight = self._start(key, work)
        await flight.done.wait()
        return flight.outcome()

    def start(self, key: str, work: Work) -> None:
        """Start `work` for `key` unless it is under way; do not wait, nor report its errors."""
        self._start(key, work)

    def _start(self, key: str, work: Work) -> Flight:
        flights = self._flights.setdefault(running_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = Flight(anyio.Event())

            async def run(flight: Flight = flight) -> None:
                try:
                    await flight.run(work)
                finally:
                    del flights[key]
                    flight.done.set()

            self.spawn(run)
        return flight

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a function beside everything else on this event loop."""
        loop = running_loop()
        if isinstance(loop, asyncio.AbstractEventLoop):
            task = loop.create_task(function())
            self._tasks.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self._tasks.discard)
        else:
            import_trio().lowlevel.spawn_system_task(function)

    async def land(self) -> None:
        """Wait until what is under way on this event loop has ended."""
        for flight in list(self._flights.get(running_loop(), {}).values()):
            await flight.done.wait()


class ThreadFlights:
    """The same for threads. See `AsyncFlights`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    async def single_flight(self, key: str, work: Work) -> Any:
        """As in `AsyncFlights`; the first who asks does the work, the others wait for it."""
        flight, is_mine = self._board(key)
        if is_mine:
            await self._fly(key, flight, work)
        else:
            flight.done.wait()
        return flight.outcome()

    def start(self, key: str, work: Work) -> None:
        """As in `AsyncFlights`; in a thread that the interpreter waits for when it ends."""
        flight, is_mine = self._board(key)
        if is_mine:
            thread = threading.Thread(
                target=lambda: run_sync(self._fly(key, flight, work)), name="cm_auth refresh"
            )
            thread.start()

    def _board(self, key: str) -> tuple[Flight, bool]:
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight(threading.Event())
            return flight, True

    async def _fly(self, key: str, flight: Flight, work: Work) -> None:
        try:
            await flight.run(work)
        finally:
            with self._lock:
                del self._flights[key]
            flight.done.set()

    async def land(self) -> None:
        """Wait until what is under way has ended."""
        for flight in list(self._flights.values()):
            flight.done.wait()


def _again(error: Exception) -> Exception:
    twin = error.__class__.__new__(error.__class__, *error.args)
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin
