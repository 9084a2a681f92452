"""The engine: one application's configuration, store and connections, put together once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Unpack, cast

import httpx2

from . import telemetry
from .auth.connections import LoopConnections, ThreadConnections
from .auth.gate import Gate
from .client import (
    AsyncCMClient,
    ClientFactory,
    CMClient,
    LazyAsyncCMClient,
    LazyCMClient,
    Refresher,
)
from .config import CMAuthConfig, seconds
from .errors import ConfigError, StoreError
from .runtime.base import Runtime
from .runtime.defaults import DEFAULTS
from .runtime.event_loops import EventLoopRuntime
from .runtime.run_sync import has_event_loop, run_sync
from .runtime.threads import ThreadRuntime
from .sessions.encryption import SessionInfo
from .sessions.manager import SessionManager
from .stores import HasBlockingTwin, SessionStore, open_store
from .tokens.background import HandleRefresher, open_handle
from .tokens.oauth import CameraManager
from .tokens.refresh import TokenRefresher

if TYPE_CHECKING:
    from .options import CMAuthOptions
    from .sessions.record import Session


class Services:
    """The parts that serve requests, on one services: an event loop's or the threads'."""

    def __init__(self, config: CMAuthConfig, runtime: Runtime, store: SessionStore) -> None:
        self.config = config
        self.runtime = runtime
        server = CameraManager(config, runtime)
        self._telemetry = telemetry.find()
        if self._telemetry is not None:
            store = cast("SessionStore", telemetry.TimedStore(store, self._telemetry))
            server = telemetry.TimedServer(config, runtime, self._telemetry)
        self.sessions = SessionManager(config, runtime, store)
        self.refresher = TokenRefresher(config, runtime, self.sessions, server)
        self.gate = Gate(config, runtime, self.sessions, self.refresher, server)
        self.clock = runtime.clock
        self.connections: Any = (
            LoopConnections(runtime, self.gate.is_alive)
            if isinstance(runtime, EventLoopRuntime)
            else ThreadConnections(runtime, self.gate.is_alive)
        )
        self.clients = self._clients(self.refresher)
        self.handle_clients = self._clients(HandleRefresher(self.sessions, self.refresher))

    def _clients(self, refresher: Refresher) -> ClientFactory:
        return ClientFactory(
            AsyncCMClient if isinstance(self.runtime, EventLoopRuntime) else CMClient,
            refresher=refresher,
            read=self.runtime.read,
            transport=self.transport,
            base_url=self.config.base_url,
            timeout=self.runtime.timeout,
        )

    def transport(self) -> Any:
        """What a ready client sends a request by: the connection pool."""
        pool = self.runtime.transport()
        # Without an SDK nothing is timed: an empty span costs a twentieth of a call.
        if self._telemetry is None or not self._telemetry.times_calls:
            return pool
        return telemetry.TimedTransport(pool, self._telemetry)

    def warm_up(self) -> None:
        """Load what is loaded when first needed, 0.2 s of it: no refresh has to wait for it."""
        importlib.import_module("authlib.integrations.httpx_client")
        importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
        self.runtime.transport()


class AuthEngine:
    """Everything that a middleware needs, made once and shared.

    Each middleware makes its own from its options; make one yourself and pass it as
    ``engine=`` to share it, or to call it from elsewhere. One engine serves ASGI and WSGI
    applications at once.

    Its methods are awaited where an event loop runs, and called plainly where none does: in an
    engine that only a WSGI middleware uses, they are plain everywhere.

    Args:
        config: the options; keywords override them, the environment fills the rest.
        transport: speaks HTTP to CameraManager instead of a connection pool of the engine's
            own: a transport with a private CA or a proxy, or an in-process simulator. An
            `httpx2.AsyncBaseTransport` for ASGI, an `httpx2.BaseTransport` for WSGI. Its limits
            hold for logins and refreshes, too.
        clock: epoch seconds.
        options: as in `CMAuthConfig`.

    Raises:
        ConfigError: an option is missing or wrong.
    """

    def __init__(
        self,
        config: CMAuthConfig | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = DEFAULTS.clock,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self.config = CMAuthConfig.build(config, options)
        self.store = open_store(self.config.store, clock=clock)
        self._transport = transport
        self._clock = clock
        self._async: Services | None = None
        self._threads: Services | None = None

    @classmethod
    def resolve(
        cls, engine: AuthEngine | None, config: CMAuthConfig | None, options: CMAuthOptions
    ) -> AuthEngine:
        """The engine that a middleware was given, or one made of its options."""
        if engine is None:
            return cls(config, **options)
        if config is not None or options:
            raise ConfigError("engine is given: its options are its own, so give no others")
        return engine

    # -- the two sides ---------------------------------------------------------------------

    @property
    def async_services(self) -> Services:
        """The parts behind the ASGI middleware."""
        if self._async is None:
            given = self._transport
            if given is not None and not isinstance(given, httpx2.AsyncBaseTransport):
                raise ConfigError("transport is for WSGI; ASGI needs an httpx2.AsyncBaseTransport")
            runtime = EventLoopRuntime(
                seconds(self.config.timeout), self.config.base_url, given, self._clock
            )
            self._async = Services(self.config, runtime, self.store)
            telemetry.watch(self)
        return self._async

    @property
    def thread_services(self) -> Services:
        """The parts behind the WSGI middleware: the same, but they block."""
        if self._threads is None:
            given = self._transport
            if given is not None and not isinstance(given, httpx2.BaseTransport):
                raise ConfigError("transport is for ASGI; WSGI needs an httpx2.BaseTransport")
            runtime = ThreadRuntime(
                seconds(self.config.timeout), self.config.base_url, given, self._clock
            )
            self._threads = Services(self.config, runtime, _for_threads(self.store))
            telemetry.watch(self)
        return self._threads

    def _run(self, step: Callable[[Services], Coroutine[Any, Any, Any]]) -> Any:
        only_threads = self._threads is not None and self._async is None
        if has_event_loop() and not only_threads:
            return step(self.async_services)
        return run_sync(step(self.thread_services))

    # -- for a handler, a script, an administrator -----------------------------------------

    def client(self, session: Session) -> AsyncCMClient:
        """A ready client for the user of a session; it costs nothing until it is used."""
        return LazyAsyncCMClient(self.async_services.clients, session)

    def sync_client(self, session: Session) -> CMClient:
        """The same for threads."""
        return LazyCMClient(self.thread_services.clients, session)

    async def client_for(self, handle: str) -> AsyncCMClient:
        """A ready client for a job outside any request, by a handle of `Session.export`.

        Its refreshes are those of the live session. Each of its calls looks whether the session
        is still there. Close it as any httpx2 client, or not at all: the pool is shared.

        Raises, and so does each call:
            SessionExpiredError: the user logged out, or the session came to its timeouts, or the
                handle is none of this application's: drop it.
            UnavailableError: the store, or CameraManager, cannot be asked just now: try again.
        """
        services = self.async_services
        session = await open_handle(services.sessions, handle)
        return LazyAsyncCMClient(services.handle_clients, session)

    def sync_client_for(self, handle: str) -> CMClient:
        """The same for threads."""
        services = self.thread_services
        session = run_sync(open_handle(services.sessions, handle))
        return LazyCMClient(services.handle_clients, session)

    def logout(self, session: Session) -> Any:
        """Log a session out, here and at CameraManager."""
        return self._run(lambda services: services.gate.end(session))

    def sessions(self, user_id: str | int) -> Any:
        """List a user's sessions, the one used last first; holds no tokens and opens nothing.

        Args:
            user_id: CameraManager's ``userId``.

        Returns:
            A list of `SessionInfo`.

        Raises:
            UnavailableError: the store fails, or is of a kind that cannot list.
        """

        async def step(services: Services) -> list[SessionInfo]:
            return [info for _, info in await services.sessions.sessions_of(str(user_id))]

        return self._run(step)

    def logout_user(self, user_id: str | int) -> Any:
        """End all sessions of a user, everywhere.

        Their tokens cannot be deleted at CameraManager: only the users' cookies open them. They
        stay sealed until they are dropped with the store's records.

        Args:
            user_id: CameraManager's ``userId``.

        Returns:
            How many sessions ended.

        Raises:
            UnavailableError: the store fails, or is of a kind that cannot list.
        """
        return self._run(lambda services: services.sessions.remove_all(str(user_id)))

    def close(self) -> Any:
        """Finish refreshes under way and close connections; sessions stay in the store."""

        telemetry.unwatch(self)

        async def step(services: Services) -> None:
            await services.runtime.close()
            if isinstance(self.config.store, str):  # a store object is its maker's to close
                await services.sessions.store.close()

        return self._run(step)

    def __repr__(self) -> str:
        return f"<AuthEngine {self.config.base_url}>"


def _for_threads(store: SessionStore) -> SessionStore:
    """The store itself or its twin: what blocks and never suspends.

    Raises:
        ConfigError: it suspends, and has no twin.
    """
    if isinstance(store, HasBlockingTwin):
        return store.blocking()
    try:
        run_sync(store.ping())
    except StoreError:  # down just now, which is no mistake
        return store
    except RuntimeError:
        raise ConfigError(
            "store is for event loops: for WSGI give it a method blocking(), which returns a "
            "store whose methods block and never suspend"
        ) from None
    return store
