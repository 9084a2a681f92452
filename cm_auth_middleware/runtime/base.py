"""The interface of both runtimes, and the parts that they share."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from ..errors import UnavailableError
from ..events import log
from .bounded_cache import CacheMemory
from .defaults import DEFAULTS
from .http_log import redact_logged_headers
from .loading import Loading

if TYPE_CHECKING:
    import ssl

    import httpx2

Work = Callable[[], Coroutine[Any, Any, Any]]
Connections = Literal["calls", "logins"]
"""The connections that one of the middleware's own calls goes by: those of visitors' logins are
others than those of users' refreshes, which must not wait for them."""

# Hosts that stop a process as soon as its response was sent, by a variable that each of them sets:
# AWS Lambda, Google Cloud Run and Functions, Azure Functions, Vercel.
_FREEZING_HOSTS = ("AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE", "FUNCTIONS_WORKER_RUNTIME", "VERCEL")

MOST_LATE = 8  # pieces of work that go on although their callers no longer wait for them


class Call:
    """One run of some work whose outcome several callers wait for.

    Args:
        done: the event, of an event loop or between threads, that is set when the run has ended.
    """

    def __init__(self, done: Any) -> None:
        self.done = done
        self.began = time.monotonic()
        self._result: Any = None
        self._error: Exception | None = None

    async def run(self, work: Work) -> None:
        """Do the work and keep its outcome."""
        try:
            self._result = await work()
        except Exception as error:
            self._error = error
        except BaseException:
            self._error = UnavailableError("the server is shutting down")
            raise

    @property
    def is_outage(self) -> bool:
        """True if the work ended because a server could not be asked."""
        return isinstance(self._error, UnavailableError)

    def outcome(self) -> Any:
        """Return what the work returned, or raise what it raised."""
        if self._error is not None:
            # Each caller gets a copy: the traceback of one exception that hundreds raise would
            # grow by each of them.
            raise _copy(self._error) from None
        return self._result


def _copy(error: Exception) -> Exception:
    # copy.copy() would call __init__ with error.args, which fits few exceptions: neither
    # OAuthError nor those of a store that an application wrote.
    copied = error.__class__.__new__(error.__class__, *error.args)
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    return copied


class UnderWayError(UnavailableError):
    """Work takes long, and its caller waits no longer; it goes on."""


class SingleFlight(Protocol):
    """Runs work once for all callers that ask for its key while it is under way."""

    async def do(self, key: str, work: Work) -> Any:
        """Run `work`, or join its run under way for `key`; return or raise its outcome."""

    async def do_impatiently(self, key: str, work: Work) -> Any:
        """Do the same for a request, which must not keep a server's thread from other requests.

        On an event loop it is the same. Between threads, who joins the work waits for three seconds
        after its start at most.

        Raises:
            UnderWayError: it takes longer; the next request may find it done.
        """

    async def do_apart(self, key: str, work: Work, *, asks: Sequence[str] = ()) -> Any:
        """Do it in a thread of its own, for a request whose thread may be needed for others.

        On an event loop it is the same. Between threads, at most one thread of the process waits
        for longer than a second after the start; the others do not wait at all while a URL that
        the work asks is known to hang, and for a moment while it hangs now and then. The work
        goes on.

        Args:
            key: begins with a word for the kind of work, of which there is a limit each.
            asks: the URLs of the calls that the work waits for.

        Raises:
            UnderWayError: another thread waits already; the next request may find the work done.
            UnavailableError: there are too many such threads; the work was not begun.
        """

    def start(self, key: str, work: Work) -> None:
        """Start `work` unless it is under way for `key`; do not wait, nor report its errors."""

    async def wait_all(self) -> None:
        """Wait until every run under way has ended."""


class Repetition:
    """Work that is repeated until it is stopped.

    Attributes:
        stopper: a cancel scope on an event loop, an event between threads; each stops the work.
        has_ended: True when it has ended.
    """

    def __init__(self, stopper: Any) -> None:
        self.stopper = stopper
        self.has_ended = False

    @property
    def is_over(self) -> bool:
        """True if it does not go on, for whichever reason."""
        return self.has_ended


class Runtime(ABC):
    """The clock, HTTP, waiting and the application's functions, for one side of an engine.

    Args:
        timeout: seconds that each of the middleware's own calls may take in total.
        base_url: of CameraManager, for `DEFAULTS`, which may replace connections to it.
        transport: sends requests instead of a connection pool of the runtime's own.
        clock: returns epoch seconds.
        cache_memory: shared by the caches of the parts that this runtime serves.
        background: True if work goes on once a response was sent, False if not; None to find out.

    Attributes:
        monotonic: a clock for waiting, which does not jump when the system's time is set.
        single_flight: runs work once for all callers that need its result.
        loading: loads beside what is needed soon.
        exchanges_at_once: code exchanges that a process makes at a time, if no option says it.
        is_async: True if it awaits on event loops, False if it blocks in threads.
    """

    single_flight: SingleFlight
    exchanges_at_once: ClassVar[int]
    is_async: ClassVar[bool]

    def __init__(
        self,
        timeout: float,
        base_url: str,
        transport: httpx2.AsyncBaseTransport | httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.time,
        cache_memory: CacheMemory | None = None,
        background: bool | None = None,
    ) -> None:
        self.timeout = timeout
        self.cache_memory = cache_memory or CacheMemory()
        self.clock = clock
        self.monotonic = time.monotonic
        self._base_url = base_url
        self._transport = transport
        self.loading = Loading()
        self._tls_context: ssl.SSLContext | None = None
        self._background = False if background is None and _is_frozen_between() else background
        redact_logged_headers()
        self._start()

    @abstractmethod
    def _start(self) -> None:
        """Set up the parts that differ by side: no connections yet, and no work under way."""

    def _given_transport(self) -> Any:
        """Return the transport that an application or a test gave; None for the runtime's own."""
        return self._transport or DEFAULTS.transport(self._base_url)

    def _tls(self) -> ssl.SSLContext:
        """Return the settings that verify certificates; to make them takes 20 ms."""
        if self._tls_context is None:
            import httpx2  # when first needed

            self._tls_context = httpx2.create_ssl_context()
        return self._tls_context

    def load_http(self) -> None:
        """Load the HTTP client, and make the settings of its connections."""
        from . import http  # noqa: F401 - loads it

        if self._given_transport() is None:
            self._tls()

    @abstractmethod
    def load_sockets(self) -> None:
        """Load what the HTTP client would load at its first connection."""

    # -- HTTP ------------------------------------------------------------------------------

    @abstractmethod
    def transport(self) -> Any:
        """Return the connection pool of the ready clients."""

    @abstractmethod
    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        content: bytes | None = None,
        connections: Connections = "calls",
    ) -> httpx2.Response:
        """Send one of the middleware's own requests; redirects are not followed.

        Raises:
            UnavailableError: the response is larger than `MAX_BODY` or oddly compressed, or it was
                not complete after `timeout` seconds. A response with another status than 200 is cut
                after `MAX_DISCARDED` bytes instead: its status says what there is to know.
            httpx2.HTTPError: the server cannot be reached, or did not speak HTTP.
        """

    @abstractmethod
    async def discard(self, response: httpx2.Response) -> None:
        """Throw a response's body away.

        A short one is read, which gives its connection back to the pool: at most `MAX_DISCARDED`
        bytes as they were sent, within `timeout`. The connection of a longer one is closed.
        """

    # -- beside requests -------------------------------------------------------------------

    async def run_beside(self, key: str, work: Work) -> None:
        """Run `work` beside the request, unless it is under way for `key`; ignore its errors.

        It is waited for where nothing goes on once the response was sent, or may not: new tokens
        that a host cuts off are lost, and their session with them.
        """
        if self._outlives_requests() if self._background is None else self._background:
            self.single_flight.start(key, work)
        else:
            with suppress(Exception):
                await self.single_flight.do(key, work)

    @abstractmethod
    def _outlives_requests(self) -> bool:
        """Return True if work that is started here is known to go on after the response."""

    # -- time ------------------------------------------------------------------------------

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait."""

    @abstractmethod
    async def within(self, seconds: float, work: Work) -> Any:
        """Return or raise the outcome of `work`, but wait for it no longer than so many seconds.

        Work that is too late is cancelled on an event loop; between threads it goes on in a thread
        of its own. If it has not ended in spite of that, it counts among `MOST_LATE`.

        Raises:
            UnavailableError: there is no outcome yet.
        """

    @abstractmethod
    def heartbeat(self, tick: Work, every: float) -> AbstractAsyncContextManager[None]:
        """Run `tick` every so many seconds, while an ``async with`` block runs."""

    @abstractmethod
    def repeat(self, every: float, work: Callable[[], Awaitable[bool]]) -> Repetition:
        """Start to run `work` every so many seconds, in the background.

        It goes on until `work` returns False, or `close` is called. `close` does not wait for it.
        """

    # -- the application's functions -------------------------------------------------------

    @abstractmethod
    async def call_user_function(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Call an application's function, sync or async."""

    async def run_hook(self, name: str, hook: Callable[[Any], Any] | None, argument: Any) -> None:
        """Call a hook, if there is one.

        Errors are logged and not raised: the login or logout has already happened.
        """
        if hook is not None:
            try:
                await self.call_user_function(hook, argument)
            except Exception:
                log("hook_failed", exc_info=True, hook=name)

    @abstractmethod
    async def close(self) -> None:
        """Wait for refreshes under way, then close the connections."""


def _is_frozen_between() -> bool:
    """Return True if this host stops the process between requests."""
    return any(os.environ.get(name) for name in _FREEZING_HOSTS)
