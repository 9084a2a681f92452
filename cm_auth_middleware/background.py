"""Sessions by their handles: for jobs that act for a user outside any request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from .errors import SessionExpiredError

if TYPE_CHECKING:
    from .session import Session
    from .tokens import TokenKeeper
    from .vault import SessionVault


async def open_handle(vault: SessionVault, handle: str) -> Session:
    """Return the live session of a handle.

    Raises:
        SessionExpiredError: it is over, or the handle is none of this application's.
        UnavailableError: the store cannot be asked.
    """
    opened = vault.sealer.open_handle(handle)
    session = None if opened is None else await vault.peek(*opened)
    if session is None:
        raise SessionExpiredError("the session of this handle is over; the user has to log in")
    return session


class HandleKeeper:
    """Keeps the tokens of a session that a handle opened fresh, as long as the session lives.

    A request is short and its middleware has just seen the session. A job may run for days, so
    each of its calls looks again: it ends with the session, not with the access token.
    """

    def __init__(
        self,
        vault: SessionVault,
        keeper: TokenKeeper,
        admits: Callable[[Session], Awaitable[bool]],
    ) -> None:
        self._vault = vault
        self._keeper = keeper
        self._admits = admits

    def is_due(self, _: Session) -> bool:
        """Always: before each call, `freshen` looks whether the session is still there."""
        return True

    async def freshen(self, session: Session) -> None:
        """Renew the access token if it is due.

        Raises: as `TokenKeeper.refresh`.
        """
        await self.look_up(session)
        await self._keeper.renew_in_time(session)
        revalidation = self._keeper.revalidation
        # Not beside the call: a person waits for a page, and nobody for a job.
        if revalidation is not None and await revalidation.run_if_due(session):
            await self.look_up(session)

    async def look_up(self, session: Session) -> None:
        """See whether the session is still there, and its user one whom the application admits.

        Raises:
            SessionExpiredError: one of them is not so.
        """
        if session.ended or not await self._vault.reread(session):
            session.ended = True
            raise SessionExpiredError
        if not await self._admits(session):
            raise SessionExpiredError("this application does not admit the user of this session")

    async def refresh(self, session: Session, refused: str) -> bool:
        """As `TokenKeeper.refresh`: shared with the live session."""
        return await self._keeper.refresh(session, refused)

    async def catch_up(self, session: Session, refused: str) -> bool:
        """As `TokenKeeper.catch_up`."""
        return await self._keeper.catch_up(session, refused)
