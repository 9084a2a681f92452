"""OpenTelemetry metrics and spans, where `opentelemetry-api` is installed.

| metric | kind | attributes |
| --- | --- | --- |
| `cm_auth.logins` | counter | `result`: success, cancelled, denied, stale, failed |
| `cm_auth.refreshes` | counter | `result`: success, refused, failed |
| `cm_auth.logouts` | counter | |
| `cm_auth.sessions_ended` | counter | by CameraManager, not by a logout |
| `cm_auth.sessions.active` | gauge | `store`: its class; where the store can count |
| `cm_auth.store.duration` | histogram, s | `operation`, `error.type` |
| `cm_auth.cameramanager.duration` | histogram, s | `operation`, `error.type` |

The operations at CameraManager are `exchange`, `refresh`, `user`, `revoke`, and `api`: a call of
the ready client until its headers are there, with `http.request.method` and
`http.response.status_code`.

Each call to CameraManager is a span of kind client, `cm_auth <operation>`. No attribute holds a
token, a query or a user. Several processes on one store each see all of its sessions: take the
maximum of `cm_auth.sessions.active`, not the sum.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httpx2

from . import events
from .display import printable
from .errors import StoreError
from .runtime.run_sync import run_sync
from .sessions.encryption import count_sessions
from .stores import CountsRecords, HasBlockingTwin
from .tokens.oauth import CameraManager

if TYPE_CHECKING:
    from .config import CMAuthConfig
    from .engine import AuthEngine
    from .runtime.base import Runtime
    from .sessions.record import Tokens
    from .stores import SessionStore

_SCOPE = "cm_auth_middleware"
_RESULTS = {
    "login": ("logins", "success"),
    "login_cancelled": ("logins", "cancelled"),
    "login_denied": ("logins", "denied"),
    "login_stale": ("logins", "stale"),
    "login_failed": ("logins", "failed"),
    "refreshed": ("refreshes", "success"),
    "refresh_refused": ("refreshes", "refused"),
    "refresh_failed": ("refreshes", "failed"),
    "logout": ("logouts", None),
    "session_ended": ("sessions_ended", None),
}
# Seconds: a look into memory takes 10⁻⁶, a refresh that is retried 10.
_BUCKETS = (
    1e-6, 1e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


@functools.cache
def find() -> Telemetry | None:
    """The telemetry of this process; None without ``opentelemetry-api``."""
    try:
        from opentelemetry import metrics, trace
    except ImportError:
        return None
    return Telemetry(metrics, trace)


_engines: weakref.WeakSet[AuthEngine] = weakref.WeakSet()


def watch(engine: AuthEngine) -> None:
    """Count the sessions in an engine's store, if it can count without an event loop."""
    _engines.add(engine)


def unwatch(engine: AuthEngine) -> None:
    """No longer count them."""
    _engines.discard(engine)


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
            )
        }
        self._store_time = meter.create_histogram(
            "cm_auth.store.duration",
            unit="s",
            description="Time in the session store",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._server_time = meter.create_histogram(
            "cm_auth.cameramanager.duration",
            unit="s",
            description="Time at CameraManager",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        meter.create_observable_gauge(
            "cm_auth.sessions.active",
            callbacks=[self._count_sessions],
            unit="{session}",
            description="Sessions in the store",
        )
        self.is_read = False  # whether an SDK reads what is recorded
        self.look()
        events.observers.append(self._count)

    def look(self) -> None:
        """See whether the application has set up an SDK by now, for metrics or for spans."""
        self._looked_at = perf_counter()
        self.is_read = not _drops_all(self._metrics.get_meter_provider())
        self._is_traced = not _drops_all(self._trace.get_tracer_provider())

    @property
    def times_calls(self) -> bool:
        """Whether calls of the ready clients are timed: once an SDK is there, or a second later."""
        if not (self.is_read or self._is_traced) and perf_counter() > self._looked_at + 1:
            self.look()
        return self.is_read or self._is_traced

    def stored(self, operation: str, start: float, error: BaseException | None = None) -> None:
        """Note a call of the store that began at `start`."""
        attributes = {"operation": operation}
        if error is not None:
            attributes["error.type"] = type(error).__name__
        self._store_time.record(perf_counter() - start, attributes)

    @contextmanager
    def call(self, operation: str, host: str) -> Iterator[dict[str, Any]]:
        """Time a call to CameraManager, as a span too; what is put into the dict goes along."""
        attributes: dict[str, Any] = {"operation": operation}
        start = perf_counter()
        span = self._tracer.start_as_current_span(
            f"cm_auth {operation}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={"server.address": printable(host)},
            record_exception=False,  # its text and chain are not ours to publish
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
        name, result = _RESULTS.get(event, (None, None))
        if name is not None:
            self._counters[name].add(1, {} if result is None else {"result": result})

    def _count_sessions(self, _: Any) -> Iterable[Any]:
        totals: dict[str, int] = {}
        stores = {id(engine.store): engine.store for engine in list(_engines)}
        for store in stores.values():
            if not isinstance(store, CountsRecords) or not isinstance(store, HasBlockingTwin):
                continue
            name = type(store).__name__
            try:
                blocking = cast("CountsRecords", store.blocking())
                totals[name] = totals.get(name, 0) + run_sync(count_sessions(blocking))
            except StoreError:
                continue  # no number is better than a wrong one
        return [self._metrics.Observation(total, {"store": name}) for name, total in totals.items()]


def _drops_all(provider: Any) -> bool:
    """Whether a provider is the API's own, which keeps nothing."""
    return type(provider).__module__.startswith(("opentelemetry.metrics", "opentelemetry.trace"))


class TimedStore:
    """A store whose calls are timed; everything else is the store's own."""

    def __init__(self, store: SessionStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._choose()

    def _choose(self) -> None:
        # The one call that every request makes costs nothing more while nobody reads its time.
        self.get = self._timed_get if self._telemetry.is_read else self._store.get

    async def _timed_get(self, key: str) -> bytes | None:
        return await self._timed("get", key)  # type: ignore[no-any-return]

    async def put(self, key: str, value: bytes, ttl: float) -> None:
        """Set the value."""
        self._telemetry.look()
        self._choose()
        await self._timed("put", key, value, ttl)

    async def replace(self, key: str, old: bytes, new: bytes, ttl: float) -> bool:
        """Set `new` if the value is `old`."""
        return await self._timed("replace", key, old, new, ttl)  # type: ignore[no-any-return]

    async def delete(self, key: str) -> bytes | None:
        """Remove the value and return it."""
        return await self._timed("delete", key)  # type: ignore[no-any-return]

    async def acquire(self, key: str, owner: str, ttl: float) -> bool:
        """Take or extend a lease."""
        return await self._timed("acquire", key, owner, ttl)  # type: ignore[no-any-return]

    async def release(self, key: str, owner: str) -> None:
        """Give a lease back."""
        await self._timed("release", key, owner)

    async def _timed(self, operation: str, *arguments: Any) -> Any:
        start = perf_counter()
        try:
            result = await getattr(self._store, operation)(*arguments)
        except BaseException as error:
            self._telemetry.stored(operation, start, error)
            raise
        self._telemetry.stored(operation, start)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class TimedServer(CameraManager):
    """CameraManager's OAuth server, whose answers are timed."""

    def __init__(self, config: CMAuthConfig, runtime: Runtime, telemetry: Telemetry) -> None:
        super().__init__(config, runtime)
        host = urlsplit(config.base_url).hostname or ""
        self._call = functools.partial(telemetry.call, host=host)

    async def exchange(self, code: str, redirect_uri: str, code_verifier: str) -> Tokens:
        """Trade a code for tokens."""
        with self._call("exchange"):
            return await super().exchange(code, redirect_uri, code_verifier)

    async def refresh(self, refresh_token: str) -> Tokens:
        """Trade a refresh token for new tokens."""
        with self._call("refresh"):
            return await super().refresh(refresh_token)

    async def user(self, access_token: str) -> dict[str, Any]:
        """Read ``users/self``."""
        with self._call("user"):
            return await super().user(access_token)

    async def revoke(self, access_token: str) -> bool:
        """Delete the tokens at CameraManager."""
        with self._call("revoke"):
            return await super().revoke(access_token)


class TimedTransport(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """The transport of the ready clients, whose calls are timed until their headers are there."""

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
