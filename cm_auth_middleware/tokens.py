"""Keeping tokens fresh: one refresh per expiry, shared by all sessions that hold the same grant."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from .config import CMAuthConfig
from .errors import OAuthError, SessionExpiredError, StoreError, UnavailableError
from .events import log
from .grants import Grants
from .oauth import GRANT_REFUSED, CameraManager
from .renewal import Refreshed, Renewal, revoke
from .session import Record, Session, Tokens
from .vault import SessionVault

if TYPE_CHECKING:
    from .ports import Ports
    from .revalidation import Revalidation

_GRACE = 60.0  # seconds that a session counts as alive while the store cannot be asked
_ROUNDS = 64  # changes of a session's tokens while they are being renewed


class TokenKeeper:
    """Keeps the tokens of sessions fresh, with one refresh for each expiry (see `Renewal`)."""

    def __init__(
        self, config: CMAuthConfig, ports: Ports, vault: SessionVault, server: CameraManager
    ) -> None:
        self._config = config
        self._ports = ports
        self._vault = vault
        self._server = server
        self._grants = Grants(config, vault)
        self._renewal = Renewal(ports, vault.store, self._grants, server)
        self.revalidation: Revalidation | None = None

    # -- for a session ---------------------------------------------------------------------

    def is_due(self, session: Session) -> bool:
        """Return True if `freshen` has something to do before a call."""
        return (
            session.ended
            or self._ports.clock() >= session.record.tokens.refresh_at
            or self._vault.is_stale(session)
        )

    async def freshen(self, session: Session) -> None:
        """Renew the access token if it is due: beside the request while the old one lives.

        A handler may keep its session, and the client: whether it is still there is looked up
        every 30 s.

        Raises: as `refresh`.
        """
        await self.look_up(session)
        await self.renew_in_time(session)
        if self.revalidation is not None:
            self.revalidation.start_if_due(session)

    async def look_up(self, session: Session) -> None:
        """See whether a session is still there, if the store was not asked lately.

        Raises:
            SessionExpiredError: it is not.
            UnavailableError: the store cannot be asked, for longer than a moment.
        """
        if session.ended:
            raise SessionExpiredError
        if not self._vault.is_stale(session):
            return
        try:
            is_there = await self._vault.reread(session)
        except StoreError:
            # A short outage is nobody's logout; a longer one may hide one.
            if self._ports.clock() - session.checked_at < _GRACE:
                return
            raise
        if not is_there:
            session.ended = True
            raise SessionExpiredError

    async def renew_in_time(self, session: Session) -> None:
        """Renew the access token if that is due, beside the request while the old one lives."""
        tokens = session.record.tokens
        if self._ports.clock() < tokens.refresh_at:
            return
        if self._ports.clock() < tokens.expires_at:
            held = tokens.refresh_token
            if held is not None and not self._renewal.is_closed(held):
                self._ports.start_flight(
                    f"soon {session.key}", partial(self._refresh_beside, session)
                )
            return
        await self.refresh(session, tokens.access_token)

    async def refresh(self, session: Session, refused: str) -> bool:
        """Give the session another access token than the one that is `refused`, or expired.

        Returns:
            Whether CameraManager gave it just now; else somebody else had renewed it.

        Raises:
            SessionExpiredError: the grant is over; the session was removed.
            UnavailableError: CameraManager or the store cannot be asked; nothing was lost.
        """
        if session.ended:
            raise SessionExpiredError
        if session.record.tokens.access_token != refused:
            return False
        work = partial(self._refresh, session, refused)
        try:
            refreshed: Refreshed = await self._ports.single_flight(
                f"session {session.key} {hash(refused)}", work
            )
        except SessionExpiredError:
            session.ended = True
            raise
        session.record = session.record.with_tokens(refreshed.tokens)
        return refreshed.is_new

    async def catch_up(self, session: Session, refused: str) -> bool:
        """Take over newer tokens that somebody else brought home meanwhile; ask nobody for any."""
        view = self._view(session)
        if not await self._vault.reread(view):
            return False
        tokens = view.record.tokens
        if tokens.access_token == refused and tokens.refresh_token is not None:
            tokens = await self._grants.newest(tokens.refresh_token) or tokens
        session.record = session.record.with_tokens(tokens)
        return tokens.access_token != refused

    async def _refresh_beside(self, session: Session) -> None:
        # Logged where it happened; the next request meets it with an answer of its own.
        with suppress(SessionExpiredError, UnavailableError):
            await self.refresh(session, session.record.tokens.access_token)

    async def _refresh(self, session: Session, refused: str) -> Refreshed:
        """Refresh for all requests of one session in this process."""
        view = self._view(session)
        for _ in range(_ROUNDS):
            if not await self._vault.reread(view):
                raise SessionExpiredError
            held = view.record.tokens
            if held.access_token != refused:
                return Refreshed(held, is_new=False)
            try:
                refreshed = await self._renewal.newer(held)
            except SessionExpiredError:
                if await self._vault.reread(view) and view.record.tokens != held:
                    continue
                await self._vault.remove(view)
                log("session_ended", session=view.reference)
                raise
            return await self._adopt(view, held, refreshed)
        raise UnavailableError("CameraManager refuses every token it gives")

    async def _adopt(self, session: Session, held: Tokens, refreshed: Refreshed) -> Refreshed:
        """Write newer tokens into a session, unless it was logged out, or is newer by itself."""

        is_first = False

        def change(record: Record) -> Record:
            nonlocal is_first
            is_first = record.tokens == held
            return record.with_tokens(refreshed.tokens) if is_first else record

        if not await self._vault.update(session, change):
            if await self._was_logged_out(session, held):
                await self.revoke(refreshed.tokens.access_token)
            raise SessionExpiredError
        if not is_first:
            return Refreshed(session.record.tokens, is_new=False)
        await self._ports.call_hook("on_refresh", self._config.on_refresh, session)
        if self._config.revalidate is None and self.revalidation is not None:
            self.revalidation.start(session)
        return refreshed

    async def _was_logged_out(self, session: Session, held: Tokens) -> bool:
        """Whether a session that is no more was logged out, and not replaced or timed out."""
        if await self._vault.was_ended(session.key):
            return True
        return held.refresh_token is not None and (
            (await self._grants.marks(held.refresh_token)).gone is not None
        )

    def _view(self, session: Session) -> Session:
        """The same session, to look into the store with while a request uses it."""
        return Session(session.key, session.half_key, session.record, self._vault.sealer)

    # -- logins and logouts ----------------------------------------------------------------

    async def welcome(self, tokens: Tokens) -> None:
        """Note a login: CameraManager may hand out a grant again that is known here."""
        await self._grants.welcome(tokens)

    async def forget(self, tokens: Tokens) -> None:
        """Note a logout: a refresh under way revokes what it brings home."""
        await self._grants.forget(tokens)

    async def end(self, tokens: Tokens) -> None:
        """End a grant at CameraManager, if it can be reached.

        The tokens may be old: those that another session brought home are the ones that count.
        """
        try:
            newest = await self._grants.drop(tokens)
            if await self._server.revoke(newest.access_token):
                return
            # Only a living access token ends a grant, and this one has expired.
            if newest.refresh_token is not None:
                fresh = await self._server.refresh(newest.refresh_token)
                await self.revoke(fresh.access_token)
        except OAuthError as error:
            if error.error not in GRANT_REFUSED:  # else it had ended already
                log("revoke_failed", reason=error)
        except UnavailableError as error:
            log("revoke_failed", reason=error)

    async def revoke(self, access_token: str) -> None:
        """Delete the tokens at CameraManager, if it can be reached."""
        await revoke(self._server, access_token)
