"""Reads users anew while they are logged in, and ends sessions that are no longer allowed."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import CMAuthError, TokenRefusedError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..sessions.record import dumps
from ..sessions.session import Session

if TYPE_CHECKING:
    from ..sessions.manager import SessionManager
    from ..tokens.refresh import TokenRefresher
    from .allow import AllowRule

_AT_ONCE = 4  # users that a process reads anew at a time: requests come first
_AGAIN = 60.0  # seconds until an attempt that failed is repeated
_LEASE = "user."


class Revalidation:
    """Reads ``users/self`` anew, beside requests, when a session's copy of it is old.

    ``session.user`` is updated, and the application's rule is asked again. If it says no, the
    session ends as a logout ends it. While CameraManager cannot be reached nothing changes.

    Args:
        every: seconds after which a copy is old; None for never by itself.
        end: logs a session out.
    """

    def __init__(
        self,
        every: float | None,
        sessions: SessionManager,
        refresher: TokenRefresher,
        rule: AllowRule,
        end: Callable[[Session], Awaitable[None]],
    ) -> None:
        self.every = float("inf") if every is None else every
        self._runtime = refresher.runtime
        self._sessions = sessions
        self._refresher = refresher
        self._rule = rule
        self.admits = rule.admits
        self._end = end
        self._tried_at: BoundedCache[str, float] = BoundedCache(memory=self._runtime.cache_memory)
        self._under_way = 0

    def is_due(self, session: Session) -> bool:
        """Return True if the copy of the user is old."""
        return self._runtime.clock() - session.record.user_read_at >= self.every

    async def start_if_due(self, session: Session) -> None:
        """Read the user of a session anew, beside the request, if that is due."""
        if self.is_due(session):
            await self.start(session)

    async def run_if_due(self, session: Session) -> bool:
        """Read the user of a session anew, if that is due, and wait for it; return True then."""
        if not self.is_due(session) or not self._take(session):
            return False
        await self._review(session)
        return True

    async def start(self, session: Session) -> None:
        """Read the user of a session anew, beside the request."""
        if self._take(session):
            work = partial(self._review, session)
            await self._runtime.run_beside(f"user {session.record_id}", work)

    def _take(self, session: Session) -> bool:
        """Return True if this caller is to read the user, and note that it does."""
        now = self._runtime.clock()
        tried_at = self._tried_at.get(session.record_id, 0)
        if self._under_way >= _AT_ONCE or 0 <= now - tried_at < _AGAIN:
            return False
        self._tried_at[session.record_id] = now
        return True

    async def _review(self, session: Session) -> None:
        # Another view of the same session: a handler may be using this one.
        session = session.copy()
        self._under_way += 1
        try:
            # One process does it; the others find the new record.
            lease, owner = _LEASE + session.record_id, secrets.token_hex(8)
            if await self._sessions.store.acquire(lease, owner, 2 * self._runtime.timeout):
                await self._read_anew(session)
                await self._sessions.store.release(lease, owner)
        except CMAuthError as error:
            log("revalidation_failed", session=session.log_id, reason=error)
        finally:
            self._under_way -= 1

    async def _read(self, session: Session) -> dict[str, Any]:
        """Read the user; with another access token, if CameraManager refuses this one.

        Raises:
            SessionExpiredError: it refuses the refresh, too, and the session is over.
            UnavailableError: it cannot be asked.
        """
        refused, user = session.record.tokens, self._refresher.oauth.user
        try:
            return await user(refused.access_token, refused.api_base)
        except TokenRefusedError:
            await self._refresher.replace(session, refused.access_token)
        tokens = session.record.tokens
        return await user(tokens.access_token, tokens.api_base)

    async def _read_anew(self, session: Session) -> None:
        user = await self._read(session)
        is_allowed = await self._rule.allows(dict(user))
        if is_allowed is None:
            return  # the rule did not say no; the next attempt is soon
        if not is_allowed:
            await self._sessions.mark_denied(session)
            log("session_denied", session=session.log_id)
            self._sessions.audit("session_denied", session)
            await self._end(session)
            return
        text, now = dumps(user), self._runtime.clock()
        if await self._sessions.update(
            session, lambda record: replace(record, user=text, user_read_at=now)
        ):
            self._rule.note(session, is_allowed=True)
            await self._sessions.list_user(session.record)  # whose address may be another now
