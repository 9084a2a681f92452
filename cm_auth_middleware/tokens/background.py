"""Sessions by their handles: for jobs that act for a user outside any request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SessionExpiredError

if TYPE_CHECKING:
    from ..sessions.manager import SessionManager
    from ..sessions.session import Session
    from .refresh import TokenRefresher


class HandleRefresher:
    """Keeps the tokens of a session that a handle opened fresh, as long as the session lives.

    A request is short and its middleware has just seen the session. A job may run for days, so
    each of its calls looks again: it ends with the session, not with the access token.
    """

    def __init__(self, sessions: SessionManager, refresher: TokenRefresher) -> None:
        self._sessions = sessions
        self._refresher = refresher

    def is_due(self, _: Session) -> bool:
        """Always: before each call, `ensure_fresh` looks whether the session is still there."""
        return True

    async def ensure_fresh(self, session: Session) -> None:
        """Renew the access token if it is due.

        Raises: as `TokenRefresher.replace`.
        """
        if session.ended or not await self._sessions.reload(session):
            session.ended = True
            raise SessionExpiredError
        await self._refresher.ensure_fresh(session)

    async def replace(self, session: Session, refused: str) -> bool:
        """As `TokenRefresher.replace`: shared with the live session."""
        return await self._refresher.replace(session, refused)

    async def reload(self, session: Session, refused: str) -> bool:
        """As `TokenRefresher.reload`."""
        return await self._refresher.reload(session, refused)
