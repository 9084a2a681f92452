"""Keeping tokens fresh: one refresh per expiry, shared by all sessions that hold the same grant."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from .config import CMAuthConfig, seconds
from .errors import OAuthError, OperatorError, SessionExpiredError, UnavailableError
from .oauth import GRANT_REFUSED, CameraManager
from .session import Record, Sealer, Session, Tokens

if TYPE_CHECKING:
    from .ports import AsyncPorts
    from .stores import SessionStore

log = logging.getLogger(__package__)

_CHAIN = 32  # rotations of a refresh token that a sleeping session can catch up with at once
_POLL = 0.05  # seconds between looks at a refresh that another process makes
_BACK_OFF = 1.0  # seconds between attempts at a server that is down
_GONE_TTL = 600.0  # seconds that a logout is remembered for refreshes under way


class SessionVault:
    """Sealed session records in a store: read, write, and change without losing a change."""

    def __init__(self, config: CMAuthConfig, ports: AsyncPorts, store: SessionStore) -> None:
        self._config = config
        self._ports = ports
        self.store = store
        self.sealer = Sealer(tuple(config.secret_key))

    async def read(self, key: str, seal_key: bytes) -> Session | None:
        """Return the live session of a ticket, or None."""
        sealed = await self.store.get(key)
        if sealed is None:
            return None
        record = self._open(key, seal_key, sealed)
        if record is None:
            log.warning("session_unreadable session=%s", key[:8])
            await self.store.delete(key)
            return None
        if self.ttl(record) <= 0:
            await self.store.delete(key)
            return None
        return Session(key, seal_key, record)

    async def create(self, key: str, seal_key: bytes, record: Record) -> Session:
        """Store a new session."""
        sealed = self.sealer.seal(key, seal_key, record.encode())
        await self.store.put(key, sealed, self.ttl(record))
        return Session(key, seal_key, record)

    async def update(self, session: Session, change: Callable[[Record], Record]) -> bool:
        """Apply `change` to the stored record; False if the session is not there any more."""
        while True:
            old = await self.store.get(session.key)
            record = self._open(session.key, session.seal_key, old) if old is not None else None
            if old is None or record is None:
                return False
            changed = change(record)
            new = self.sealer.seal(session.key, session.seal_key, changed.encode())
            if await self.store.replace(session.key, old, new, self.ttl(changed)):
                session.adopt(changed)
                return True

    async def remove(self, session: Session) -> Record:
        """Take the session out of the store; return its newest record."""
        sealed = await self.store.delete(session.key)
        record = self._open(session.key, session.seal_key, sealed) if sealed else None
        return record or session.record

    def ttl(self, record: Record) -> float:
        """Seconds that a record has left, of both timeouts."""
        now = self._ports.clock()
        idle = record.last_seen_at + seconds(self._config.idle_timeout) - now
        absolute = record.logged_in_at + seconds(self._config.absolute_timeout) - now
        return min(idle, absolute)

    def _open(self, key: str, seal_key: bytes, sealed: bytes) -> Record | None:
        plain = self.sealer.open(key, seal_key, sealed)
        return None if plain is None else Record.decode(plain)


class TokenKeeper:
    """Refreshes tokens, once for each expiry.

    The newest tokens of a grant are kept in a record of their own, found by a hash of the
    refresh token and sealed with a key derived from it: whoever holds the refresh token finds
    them, and opens nobody's session. A rotated refresh token leaves a chain of such records.
    """

    def __init__(
        self, config: CMAuthConfig, ports: AsyncPorts, vault: SessionVault, server: CameraManager
    ) -> None:
        self._config = config
        self._ports = ports
        self._vault = vault
        self._server = server
        self._closed_until = 0.0

    def refresh_soon(self, session: Session) -> None:
        """Start a refresh beside the request; the old access token serves meanwhile."""
        tokens = session.record.tokens
        if tokens.refresh_token is None or self._ports.clock() < self._closed_until:
            return

        async def refresh() -> None:
            # Logged where it happened; the next request meets it with an answer of its own.
            with suppress(SessionExpiredError, UnavailableError):
                await self.refresh(session, None)

        self._ports.start_flight(f"soon:{session.key}", refresh)

    async def refresh(self, session: Session, refused: str | None) -> None:
        """Give the session newer tokens than those that are `refused` (or about to expire).

        Raises:
            SessionExpiredError: the grant is over; the session was removed.
            UnavailableError: CameraManager or the store cannot be asked; nothing was lost.
        """
        for _ in range(_CHAIN):
            tokens = session.record.tokens
            now = self._ports.clock()
            if refused is not None and tokens.access_token != refused and tokens.refresh_at > now:
                return
            if tokens.refresh_token is None:
                if refused is None and tokens.expires_at > now:
                    return
                await self._end(session)
                raise SessionExpiredError
            try:
                fresh: Tokens = await self._ports.single_flight(
                    _grant_name(tokens.refresh_token), partial(self._renew, tokens, refused)
                )
            except SessionExpiredError:
                if await self._has_newer(session):
                    continue
                await self._end(session)
                raise
            if not await self._vault.update(session, partial(Record.with_tokens, tokens=fresh)):
                await self._after_logout(session, fresh)
                raise SessionExpiredError
            if self._config.on_refresh:
                await self._ports.call_hook(self._config.on_refresh, session)
            refused = refused or tokens.access_token
        raise UnavailableError("CameraManager refuses every token it gives")

    async def forget(self, tokens: Tokens) -> None:
        """Note a logout: a refresh under way revokes what it brings home."""
        if tokens.refresh_token is not None:
            name = _grant_name(tokens.refresh_token)
            await self._vault.store.put(f"gone.{name}", b"1", _GONE_TTL)
            await self._vault.store.delete(name)

    async def welcome(self, tokens: Tokens) -> None:
        """Note a login: CameraManager may hand out a grant again that a logout had named."""
        if tokens.refresh_token is not None:
            name = _grant_name(tokens.refresh_token)
            await self._vault.store.delete(f"gone.{name}")
            if await self._vault.store.get(name) is not None:
                await self._keep(tokens.refresh_token, tokens)

    async def _renew(self, held: Tokens, refused: str | None) -> Tokens:
        """Find newer tokens of this grant, or fetch them; runs once per grant and process."""
        assert held.refresh_token is not None  # noqa: S101 - for the type
        name, owner = _grant_name(held.refresh_token), secrets.token_hex(16)
        stale = {held.access_token, refused}
        lease = self._ports.timeout + 5.0  # longer than the token call, which `timeout` bounds
        deadline = self._ports.clock() + 2 * lease
        while True:
            kept = await self._kept(held.refresh_token)
            if kept is not None and kept.access_token not in stale:
                return kept
            if self._ports.clock() < self._closed_until:
                raise UnavailableError("CameraManager is not answering")
            if await self._vault.store.acquire(f"lease.{name}", owner, lease):
                break
            if self._ports.clock() > deadline:
                raise UnavailableError("another process holds the refresh for too long")
            await self._ports.sleep(_POLL)
        try:
            kept = await self._kept(held.refresh_token)
            if kept is not None and kept.access_token not in stale:
                return kept
            fresh = await self._fetch(kept or held)
            await self._keep(held.refresh_token, fresh)
            return fresh
        finally:
            await self._vault.store.release(f"lease.{name}", owner)

    async def _fetch(self, tokens: Tokens) -> Tokens:
        assert tokens.refresh_token is not None  # noqa: S101 - for the type
        try:
            fresh = await self._server.refresh(tokens.refresh_token)
        except OperatorError as error:
            log.error("api_key_refused error=%s: check client_id and client_secret", error.error)
            self._back_off(_BACK_OFF)
            raise UnavailableError("CameraManager refuses this application's API key") from None
        except OAuthError as error:
            if error.error in GRANT_REFUSED:
                log.info("refresh_refused error=%s", error.error)
                raise SessionExpiredError from None
            self._back_off(_BACK_OFF)
            raise UnavailableError(f"CameraManager refused the refresh: {error.error}") from None
        except UnavailableError as error:
            log.warning("refresh_failed reason=%s", error)
            self._back_off(error.retry_after)
            raise
        log.info("refreshed expires_in=%d", fresh.expires_at - self._ports.clock())
        return fresh

    async def _has_newer(self, session: Session) -> bool:
        """Whether the store meanwhile holds other tokens than those that were refused."""
        held = session.record.tokens
        there = await self._vault.update(session, lambda record: record)
        return there and session.record.tokens != held

    async def _end(self, session: Session) -> None:
        session.ended = True
        await self._vault.remove(session)
        log.info("session_ended session=%s", session.reference)

    async def _after_logout(self, session: Session, fresh: Tokens) -> None:
        session.ended = True
        old = session.record.tokens.refresh_token or ""
        if await self._vault.store.get(f"gone.{_grant_name(old)}") is None:
            return  # replaced by a new login, which may hold these very tokens
        try:
            await self._server.revoke(fresh.access_token)
        except UnavailableError as error:
            log.warning("revoke_failed reason=%s", error)

    async def _kept(self, refresh_token: str) -> Tokens | None:
        """The newest tokens of a grant, following rotated refresh tokens."""
        newest: Tokens | None = None
        for _ in range(_CHAIN):
            name, seal_key = _grant_name(refresh_token), _grant_key(refresh_token)
            sealed = await self._vault.store.get(name)
            plain = self._vault.sealer.open(name, seal_key, sealed) if sealed else None
            tokens = Tokens.decode(plain) if plain else None
            if tokens is None:
                break
            newest = tokens
            if tokens.refresh_token is None or tokens.refresh_token == refresh_token:
                break
            refresh_token = tokens.refresh_token
        return newest

    async def _keep(self, refresh_token: str, tokens: Tokens) -> None:
        name = _grant_name(refresh_token)
        sealed = self._vault.sealer.seal(name, _grant_key(refresh_token), tokens.encode())
        await self._vault.store.put(name, sealed, seconds(self._config.absolute_timeout))

    def _back_off(self, seconds: float) -> None:
        self._closed_until = self._ports.clock() + seconds


def _grant_name(refresh_token: str) -> str:
    return "grant." + hashlib.sha256(b"cm_auth.grant.name:" + refresh_token.encode()).hexdigest()


def _grant_key(refresh_token: str) -> bytes:
    return hashlib.sha256(b"cm_auth.grant.key:" + refresh_token.encode()).digest()
