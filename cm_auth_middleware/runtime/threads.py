"""The runtime of the WSGI side: its methods block, and never suspend (see `run_sync`)."""

from __future__ import annotations

import inspect
import math
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from ..errors import UnavailableError
from .after_fork import after_fork
from .base import MOST_LATE, Call, Connections, Repetition, Runtime, UnderWayError, Work
from .run_sync import run_elsewhere, run_sync

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

_MOST_LINES = 4  # connections that are kept for the middleware's own calls
_IDLE = 10.0  # seconds without work after which a helping thread ends
_SHARED = 3.0  # seconds for which threads wait for what another one fetches: pictures take 1 or 2
_PATIENCE = 1.0  # seconds after which only one thread goes on waiting for work of others
_HURRY = 0.1  # the same, where some of the calls to a URL are answered and others hang
_REMEMBERED = 5.0  # seconds for which it is remembered that nothing was answered
_MOST_APART = 32  # threads of one kind that work apart from requests; each may have two more


class ThreadRuntime(Runtime):
    """The runtime for threads; all threads of a process share its connections."""

    single_flight: SingleFlight
    _close_lines: weakref.finalize[[deque[_Line]], ThreadRuntime] | None = None
    _close_pool: weakref.finalize[[], ThreadRuntime] | None = None
    is_async = False
    exchanges_at_once = 2  # many servers have four threads

    def _start(self) -> None:
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Make new locks and pools: a fork shares sockets, and a lock may be held for ever."""
        self.single_flight = SingleFlight()
        self._lock = threading.Lock()
        self._helpers = Helpers()
        self._pool: httpx2.BaseTransport | None = None
        if self._close_pool is not None:
            self._close_pool.detach()  # another thread may have held its lock at the fork
        if self._close_lines is not None:
            self._close_lines()  # this process's ends of the parent's connections
        self._lines: deque[_Line] = deque()
        # An engine that nobody closes leaves no connection behind.
        self._close_lines = weakref.finalize(self, _close, self._lines)
        self._repetitions: set[Repetition] = set()

    def load_sockets(self) -> None:
        """Do nothing: blocking sockets are loaded with the HTTP client."""

    def transport(self) -> Any:
        given = self._given_transport()
        if given is not None:
            return given
        if self._pool is None:
            with self._lock:
                if self._pool is None:
                    pool = _pool(self._tls())
                    self._close_pool = weakref.finalize(self, pool.close)
                    self._pool = pool
        return self._pool

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        content: bytes | None = None,
        connections: Connections = "calls",  # else the same: each call has one of its own
    ) -> httpx2.Response:
        from . import http  # when first needed

        given = self._given_transport()
        line = None if given else self._free_line()
        transport: Any = given or (line and line.transport)
        response: httpx2.Response
        deadline = Deadline(self.timeout, line and line.sockets)
        is_whole = False
        # A login says nothing of what users wait for: an invented code may be refused slowly.
        silences = self.single_flight.silences if connections == "calls" else Silences()
        try:
            request = http.own_request(
                method, url, headers, content, self.timeout, trace=deadline.trace
            )
            with (
                silences.call(url),
                deadline,
                closing(transport.handle_request(request)) as response,
            ):
                http.bound(response)
                response.read()
            is_whole = not deadline.is_over
        finally:
            if line is not None:
                self._give_back(line, is_whole)
        return response

    def _free_line(self) -> _Line:
        """Return a line to the server that no other call uses: the deadline may cut it."""
        with suppress(IndexError):
            return self._lines.pop()
        return _Line(_pool(self._tls()), [])

    def _give_back(self, line: _Line, is_whole: bool) -> None:
        """Keep a line for the next call, which saves it a connection and its TLS handshake."""
        if is_whole and len(self._lines) < _MOST_LINES:
            self._lines.append(line)
        else:
            line.transport.close()

    async def discard(self, response: httpx2.Response) -> None:
        if response.is_stream_consumed or response.is_closed:
            return  # an event hook of the client has read it
        import httpx2

        from . import http

        stream: Any = response.stream
        rest, deadline = http.Discarded(response), Deadline(self.timeout)
        deadline.watch(response)
        # Its end is of no interest, and neither is an error on the way there.
        with (
            suppress(Exception),
            deadline,
            http.reading(response, http.MAX_DISCARDED),
            closing(iter(stream)) as parts,
        ):
            while rest.is_short and not deadline.is_over:
                part = next(parts, None)
                if part is None:
                    break
                rest.count(part)
        stream.close()
        response.stream = httpx2.ByteStream(b"")

    def _outlives_requests(self) -> bool:
        # Without --enable-threads, uWSGI before 2.0.30 keeps the interpreter's lock between
        # requests. Its module is only there within uWSGI.
        return bool(getattr(sys.modules.get("uwsgi"), "has_threads", True))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - blocks on purpose: there is no event loop here

    async def within(self, seconds: float, work: Work) -> Any:
        call, context = Call(threading.Event()), copy_context()

        def run() -> None:
            with suppress(BaseException):  # the call has it for who waits
                context.run(run_sync, call.run(work))
            call.done.set()

        if not self._helpers.give(run):
            return await work()
        if not call.done.wait(seconds):
            self._helpers.take_back(run)
            raise UnavailableError("no answer came in time")
        return call.outcome()

    @asynccontextmanager
    async def heartbeat(self, tick: Work, every: float) -> AsyncIterator[None]:
        over = threading.Event()

        def ticking() -> None:
            while not over.wait(every):
                run_sync(tick())

        thread = threading.Thread(target=ticking, name="cm_auth lease", daemon=True)
        with suppress(RuntimeError):  # no thread is left; a lease lasts longer than a call
            thread.start()
        try:
            yield
        finally:
            over.set()
            if thread.ident is not None:  # it was started
                thread.join()

    def repeat(self, every: float, work: Callable[[], Awaitable[bool]]) -> Repetition:
        """Run `work` every so many seconds, in a thread that ends with the process."""
        repetition, repetitions = Repetition(threading.Event()), self._repetitions

        def run() -> None:
            try:
                while not repetition.stopper.wait(every) and run_sync(_awaited(work())):
                    pass
            finally:
                repetition.has_ended = True
                repetitions.discard(repetition)

        self._repetitions.add(repetition)
        try:
            threading.Thread(target=run, name="cm_auth watch", daemon=True).start()
        except RuntimeError:  # no thread is left: who needs it next starts another one
            repetition.has_ended = True
            self._repetitions.discard(repetition)
        return repetition

    async def call_user_function(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call an application's function; one that is async runs in an event loop of its own."""
        result = function(argument)
        return run_elsewhere(_awaited(result)) if inspect.isawaitable(result) else result

    async def close(self) -> None:
        for repetition in list(self._repetitions):
            repetition.stopper.set()
        await self.single_flight.wait_all()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()
        if self._close_pool is not None:
            self._close_pool.detach()
        _close(self._lines)


class _Line(NamedTuple):
    """A way to the server for one call at a time, with the sockets of its connections."""

    transport: httpx2.BaseTransport
    sockets: list[socket.socket]


def _close(lines: deque[_Line]) -> None:
    while lines:
        lines.pop().transport.close()


class Helpers:
    """Threads that do work for others, which a call that blocks must not keep for long.

    They are few, are started when they are needed, and end when they have been idle for a while.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._idle: list[_Helper] = []
        self._waiting: deque[Callable[[], None]] = deque()

    def give(self, work: Callable[[], None]) -> bool:
        """Let a thread do some work, as soon as one is free; return False if none can be had."""
        with self._lock:
            if self._idle:
                helper = self._idle.pop()  # the one that worked last: the others may end
                helper.work = work
                helper.wake.release()
                return True
            if self._count == MOST_LATE:
                self._waiting.append(work)
                return True
            self._count += 1
        helper = _Helper(work)
        thread = threading.Thread(
            target=self._help, args=[helper], name="cm_auth helper", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the system has none left
            with self._lock:
                self._count -= 1
            return False
        return True

    def take_back(self, work: Callable[[], None]) -> None:
        """Forget some work, unless a thread has begun it."""
        with self._lock, suppress(ValueError):
            self._waiting.remove(work)

    def _help(self, helper: _Helper) -> None:
        while True:
            helper.work()
            with self._lock:
                if self._waiting:
                    helper.work = self._waiting.popleft()
                    continue
                self._idle.append(helper)
            if not helper.wake.acquire(timeout=_IDLE):
                with self._lock:
                    if helper in self._idle:
                        self._idle.remove(helper)
                        self._count -= 1
                        return
                helper.wake.acquire()  # it was given work at the last moment


class _Helper:
    """What a helping thread does now, and the lock that it waits for while it does nothing."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.wake = threading.Lock()
        self.wake.acquire()


@dataclass(slots=True)
class _Unanswered:
    """The calls to one URL since its last answer.

    Attributes:
        since: when the first of them began.
        under_way: how many have not ended.
        ended_at: when the last one ended.
    """

    since: float
    under_way: int = 0
    ended_at: float = 0.0

    def is_long_ago(self, now: float) -> bool:
        """Return True if they say nothing of the URL any more."""
        return not self.under_way and now >= self.ended_at + _REMEMBERED


class Silences:
    """Knows the URLs that answer nothing, from the calls that are made to them.

    A URL is silent once a call to it has been under way for a second, and none was answered since
    that call began. It stays so for five seconds after its calls have ended by their timeout, or
    until one is answered, or fails within a second, as where no server listens: that keeps no
    caller waiting.

    One path of a server may hang while others answer, so that each URL is judged by itself. A store
    that hangs makes none of them silent: only calls count, and not what is done around them.

    Of a server's machines one may hang while others answer. Such a URL is not silent, but each call
    to it may hang. So it **falters** while two calls have been under way for a second: one alone
    may be a connection that was lost.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._urls: dict[str, _Unanswered] = {}  # they are few, as the server's hosts are
        self._under_way: dict[str, list[float]] = {}  # when each call began

    def begins_at(self, url: str) -> float:
        """Return when a URL is silent unless it answers before; infinite for never."""
        calls = self._urls.get(url)
        if calls is None or calls.is_long_ago(time.monotonic()):
            return math.inf
        return calls.since + _PATIENCE

    def falters(self, url: str) -> bool:
        """Return True if some calls to a URL hang, though others may be answered."""
        long_ago = time.monotonic() - _PATIENCE
        with self._lock:
            return sum(began <= long_ago for began in self._under_way.get(url, ())) > 1

    @contextmanager
    def call(self, url: str) -> Iterator[None]:
        """Note a call, which the block makes, and whether it was answered."""
        began = time.monotonic()
        with self._lock:
            calls = self._urls.get(url)
            if calls is None or calls.is_long_ago(began):
                calls = self._urls[url] = _Unanswered(began)
            calls.under_way += 1
            self._under_way.setdefault(url, []).append(began)
        is_answered = False
        try:
            yield
            is_answered = True
        finally:
            with self._lock:
                now = time.monotonic()
                calls.ended_at = now  # before the next line, for who reads without the lock
                calls.under_way -= 1
                self._under_way[url].remove(began)
                if is_answered or now - began < _PATIENCE:
                    self._urls.pop(url, None)


class SingleFlight:
    """Runs work once for each key in a process; see `base.SingleFlight`.

    With `do`, the first thread that asks does the work, and the others wait for it.

    A WSGI server has few threads, often four. One user's requests that all wait for one slow token
    call would take them from everybody else, and so would the requests of several users. Many
    users would take them one after the other, for a second each: so only one thread waits for work
    that asks a URL which is known to answer nothing.

    Attributes:
        silences: knows the URLs that answer nothing, or not every call.
    """

    def __init__(self) -> None:
        self.silences = Silences()
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}
        # The threads that work apart. No threading.local: one that was made before gevent patched
        # the module is the same for all its greenlets (gunicorn --preload).
        self._apart: set[int] = set()
        self._places: dict[str, threading.Semaphore] = {}  # by kind of work
        self._waits_long = threading.Lock()  # held by the one thread that does
        self._stuck_until = 0.0  # such work has failed after long: until then, or some ends soon

    async def do(self, key: str, work: Work) -> Any:
        call, is_new = self._join(key)
        if is_new:
            await self._run(key, call, work)
        else:
            call.done.wait()
        return call.outcome()

    async def do_impatiently(self, key: str, work: Work) -> Any:
        call, is_new = self._join(key)
        if is_new:
            await self._run(key, call, work)
        elif not call.done.wait(max(0.0, call.began + _SHARED - time.monotonic())):
            raise UnderWayError("the server takes long, and another request waits for it")
        return call.outcome()

    async def do_apart(self, key: str, work: Work, *, asks: Sequence[str] = ()) -> Any:
        if threading.get_ident() in self._apart:  # no server waits for this thread
            return await self.do(key, work)
        call, is_new = self._calls.get(key), False
        if call is None:
            patience = 0.0 if self._is_stuck else self._patience(time.monotonic(), asks)
            places = self._places_for(key)
            if not places.acquire(timeout=patience):
                raise UnavailableError("too many calls to the server are under way")
            call, is_new = self._begin(key, work, places)
        if is_new or not self._is_stuck:
            # Any answer makes the silence begin later, and never sooner.
            while not call.done.is_set() and (seconds := self._patience(call.began, asks)):
                call.done.wait(seconds)
        if not call.done.is_set():
            if not self._waits_long.acquire(blocking=False):
                raise UnderWayError("the server takes long, and another request waits for it")
            try:
                call.done.wait()
            finally:
                self._waits_long.release()
        return call.outcome()

    @property
    def _is_stuck(self) -> bool:
        return time.monotonic() < self._stuck_until

    def _patience(self, began: float, asks: Sequence[str]) -> float:
        """Return the seconds that any thread may still wait for work that began then."""
        patience = _HURRY if any(map(self.silences.falters, asks)) else _PATIENCE
        until = min(began + patience, *map(self.silences.begins_at, asks), math.inf)
        return max(0.0, until - time.monotonic())

    def start(self, key: str, work: Work) -> None:
        """Start `work` in a thread of its own, unless there are too many of them."""
        places = self._places_for(key)
        if places.acquire(blocking=False):
            self._begin(key, work, places)

    def _begin(self, key: str, work: Work, places: threading.Semaphore) -> tuple[Call, bool]:
        """Run work apart in a place that was taken, or join its call; return as `_join` does."""
        call, is_new = self._join(key)
        if is_new:
            self._run_apart(key, call, work, places)
        else:
            places.release()
        return call, is_new

    def _places_for(self, key: str) -> threading.Semaphore:
        """Return the places for a kind of work, which is the first word of its key.

        Each kind has its own: while refreshes hang, a logout is still passed on to the server.
        Those that are due soon are of one kind with those that are due now.
        """
        kind = key.partition(" ")[0].replace("soon", "session")
        return self._places.get(kind) or self._places.setdefault(
            kind, threading.Semaphore(_MOST_APART)
        )

    def _run_apart(self, key: str, call: Call, work: Work, places: threading.Semaphore) -> None:
        """Run work in a thread that the interpreter waits for when it exits, and free its place."""
        context = copy_context()

        def run() -> None:
            here = threading.get_ident()
            is_nested = here in self._apart  # where no thread could be started
            self._apart.add(here)
            try:
                context.run(run_sync, self._run(key, call, work))
            finally:
                if not is_nested:
                    self._apart.discard(here)
                places.release()
                now = time.monotonic()
                if now - call.began <= _PATIENCE:
                    self._stuck_until = 0.0
                elif call.is_outage:
                    self._stuck_until = now + _REMEMBERED

        try:
            threading.Thread(target=run, name="cm_auth refresh").start()
        except RuntimeError:  # the interpreter exits, or the system has no thread left
            run()

    async def wait_all(self) -> None:
        for call in list(self._calls.values()):
            call.done.wait()

    def _join(self, key: str) -> tuple[Call, bool]:
        """Return the call under way for `key`, and True if it is new and has to be run."""
        with self._lock:
            call = self._calls.get(key)
            if call is not None:
                return call, False
            call = self._calls[key] = Call(threading.Event())
            return call, True

    async def _run(self, key: str, call: Call, work: Work) -> None:
        try:
            await call.run(work)
        finally:
            with self._lock:
                del self._calls[key]
            call.done.set()


def _pool(tls: Any) -> httpx2.BaseTransport:
    import httpx2  # when first needed

    from . import http

    return httpx2.HTTPTransport(verify=tls, limits=http.LIMITS)


class Deadline:
    """Cuts the connections of one call in a thread when its time is over.

    The timeouts of a blocking socket are per read: a server that sends a byte at a time would
    hold the thread for ever.

    Args:
        timeout: seconds that the call may take in total.
        sockets: of the connections that the call may use again; they are kept up to date.

    Attributes:
        is_over: True when its time is over.

    Raises:
        UnavailableError: at the end of the ``with`` block, if the call failed because of the cut.
    """

    def __init__(self, timeout: float, sockets: list[socket.socket] | None = None) -> None:
        self._lock = threading.Lock()
        self._sockets = [] if sockets is None else sockets
        self._timer = threading.Timer(timeout, self.cut)
        self._timer.daemon = True
        self.is_over = False
        self._has_ended = False  # the call, so that its sockets may serve another one by now

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Note each socket when it is connected (httpx2's ``trace`` extension)."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                # Not only this one: a server may have two hosts, each with a connection of its own.
                self._sockets[:] = [known for known in self._sockets if known.fileno() != -1]
                self._sockets.append(info["return_value"].get_extra_info("socket"))
            if self.is_over:
                self.cut()

    def watch(self, response: httpx2.Response) -> None:
        """Note the socket of a response whose body is not read yet."""
        stream = response.extensions.get("network_stream")
        connection = None if stream is None else stream.get_extra_info("socket")
        if connection is not None:  # some transports have none
            self._sockets.append(connection)

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # the system has no thread left: each read has its timeout
            self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._has_ended = True
        if self.is_over and isinstance(error, Exception):
            raise UnavailableError("the server did not answer in time") from None

    def cut(self) -> None:
        """End the call now."""
        with self._lock:
            if self._has_ended:
                return
            self.is_over = True
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # closed by now
                    continue


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable
