"""Keeping tokens fresh: one refresh per expiry, shared by all sessions that hold the same grant."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .config import CMAuthConfig, seconds
from .errors import OAuthError, OperatorError, SessionExpiredError, StoreError, UnavailableError
from .events import log
from .oauth import GRANT_REFUSED, CameraManager
from .session import Record, Session, Tokens
from .vault import SessionVault

if TYPE_CHECKING:
    from .ports import Ports

_CHAIN = 64  # rotations of a refresh token that a sleeping session can catch up with at once
_POLL = 0.025  # seconds between looks at a refresh that another process makes
_LEASE_MARGIN = 5.0  # seconds that a lease is longer than a token call may take
_FIRST_PAUSE = 0.25  # seconds until a second attempt, which requests wait for
_PAUSE = 1.0  # seconds between attempts at a server that stays down
_GONE_TTL = 600.0  # seconds that a logout is remembered for refreshes under way


class Refreshed(NamedTuple):
    """What a refresh came to: the tokens, and whether CameraManager gave them just now."""

    tokens: Tokens
    is_new: bool


class TokenKeeper:
    """Refreshes tokens, once for each expiry.

    The newest tokens of a grant are kept in a record of their own, found by a hash of the
    refresh token and sealed with a key derived from it: whoever holds the refresh token finds
    them, and opens nobody's session. A rotated refresh token leaves a chain of such records.
    """

    def __init__(
        self, config: CMAuthConfig, ports: Ports, vault: SessionVault, server: CameraManager
    ) -> None:
        self._config = config
        self._ports = ports
        self._vault = vault
        self._server = server
        self._closed_until = 0.0
        self._failures = 0

    # -- for a session ---------------------------------------------------------------------

    async def freshen(self, session: Session) -> None:
        """Renew the access token if it is due: beside the request while the old one lives.

        Raises: as `refresh`.
        """
        tokens, now = session.record.tokens, self._ports.clock()
        if now < tokens.refresh_at:
            return
        if now < tokens.expires_at:
            if tokens.refresh_token is not None and now >= self._closed_until:
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

    async def _refresh_beside(self, session: Session) -> None:
        # Logged where it happened; the next request meets it with an answer of its own.
        with suppress(SessionExpiredError, UnavailableError):
            await self.refresh(session, session.record.tokens.access_token)

    async def _refresh(self, session: Session, refused: str) -> Refreshed:
        """Refresh for all requests of one session in this process."""
        view = Session(session.key, session.half_key, session.record, self._vault.sealer)
        for _ in range(_CHAIN):
            if not await self._vault.reread(view):
                raise SessionExpiredError
            held = view.record.tokens
            if held.access_token != refused:
                return Refreshed(held, is_new=False)
            try:
                if held.refresh_token is None:
                    raise SessionExpiredError
                refreshed: Refreshed = await self._ports.single_flight(
                    _grant_name(held.refresh_token), partial(self._renew, held)
                )
            except SessionExpiredError:
                if await self._vault.reread(view) and view.record.tokens != held:
                    continue
                await self._vault.remove(view)
                log("session_ended", session=view.reference)
                raise
            await self._adopt(view, held, refreshed.tokens)
            return refreshed
        raise UnavailableError("CameraManager refuses every token it gives")

    async def _adopt(self, session: Session, held: Tokens, fresh: Tokens) -> None:
        """Write newer tokens into a session, unless it was logged out, or is newer by itself."""

        is_first = False

        def change(record: Record) -> Record:
            nonlocal is_first
            is_first = record.tokens == held
            return record.with_tokens(fresh) if is_first else record

        if not await self._vault.update(session, change):
            if held.refresh_token is not None and await self._gone(held.refresh_token):
                await self.revoke(fresh.access_token)
            raise SessionExpiredError
        if is_first:
            await self._ports.call_hook("on_refresh", self._config.on_refresh, session)

    # -- logins and logouts ----------------------------------------------------------------

    async def welcome(self, tokens: Tokens) -> None:
        """Note a login: CameraManager may hand out a grant again that a logout had named."""
        if tokens.refresh_token is not None:
            name = _grant_name(tokens.refresh_token)
            await self._vault.store.delete(f"gone.{name}")
            if await self._vault.store.get(name) is not None:
                await self._keep(tokens.refresh_token, tokens)

    async def forget(self, tokens: Tokens) -> None:
        """Note a logout: a refresh under way revokes what it brings home."""
        if tokens.refresh_token is not None:
            name = _grant_name(tokens.refresh_token)
            mark = secrets.token_bytes(8)
            await self._vault.store.put(f"gone.{name}", mark, _GONE_TTL)
            await self._vault.store.delete(name)

    async def revoke(self, access_token: str) -> None:
        """Delete the tokens at CameraManager, if it can be reached."""
        try:
            if not await self._server.revoke(access_token):
                log("revoke_failed", reason="CameraManager refused it")
        except UnavailableError as error:
            log("revoke_failed", reason=error)

    async def _gone(self, refresh_token: str) -> bytes | None:
        return await self._vault.store.get(f"gone.{_grant_name(refresh_token)}")

    # -- for a grant -----------------------------------------------------------------------

    async def _renew(self, held: Tokens) -> Refreshed:
        """Find newer tokens of this grant, or fetch them; runs once per grant and process."""
        assert held.refresh_token is not None  # noqa: S101 - for the type
        store, name = self._vault.store, f"lease.{_grant_name(held.refresh_token)}"
        owner, lease = secrets.token_hex(16), self._ports.timeout + _LEASE_MARGIN
        give_up_at = self._ports.clock() + 2 * lease
        while True:
            kept = await self._kept(held.refresh_token)
            if kept is not None and kept.access_token != held.access_token:
                return Refreshed(kept, is_new=False)
            await self._wait_for_server()
            if await store.acquire(name, owner, lease):
                break
            if self._ports.clock() > give_up_at:
                raise UnavailableError("another process holds the refresh for too long")
            await self._ports.sleep(_POLL)

        async def extend() -> None:
            with suppress(StoreError):  # asked again in a moment, and before the tokens are kept
                await store.acquire(name, owner, lease)

        async def renew() -> Refreshed:
            return await self._renew_alone(held, name, owner, lease)

        try:
            refreshed: Refreshed = await self._ports.beside(extend, lease / 3, renew)
            return refreshed
        finally:
            with suppress(StoreError):  # it runs out by itself
                await store.release(name, owner)

    async def _renew_alone(self, held: Tokens, name: str, owner: str, lease: float) -> Refreshed:
        """Renew a grant while holding its lease."""
        assert held.refresh_token is not None  # noqa: S101 - for the type
        kept = await self._kept(held.refresh_token)
        if kept is not None and kept.access_token != held.access_token:
            return Refreshed(kept, is_new=False)
        gone = await self._gone(held.refresh_token)
        try:
            fresh = await self._fetch(kept or held)
        except SessionExpiredError:
            kept = await self._kept(held.refresh_token)
            if kept is None or kept.access_token == held.access_token:
                raise
            return Refreshed(kept, is_new=False)
        if await self._gone(held.refresh_token) != gone:
            await self.revoke(fresh.access_token)
            raise SessionExpiredError
        if not await self._vault.store.acquire(name, owner, lease):
            # This process was held up for longer than its lease, and another one took over.
            kept = await self._kept(held.refresh_token)
            if kept is not None and kept.access_token != held.access_token:
                return Refreshed(kept, is_new=False)
        await self._keep(held.refresh_token, fresh)
        return Refreshed(fresh, is_new=True)

    async def _fetch(self, tokens: Tokens) -> Tokens:
        assert tokens.refresh_token is not None  # noqa: S101 - for the type
        try:
            fresh = await self._server.refresh(tokens.refresh_token)
        except OAuthError as error:
            if error.error in GRANT_REFUSED:
                self._server_answers()
                log("refresh_refused", error=error.error)
                raise SessionExpiredError from None
            self._server_fails(_PAUSE)
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
            log("refresh_failed", reason=error)
            raise UnavailableError(f"CameraManager refused the refresh: {error.error}") from None
        except UnavailableError as error:
            log("refresh_failed", reason=error)
            self._server_fails(error.retry_after)
            raise
        self._server_answers()
        log("refreshed", expires_in=int(fresh.expires_at - self._ports.clock()))
        return fresh

    # -- the newest tokens of a grant ------------------------------------------------------

    async def _kept(self, refresh_token: str) -> Tokens | None:
        """The newest tokens of a grant, following rotated refresh tokens."""
        newest: Tokens | None = None
        for _ in range(_CHAIN):
            name, half_key = _grant_name(refresh_token), _grant_key(refresh_token)
            sealed = await self._vault.store.get(name)
            tokens = self._vault.sealer.open_grant(name, half_key, sealed) if sealed else None
            if tokens is None:
                break
            newest = tokens
            if tokens.refresh_token is None or tokens.refresh_token == refresh_token:
                break
            refresh_token = tokens.refresh_token
        return newest

    async def _keep(self, refresh_token: str, tokens: Tokens) -> None:
        name = _grant_name(refresh_token)
        sealed = self._vault.sealer.seal_grant(name, _grant_key(refresh_token), tokens)
        await self._vault.store.put(name, sealed, seconds(self._config.absolute_timeout))

    # -- a server that is down -------------------------------------------------------------

    async def _wait_for_server(self) -> None:
        """Let a server that failed be: wait for a moment, or fail at once.

        Only the first failure is worth a wait; then it is down, and requests shall not pile up.
        """
        left = self._closed_until - self._ports.clock()
        if left > _FIRST_PAUSE:
            raise UnavailableError("CameraManager is not answering", retry_after=left)
        if left > 0:
            await self._ports.sleep(left)

    def _server_fails(self, retry_after: float) -> None:
        self._failures += 1
        asked = retry_after > _PAUSE
        pause = retry_after if asked or self._failures > 1 else _FIRST_PAUSE
        self._closed_until = self._ports.clock() + pause

    def _server_answers(self) -> None:
        self._failures, self._closed_until = 0, 0.0


def _grant_name(refresh_token: str) -> str:
    return "grant." + hashlib.sha256(b"cm_auth.grant.name:" + refresh_token.encode()).hexdigest()


def _grant_key(refresh_token: str) -> bytes:
    return hashlib.sha256(b"cm_auth.grant.key:" + refresh_token.encode()).digest()
