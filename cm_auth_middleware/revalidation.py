"""Reads users anew while they are logged in, and ends the sessions of those who may not stay."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import CMAuthError, TokenRefusedError
from .events import log
from .memo import remember
from .session import Session, dumps

if TYPE_CHECKING:
    from .allow import AllowRule
    from .oauth import CameraManager
    from .ports import Ports
    from .vault import SessionVault

_AT_ONCE = 4  # users that a process reads anew at a time: requests come first
_AGAIN = 60.0  # seconds until an attempt that failed is repeated
_LEASE = "user."


class Revalidation:
    """Reads ``users/self`` anew, beside requests, when what a session knows of it is old.

    ``session.user`` follows, and the application's rule is asked again. If it says no, the session
    ends as a logout ends it. While CameraManager cannot be reached nothing changes.

    Args:
        every: seconds after which it is old; None for never by itself.
        end: logs a session out.
        refresh: gives a session another access token than the one that is refused.
    """

    def __init__(
        self,
        every: float | None,
        ports: Ports,
        vault: SessionVault,
        server: CameraManager,
        rule: AllowRule,
        end: Callable[[Session], Awaitable[None]],
        refresh: Callable[[Session, str], Awaitable[Any]],
    ) -> None:
        self.every = float("inf") if every is None else every
        self._ports = ports
        self._vault = vault
        self._server = server
        self._rule = rule
        self._end = end
        self._refresh = refresh
        self._tried_at: dict[str, float] = {}
        self._under_way = 0

    def start_if_due(self, session: Session) -> None:
        """Read the user of a session anew, beside what goes on, if that is due."""
        if self._ports.clock() - session.record.user_read_at >= self.every:
            self.start(session)

    async def run_if_due(self, session: Session) -> bool:
        """Read the user of a session anew, if that is due, and wait for it; return True then."""
        is_due = self._ports.clock() - session.record.user_read_at >= self.every
        if is_due and self._take(session):
            await self._review(self._own(session))
            return True
        return False

    def start(self, session: Session) -> None:
        """Read the user of a session anew, beside what goes on."""
        if self._take(session):
            own = self._own(session)
            self._ports.start_flight(f"user {session.key}", partial(self._review, own))

    def _take(self, session: Session) -> bool:
        """Return True if it is this caller who reads, and note that it does."""
        now = self._ports.clock()
        if self._under_way >= _AT_ONCE or 0 <= now - self._tried_at.get(session.key, 0) < _AGAIN:
            return False
        remember(self._tried_at, session.key, now)
        return True

    def _own(self, session: Session) -> Session:
        """Return another view of the same session: a handler may be using this one."""
        return Session(session.key, session.half_key, session.record, self._vault.sealer)

    async def _review(self, session: Session) -> None:
        self._under_way += 1
        try:
            # One process does it; the others find the new record.
            lease, owner = _LEASE + session.key, secrets.token_hex(8)
            if await self._vault.store.acquire(lease, owner, 2 * self._ports.timeout):
                await self._read_anew(session)
                await self._vault.store.release(lease, owner)
        except CMAuthError as error:
            log("revalidation_failed", session=session.reference, reason=error)
        finally:
            self._under_way -= 1

    async def _read(self, session: Session) -> dict[str, Any]:
        """Read the user; with another access token, if CameraManager refuses this one.

        Raises:
            SessionExpiredError: it refuses the refresh, too, and the session is over.
            UnavailableError: it cannot be asked.
        """
        refused = session.record.tokens.access_token
        try:
            return await self._server.user(refused)
        except TokenRefusedError:
            await self._refresh(session, refused)
        return await self._server.user(session.record.tokens.access_token)

    async def _read_anew(self, session: Session) -> None:
        user = await self._read(session)
        try:
            is_allowed = await self._rule.allows(dict(user))
        except Exception:
            log("allow_failed", exc_info=True)
            return  # an exception is no answer: the next attempt is soon
        if not is_allowed:
            await self._vault.mark_denied(session)
            log("session_denied", session=session.reference)
            await self._end(session)
            return
        text, now = dumps(user), self._ports.clock()
        if await self._vault.update(session, lambda record: record.with_user(text, now)):
            self._rule.note(session, is_allowed=True)
