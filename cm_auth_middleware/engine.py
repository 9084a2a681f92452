"""The engine makes the parts that serve one application, from its options."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast
from urllib.parse import urlsplit

from . import telemetry
from .auth.connections import LoopConnections, ThreadConnections
from .auth.gate import Gate
from .config import CMAuthConfig, CMAuthOptions
from .errors import ConfigError, StoreError
from .events import log
from .runtime.base import Runtime
from .runtime.bounded_cache import CacheMemory
from .runtime.defaults import DEFAULTS
from .runtime.run_sync import has_event_loop, run_sync
from .sessions.cookie import SessionCookie
from .sessions.manager import SessionManager
from .sessions.record import SessionInfo
from .stores import HasBlockingTwin, SessionStore, open_store
from .tokens.grant_records import GrantRecords
from .tokens.oauth import OAuthClient, Timed
from .tokens.provider import find_provider
from .tokens.refresh import TokenRefresher
from .web import files

if TYPE_CHECKING:
    import httpx2

    from .client import AsyncCMClient, CMClient
    from .sessions.session import Session


asgi_states: ContextVar[list[dict[str, Any]]] = ContextVar("cm_auth_state")
"""The ``state`` of the ASGI request that this code runs for, until that is over; then nothing.

A WSGI application that is mounted in an ASGI one finds its session by it: the bridge in between
passes on the context, but not the state. It is set only where Flask is loaded.
"""


class Services:
    """The parts that serve requests on one side: on event loops (ASGI), or in threads (WSGI)."""

    def __init__(self, config: CMAuthConfig, runtime: Runtime, store: SessionStore) -> None:
        self.runtime = runtime
        self._telemetry = telemetry.find()
        timed: Timed = nullcontext
        if self._telemetry is not None:
            store = cast("SessionStore", telemetry.TimedStore(store, self._telemetry))
            host = urlsplit(config.base_url).hostname or ""
            timed = partial(self._telemetry.call, host=host)
        provider = find_provider(config.provider)
        self.included_scopes = provider.included_scopes
        self.oauth = oauth = make_oauth_client(config, runtime, timed)
        cookie = SessionCookie(
            config.secret_key,
            config.absolute_timeout,
            runtime.clock,
            name=config.cookie_name,
            is_secure=config.cookie_secure,
            redirect_uri=config.redirect_uri,
            memory=runtime.cache_memory,
        )
        self.sessions = SessionManager(
            store,
            cookie,
            config.secret_key,
            user_id_field=provider.user_id_field,
            idle_timeout=config.idle_timeout,
            absolute_timeout=config.absolute_timeout,
            owner=(config.client_id, config.scope),
            runtime=runtime,
        )
        grants = GrantRecords(store, self.sessions.sealer, config.absolute_timeout)
        self.refresher = TokenRefresher(runtime, self.sessions, grants, oauth, config.on_refresh)
        self.gate = Gate(config, self.sessions, self.refresher)
        connections = LoopConnections if runtime.is_async else ThreadConnections
        self.connections: Any = connections(runtime, self.gate.is_alive)
        self._api_url = lambda api_base: provider.api_url(api_base or config.base_url)
        self._media_origin = lambda host, port: provider.media_origin(host, port, config.base_url)
        self.client_of: Callable[[Session], Any] = self._first_client_of
        self._knows_of_outer = False  # True once there was another middleware around this one
        # The code that made a store object opens it. In memory there is nothing to open.
        self._opens_store = isinstance(config.store, str) and not self.sessions.is_at_hand

    def _first_client_of(self, session: Session) -> Any:
        """Return a client for a session, after making what makes the clients."""
        from . import client  # which loads httpx2

        is_async = self.runtime.is_async
        factory = client.ClientFactory(
            client.AsyncCMClient if is_async else client.CMClient,
            self.refresher,
            self.transport,
            self._api_url,
            self._media_origin,
        )
        self.client_of = factory.lazy
        return self.client_of(session)

    def transport(self) -> Any:
        """Return the connection pool of the clients, timed if an SDK of OpenTelemetry is there."""
        pool = self.runtime.transport()
        # A span that no SDK records would still cost a twentieth of a call.
        if self._telemetry is None or not self._telemetry.active:
            return pool
        return telemetry.TimedTransport(pool, self._telemetry)

    def warn_of_store(self) -> None:
        """Log what is wrong with the store, as far as it is known without a connection."""
        check = getattr(self.sessions.store, "check", None)
        if check is not None:
            try:
                check()
            except StoreError as error:
                self._opens_store = False  # one warning is enough
                log("store_unusable", reason=error)

    def note_outer(self, session: object) -> None:
        """Warn once if a request that is refused here has a session of a middleware around."""
        if session is not None and not self._knows_of_outer:
            self._knows_of_outer = True
            log("two_middlewares")

    def start_beside(self) -> None:
        """Begin, beside, to load what the first login needs, and to open the store.

        Encryption is not among it: the redirect of the first login, or the first session, loads it,
        and a process that has neither does not need its 8 MB.
        """
        self.runtime.loading.begin(self.oauth.load, self.runtime.load_http, _load_clients)
        if self._opens_store:
            self.runtime.single_flight.start("open the store", self._open_store)

    async def _open_store(self) -> None:
        try:
            await self.sessions.store.ping()
        except StoreError as error:
            log("store_unusable", reason=error)


def _load_clients() -> None:
    from . import client  # noqa: F401 - loads it


def make_oauth_client(
    config: CMAuthConfig, runtime: Runtime, timed: Timed = nullcontext
) -> OAuthClient:
    """Return a client of the OAuth server that the options name."""
    return OAuthClient(
        find_provider(config.provider),
        runtime,
        base_url=config.base_url,
        client_id=config.client_id,
        client_secret=config.client_secret,
        scope=config.scope,
        refresh_leeway=config.refresh_leeway,
        timed=timed,
    )


class AuthEngine:
    """Everything that a middleware needs, made once and shared.

    Each middleware makes an engine from its options. Make one yourself and pass it as ``engine=``
    to share it, or to call its methods from elsewhere. One engine serves ASGI and WSGI
    applications at once.

    Await its methods where an event loop runs; call them without ``await`` where none runs. The
    methods of an engine that only a WSGI middleware uses are never awaited.

    Args:
        config: the options; keywords override them, the environment gives the others.
        transport: sends the HTTP requests to CameraManager, in place of the engine's own
            connection pool: a transport with a private CA or a proxy, or an in-process simulator.
            It is an `httpx2.AsyncBaseTransport` for ASGI, an `httpx2.BaseTransport` for WSGI. Its
            limits also hold for logins and refreshes.
        clock: returns the time in epoch seconds.
        options: the options of `CMAuthConfig`.

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
        self._cache_memory = CacheMemory(self.config.cache_size)
        self._async: Services | None = None
        self._threads: Services | None = None
        self._making = threading.Lock()  # threads of an ASGI application may ask at once

    @classmethod
    def resolve(
        cls, engine: AuthEngine | None, config: CMAuthConfig | None, options: CMAuthOptions
    ) -> AuthEngine:
        """Return the engine that a middleware was given, or one made from its options."""
        if engine is None:
            return cls(config, **options)
        if config is not None or options:
            raise ConfigError("engine is given, which has its options: give no others")
        return engine

    # -- the two sides ---------------------------------------------------------------------

    @property
    def async_services(self) -> Services:
        """Return the parts that the ASGI middleware uses."""
        if self._async is None:
            if not self._has_transport("AsyncBaseTransport"):
                raise ConfigError("transport is for WSGI; ASGI needs an httpx2.AsyncBaseTransport")
            from .runtime.event_loops import EventLoopRuntime  # which loads asyncio and anyio

            self._async = self._make(EventLoopRuntime, self.store)
        return self._async

    @property
    def thread_services(self) -> Services:
        """Return the parts that the WSGI middleware uses; their methods block."""
        if self._threads is None:
            with self._making:
                if self._threads is None:
                    self._threads = self._make_for_threads()
        return self._threads

    def _make_for_threads(self) -> Services:
        if not self._has_transport("BaseTransport"):
            raise ConfigError(
                "transport is for event loops (httpx2.AsyncBaseTransport): WSGI applications and "
                "clients for threads need an httpx2.BaseTransport"
            )
        from .runtime.threads import ThreadRuntime  # a process mostly has one of both sides

        return self._make(ThreadRuntime, _for_threads(self.store))

    def _has_transport(self, kind: str) -> bool:
        """Return True if the transport is of a kind of httpx2's, or none was given."""
        if self._transport is None:
            return True
        import httpx2  # which is loaded, since a transport of it was given

        return isinstance(self._transport, getattr(httpx2, kind))

    def _make(self, kind: type[Runtime], store: SessionStore) -> Services:
        config = self.config
        runtime = kind(
            config.timeout,
            config.base_url,
            self._transport,
            self._clock,
            self._cache_memory,
            config.background,
        )
        services = Services(config, runtime, store)
        telemetry.watched_engines.add(self)
        return services

    def _run(self, step: Callable[[Services], Coroutine[Any, Any, Any]]) -> Any:
        only_threads = self._threads is not None and self._async is None
        if has_event_loop() and not only_threads:
            return step(self.async_services)
        return run_sync(step(self.thread_services))

    # -- for a handler, a script, an administrator -----------------------------------------

    @property
    def session_script_hash(self) -> str:
        """Return the hash of ``session.js``, for a Content-Security-Policy and ``integrity``.

        Each version of this package may have another.
        """
        return files.digest(files.SESSION_SCRIPT)

    def client(self, session: Session) -> AsyncCMClient:
        """Return a client for the user of a session; it costs nothing until it is used."""
        return cast("AsyncCMClient", self.async_services.client_of(session))

    def sync_client(self, session: Session) -> CMClient:
        """Return the same for threads."""
        return cast("CMClient", self.thread_services.client_of(session))

    async def client_for(self, handle: str) -> AsyncCMClient:
        """Return a client for a job outside of a request, by a handle from `Session.export`.

        It shares its tokens with the live session. Each call checks that the session still
        exists. Close it as any httpx2 client, or not at all: the connection pool is shared.

        Raises, and so does each call:
            SessionExpiredError: the user logged out, the session timed out, or the handle is not
                one of this application's: discard the handle.
            UnavailableError: the store or CameraManager is not available now: try again.
        """
        return self.client(await self.session_for(handle))

    def sync_client_for(self, handle: str) -> CMClient:
        """Return the same for threads."""
        return self.sync_client(self.sync_session_for(handle))

    async def session_for(self, handle: str) -> Session:
        """Return the session of a handle, outside of its request: for its user, for example.

        Its ``data`` cannot be changed, because nothing would save it.

        Raises:
            SessionExpiredError: as for `client_for`.
            UnavailableError: as for `client_for`.
        """
        return await _session_of(handle, self.async_services)

    def sync_session_for(self, handle: str) -> Session:
        """Return the same for threads."""
        return run_sync(_session_of(handle, self.thread_services))

    def logout(self, session: Session) -> Any:
        """Log a session out, here and at CameraManager."""
        return self._run(lambda services: services.gate.end(session))

    def users(self, email: str | None = None) -> Any:
        """List the users who logged in, or were active, within ``absolute_timeout``.

        Some may have no session any more. Sessions of releases before 0.2 are among them once
        their users were read anew (``revalidate``).

        Args:
            email: only users with this e-mail address, in upper or lower case.

        Returns:
            A list of CameraManager's ``userId``, as text.

        Raises:
            UnavailableError: the store fails, or cannot list sessions.
        """
        return self._run(lambda services: services.sessions.users(email))

    def sessions(self, user_id: str | int) -> Any:
        """List a user's sessions, the last used first, without decrypting them.

        Args:
            user_id: CameraManager's ``userId``.

        Returns:
            A list of `SessionInfo`.

        Raises:
            UnavailableError: the store fails, or cannot list sessions.
        """

        async def step(services: Services) -> list[SessionInfo]:
            return [info for _, info in await services.sessions.sessions_of(str(user_id))]

        return self._run(step)

    def logout_user(self, user_id: str | int) -> Any:
        """End all sessions of a user, everywhere.

        Their tokens cannot be revoked at CameraManager: only the user's cookies decrypt them. They
        stay encrypted in the store until their records expire.

        Args:
            user_id: CameraManager's ``userId``.

        Returns:
            The number of sessions that ended.

        Raises:
            UnavailableError: the store fails, or cannot list sessions.
        """
        return self._run(lambda services: services.sessions.delete_all(str(user_id)))

    def close(self) -> Any:
        """Wait for refreshes under way and close connections; sessions stay in the store."""

        telemetry.watched_engines.discard(self)

        async def step(services: Services) -> None:
            await services.runtime.close()
            await services.refresher.failovers.close()
            if isinstance(self.config.store, str):  # the code that made a store object closes it
                await services.sessions.store.close()

        closing, threads = self._run(step), self._threads
        if closing is None or threads is None:
            return closing

        async def close_both() -> None:
            import anyio.to_thread  # when first needed

            await closing
            await anyio.to_thread.run_sync(lambda: run_sync(step(threads)))

        return close_both()

    def __repr__(self) -> str:
        return f"<AuthEngine {self.config.base_url}>"


async def _session_of(handle: str, services: Services) -> Session:
    session = await services.sessions.open_handle(handle)
    await services.refresher.look_up(session)
    session.close()
    return session


def _for_threads(store: SessionStore) -> SessionStore:
    """Return the store or its twin for threads, whose methods block and never suspend.

    Raises:
        ConfigError: the store suspends and has no twin.
    """
    if isinstance(store, HasBlockingTwin):
        return store.blocking()
    try:
        run_sync(store.ping())
    except StoreError:  # it is not available now, but it does not suspend
        return store
    except RuntimeError:
        raise ConfigError(
            "store is for event loops: for WSGI give it a method blocking(), which returns a "
            "store whose methods block and never suspend"
        ) from None
    return store
