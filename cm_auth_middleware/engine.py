"""The engine: one application's configuration, store and connections, put together once."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Unpack, cast

import httpx2

from . import telemetry
from .background import HandleKeeper, open_handle
from .client import AsyncCMClient, CMClient, UnusedAsyncCMClient, UnusedCMClient
from .config import CMAuthConfig
from .connections import LoopConnections, ThreadConnections
from .driver import has_event_loop, run_sync
from .errors import ConfigError, StoreError
from .events import log
from .flow import Flow
from .oauth import CameraManager
from .ports import AsyncPorts, Ports, ThreadPorts
from .sealing import SessionInfo
from .stores import HasBlockingTwin, SessionStore, open_store
from .surroundings import SURROUNDINGS
from .tokens import TokenKeeper
from .vault import SessionVault

if TYPE_CHECKING:
    from .options import CMAuthOptions
    from .session import Session


class Side:
    """The parts that serve requests, on one side: an event loop's or the threads'."""

    def __init__(self, config: CMAuthConfig, ports: Ports, store: SessionStore) -> None:
        self.config = config
        self.ports = ports
        server = CameraManager(config, ports)
        self._telemetry = telemetry.find()
        if self._telemetry is not None:
            store = cast("SessionStore", telemetry.TimedStore(store, self._telemetry))
            server = telemetry.TimedServer(config, ports, self._telemetry)
        self.vault = SessionVault(config, ports, store)
        self.keeper = TokenKeeper(config, ports, self.vault, server)
        self.flow = Flow(config, ports, self.vault, self.keeper, server)
        self.handle_keeper = HandleKeeper(self.vault, self.keeper, self.flow.admits)
        self.clock = ports.clock
        self.connections: Any = (
            LoopConnections(ports, self.flow.is_alive)
            if isinstance(ports, AsyncPorts)
            else ThreadConnections(ports, self.flow.is_alive)
        )
        self.pattern: httpx2.AsyncClient | httpx2.Client | None = None  # of the ready clients

    def transport(self) -> Any:
        """What a ready client sends a request by: the connection pool."""
        pool = self.ports.transport()
        # Without an SDK nothing is timed: an empty span costs a twentieth of a call.
        if self._telemetry is None or not self._telemetry.times_calls:
            return pool
        return telemetry.TimedTransport(pool, self._telemetry)

    def warn_of_store(self) -> None:
        """Log a warning if the store is known to be unusable, before the first login finds out."""
        check = getattr(self.vault.store, "check", None)
        if check is not None:
            try:
                check()
            except StoreError as error:
                log("store_unusable", reason=error)

    def warm_up(self) -> None:
        """Load what is loaded when first needed, 0.2 s of it: no refresh has to wait for it."""
        importlib.import_module("authlib.integrations.httpx_client")
        importlib.import_module("cryptography.hazmat.primitives.ciphers.aead")
        self.ports.transport()


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
        clock: Callable[[], float] = SURROUNDINGS.clock,
        **options: Unpack[CMAuthOptions],
    ) -> None:
        self.config = CMAuthConfig.build(config, options)
        self.store = open_store(self.config.store, clock=clock)
        self._transport = transport
        self._clock = clock
        self._async: Side | None = None
        self._threads: Side | None = None

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
    def async_side(self) -> Side:
        """The parts behind the ASGI middleware."""
        if self._async is None:
            given = self._transport
            if given is not None and not isinstance(given, httpx2.AsyncBaseTransport):
                raise ConfigError("transport is for WSGI; ASGI needs an httpx2.AsyncBaseTransport")
            self._async = Side(self.config, AsyncPorts(self.config, given, self._clock), self.store)
            telemetry.watch(self)
        return self._async

    @property
    def thread_side(self) -> Side:
        """The parts behind the WSGI middleware: the same, but they block."""
        if self._threads is None:
            given = self._transport
            if given is not None and not isinstance(given, httpx2.BaseTransport):
                raise ConfigError("transport is for ASGI; WSGI needs an httpx2.BaseTransport")
            store = _for_threads(self.store)
            self._threads = Side(self.config, ThreadPorts(self.config, given, self._clock), store)
            telemetry.watch(self)
        return self._threads

    def _run(self, step: Callable[[Side], Coroutine[Any, Any, Any]]) -> Any:
        only_threads = self._threads is not None and self._async is None
        if has_event_loop() and not only_threads:
            return step(self.async_side)
        return run_sync(step(self.thread_side))

    # -- for a handler, a script, an administrator -----------------------------------------

    def client(self, session: Session) -> AsyncCMClient:
        """A ready client for the user of a session; it costs nothing until it is used."""
        return UnusedAsyncCMClient(self.async_side, session)

    def sync_client(self, session: Session) -> CMClient:
        """The same for threads."""
        return UnusedCMClient(self.thread_side, session)

    async def client_for(self, handle: str) -> AsyncCMClient:
        """A ready client for a job outside any request, by a handle of `Session.export`.

        Its refreshes are those of the live session. Each of its calls looks whether the session
        is still there. Close it as any httpx2 client, or not at all: the pool is shared.

        Raises, and so does each call:
            SessionExpiredError: the user logged out, or the session came to its timeouts, or the
                handle is none of this application's: drop it.
            UnavailableError: the store, or CameraManager, cannot be asked just now: try again.
        """
        side = self.async_side
        session = await open_handle(side.vault, handle)
        await side.handle_keeper.look_up(session)
        return UnusedAsyncCMClient(side, session, side.handle_keeper)

    def sync_client_for(self, handle: str) -> CMClient:
        """The same for threads."""
        side = self.thread_side
        session = run_sync(open_handle(side.vault, handle))
        run_sync(side.handle_keeper.look_up(session))
        return UnusedCMClient(side, session, side.handle_keeper)

    def logout(self, session: Session) -> Any:
        """Log a session out, here and at CameraManager."""
        return self._run(lambda side: side.flow.end(session))

    def sessions(self, user_id: str | int) -> Any:
        """List a user's sessions, the one used last first; holds no tokens and opens nothing.

        Args:
            user_id: CameraManager's ``userId``.

        Returns:
            A list of `SessionInfo`.

        Raises:
            UnavailableError: the store fails, or is of a kind that cannot list.
        """

        async def step(side: Side) -> list[SessionInfo]:
            return [info for _, info in await side.vault.sessions_of(str(user_id))]

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
        return self._run(lambda side: side.vault.remove_all(str(user_id)))

    def close(self) -> Any:
        """Finish refreshes under way and close connections; sessions stay in the store."""

        telemetry.unwatch(self)

        async def step(side: Side) -> None:
            await side.ports.close()
            if isinstance(self.config.store, str):  # a store object is its maker's to close
                await side.vault.store.close()

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
