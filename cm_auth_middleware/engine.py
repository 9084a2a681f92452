"""The engine: one application's configuration, store and connections, put together once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .client import AsyncCMClient
from .config import CMAuthConfig
from .errors import ConfigError
from .flow import Flow
from .oauth import CameraManager
from .ports import AsyncPorts
from .stores import open_store
from .tokens import SessionVault, TokenKeeper

if TYPE_CHECKING:
    import httpx2

    from .session import Session


class AuthEngine:
    """Everything that a middleware needs, made once and shared.

    Each middleware makes its own from its options; make one yourself and pass it as
    ``engine=`` to share it, or to call it from elsewhere.

    Args:
        config: the options; keywords override them, the environment fills the rest.
        transport: speaks HTTP to CameraManager instead of a connection pool of the engine's
            own: a transport with a private CA or a proxy, or an in-process simulator.
        clock: epoch seconds.
        options: as in `CMAuthConfig`.

    Raises:
        ConfigError: an option is missing or wrong.
    """

    def __init__(
        self,
        config: CMAuthConfig | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
        **options: Any,
    ) -> None:
        self.config = CMAuthConfig.build(config, options)
        self.store = open_store(self.config.store)
        self.ports = AsyncPorts(self.config, transport, clock)
        self.vault = SessionVault(self.config, self.ports, self.store)
        self.server = CameraManager(self.config, self.ports)
        self.keeper = TokenKeeper(self.config, self.ports, self.vault, self.server)
        self.flow = Flow(self.config, self)

    @classmethod
    def resolve(
        cls, engine: AuthEngine | None, config: CMAuthConfig | None, options: dict[str, Any]
    ) -> AuthEngine:
        """The engine that a middleware was given, or one made of its options."""
        if engine is None:
            return cls(config, **options)
        if config is not None or options:
            raise ConfigError("engine is given: its options are its own, so give no others")
        return engine

    def client(self, session: Session) -> AsyncCMClient:
        """A ready client for the user of a session; it costs nothing until it is used."""
        return AsyncCMClient(self, session)

    async def logout(self, session: Session) -> None:
        """Log a session out, here and at CameraManager."""
        await self.flow.end(session)

    async def close(self) -> None:
        """Finish refreshes under way and close connections; sessions stay in the store."""
        await self.ports.close()

    def __repr__(self) -> str:
        return f"<AuthEngine {self.config.base_url}>"
