"""OpenTelemetry metrics and spans, where `opentelemetry-api` is installed.

| metric | kind | attributes |
| --- | --- | --- |
| `cm_auth.logins` | counter | `result`: success, cancelled, denied, stale, failed |
| `cm_auth.refreshes` | counter | `result`: success, refused, failed |
| `cm_auth.logouts` | counter | |
| `cm_auth.sessions_ended` | counter | ended by CameraManager, not by a logout |
| `cm_auth.unavailable` | counter | requests that were answered 503 |
| `cm_auth.store.warnings` | counter | `event`: a warning of the storage in the log, by its name |
| `cm_auth.sessions.active` | gauge | `store`: its class; only if the store can count |
| `cm_auth.store.duration` | histogram, s | `operation`, `error.type` |
| `cm_auth.cameramanager.duration` | histogram, s | `operation`, `error.type` |

The operations at CameraManager are `exchange`, `refresh`, `user`, `revoke`, and `api`: a call of
the ready client until the response headers have arrived, with `http.request.method` and
`http.response.status_code`.

Each call to CameraManager is a span of kind client, `cm_auth <operation>`. No attribute holds a
token, a query or a user. Several processes on one store each see all of its sessions: take the
maximum of `cm_auth.sessions.active`, not the sum.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, cast

from . import events
from .display import printable
from .errors import StoreError
from .runtime.run_sync import run_sync
from .sessions.encryption import count_sessions
from .stores import CountsRecords, HasBlockingTwin, method_of

if TYPE_CHECKING:
    import httpx2

    from .stores import SessionStore

_SCOPE = "cm_auth_middleware"
# The counter and its attributes, by the event that it counts.
_COUNTED: dict[str, tuple[str, dict[str, str]]] = {
    "login": ("logins", {"result": "success"}),
    "login_cancelled": ("logins", {"result": "cancelled"}),
    "login_denied": ("logins", {"result": "denied"}),
    "login_stale": ("logins", {"result": "stale"}),
    "login_failed": ("logins", {"result": "failed"}),
    "refreshed": ("refreshes", {"result": "success"}),
    "refresh_refused": ("refreshes", {"result": "refused"}),
    "refresh_failed": ("refreshes", {"result": "failed"}),
    "logout": ("logouts", {}),
    "session_ended": ("sessions_ended", {}),
    "unavailable": ("unavailable", {}),
    **{
        event: ("store.warnings", {"event": event})
        for event in (
            "data_lost", "keepers_gone", "replicas_behind", "session_unreadable", "store_slow",
            "store_unusable", "tokens_put_back", "touch_failed", "unhealthy",
        )
    },
}  # fmt: skip
# Seconds: a read from memory takes 10⁻⁶, a refresh that is retried 10.
_BUCKETS = (
    1e-6, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


@functools.cache
def find() -> Telemetry | None:
    """Return the telemetry of this process; None without ``opentelemetry-api``."""
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    return Telemetry(metrics, trace)


class HasStore(Protocol):
    """An engine, as far as the count of its sessions needs it."""

    store: SessionStore


watched_engines: weakref.WeakSet[HasStore] = weakref.WeakSet()
"""The engines whose sessions are counted, if their stores can count without an event loop.

It has engines, not stores: several may share a store, and each is closed by itself. A store may
refer to its engine, for example by its clock, so the set is weak.
"""


class Telemetry:
    """The instruments of this process, shared by its engines."""

    def __init__(self, metrics: Any, trace: Any) -> None:
        self._metrics = metrics
        self._trace = trace
        meter = metrics.get_meter(_SCOPE)
        self._tracer = trace.get_tracer(_SCOPE)
        self._counters = {
            name: meter.create_counter(f"cm_auth.{name}", description=description)
            for name, description in (
                ("logins", "Logins that ended, by result"),
                ("refreshes", "Refreshes of a grant's tokens, by result"),
                ("logouts", "Sessions that were logged out"),
                ("sessions_ended", "Sessions that CameraManager ended"),
                ("unavailable", "Requests that were answered 503"),
                ("store.warnings", "Warnings of the storage in the log, by their event"),
            )
        }
        histogram = functools.partial(
            meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_BUCKETS
        )
        self.store_time = histogram(
            "cm_auth.store.duration", description="Time in the session store"
        )
        self._server_time = histogram(
            "cm_auth.cameramanager.duration", description="Time at CameraManager"
        )
        meter.create_observable_gauge(
            "cm_auth.sessions.active",
            callbacks=[self._count_sessions],
            unit="{session}",
            description="Sessions in the store",
        )
        self._active = False
        self._idle: tuple[Any, Any] = (None, None)  # providers that are known to drop all
        events.observers.append(self._count)

    @property
    def active(self) -> bool:
        """True if the application has set up an SDK by now, for metrics or for spans."""
        if not self._active:
            providers = self._metrics.get_meter_provider(), self._trace.get_tracer_provider()
            if providers != self._idle:  # which they are at nearly each call to CameraManager
                self._active = not all(map(_drops_all, providers))
                self._idle = providers
        return self._active

    @contextmanager
    def call(self, operation: str, host: str) -> Iterator[dict[str, Any]]:
        """Record the time of a call to CameraManager, and a span of it.

        The caller may add attributes to the dictionary that it gets.
        """
        attributes: dict[str, Any] = {"operation": operation}
        start = perf_counter()
        span = self._tracer.start_as_current_span(
            f"cm_auth {operation}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={"server.address": printable(host)},
            record_exception=False,  # its text and chain may quote what the server said
            set_status_on_exception=False,
        )
        with span as current:
            try:
                yield attributes
            except BaseException as error:
                attributes["error.type"] = type(error).__name__
                current.set_status(self._trace.StatusCode.ERROR)
                raise
            finally:
                current.set_attributes(attributes)
                self._server_time.record(perf_counter() - start, attributes)

    def _count(self, event: str) -> None:
        if event in _COUNTED:
            name, attributes = _COUNTED[event]
            self._counters[name].add(1, attributes)

    def _count_sessions(self, _: Any) -> Iterable[Any]:
        totals: dict[str, int] = {}
        stores = {id(owner.store): owner.store for owner in list(watched_engines)}
        for store in stores.values():
            if not isinstance(store, CountsRecords) or not isinstance(store, HasBlockingTwin):
                continue
            name = type(store).__name__
            try:
                blocking = cast("CountsRecords", store.blocking())
                totals[name] = totals.get(name, 0) + run_sync(count_sessions(blocking))
            except StoreError:
                continue  # report no number instead of a wrong one
        return [self._metrics.Observation(total, {"store": name}) for name, total in totals.items()]


def _drops_all(provider: Any) -> bool:
    """True if a provider is the one of the API itself, which records nothing: no SDK is set up."""
    return type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))


_TIMED = frozenset({"get", "put", "put_all", "replace", "delete", "acquire", "claim", "release"})


class TimedStore:
    """A store whose calls are timed once an SDK is there; everything else is the store's own."""

    def __init__(self, store: SessionStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        # Every request makes this call, and by __getattr__ it would take 2 µs more.
        self.get = self._timed("get") if telemetry.active else store.get

    def __getattr__(self, name: str) -> Any:
        if name in ("put_all", "claim") and method_of(self._store, name) is None:
            raise AttributeError(name)
        if name not in _TIMED or not self._telemetry.active:
            return getattr(self._store, name)
        self.get = self._timed("get")
        return self._timed(name)

    def _timed(self, operation: str) -> Callable[..., Any]:
        method = getattr(self._store, operation)
        record = self._telemetry.store_time.record

        async def call(*arguments: Any, **options: Any) -> Any:
            attributes = {"operation": operation}
            start = perf_counter()
            try:
                return await method(*arguments, **options)
            except BaseException as error:
                attributes["error.type"] = type(error).__name__
                raise
            finally:
                record(perf_counter() - start, attributes)

        return call


class TimedTransport:
    """A transport for the ready clients that times each call until the headers have arrived."""

    def __init__(self, transport: Any, telemetry: Telemetry) -> None:
        self._transport = transport
        self._telemetry = telemetry

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._telemetry.call("api", request.url.host) as attributes:
            attributes["http.request.method"] = printable(request.method)
            response: httpx2.Response = await self._transport.handle_async_request(request)
            attributes["http.response.status_code"] = response.status_code
        return response

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        with self._telemetry.call("api", request.url.host) as attributes:
            attributes["http.request.method"] = printable(request.method)
            response: httpx2.Response = self._transport.handle_request(request)
            attributes["http.response.status_code"] = response.status_code
        return response
