"""What the store knows of each grant: its newest tokens, its last failure, its logout."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, NamedTuple

from ..sessions.record import Tokens, dumps

if TYPE_CHECKING:
    from ..sessions.encryption import Sealer
    from ..stores import SessionStore

_CHAIN = 4096  # rotations of a refresh token that a sleeping session can catch up with at once
_LOGOUT_TTL = 600.0  # seconds that a logout is remembered for refreshes under way
_FAILURE_TTL = 60.0  # seconds that a failure is remembered of a grant without newer tokens
UNAVAILABLE, REFUSED = "u", "r"  # the kinds of failures, as they are stored
_PLAIN = 5  # members of `Tokens` that every record of a grant with tokens has


class GrantState(NamedTuple):
    """A snapshot of what the store knows of a grant.

    Attributes:
        tokens: the newest ones; None if none are kept.
        failure: of the last refresh, if it failed: its kind and a random number.
        stored: the record's value in the store.
        logout: a random number, if a logout was marked lately.
    """

    tokens: Tokens | None = None
    failure: str = ""
    stored: bytes | None = None
    logout: bytes | None = None

    def logged_out_since(self, before: GrantState) -> bool:
        """True if the grant was logged out after `before`."""
        return self.logout not in (None, before.logout)

    def failed_since(self, before: GrantState, kind: str) -> bool:
        """True if a refresh of another process failed in this way after `before`."""
        return self.failure != before.failure and self.failure.startswith(kind)


class GrantRecords:
    """The records of grants, each found by a hash of its refresh token.

    A record is encrypted with a key derived from the refresh token: a process that holds the
    refresh token finds the newest tokens, and opens no session. A refresh token that is rotated
    leaves a chain of records.

    Args:
        ttl: seconds that a record is kept.
    """

    def __init__(self, store: SessionStore, sealer: Sealer, ttl: float) -> None:
        self._store = store
        self._sealer = sealer
        self._ttl = ttl

    async def state(self, refresh_token: str) -> GrantState:
        """Return what the store knows of a grant now."""
        # The logout first: tokens that are saved later than this are found below.
        logout = await self._store.get(_logout_key(refresh_token))
        return (await self.record(refresh_token))._replace(logout=logout)

    async def record(self, refresh_token: str) -> GrantState:
        """Return the same without the logout."""
        record = await self._read(refresh_token)
        return record._replace(tokens=await self._follow(refresh_token, record.tokens))

    async def saved(self, refresh_token: str) -> GrantState:
        """Return one record, without the tokens that came later, and without the logout."""
        return await self._read(refresh_token)

    async def newest(self, refresh_token: str) -> Tokens | None:
        """Return the newest tokens of a grant, also of one whose refresh token was rotated.

        None if none are kept.
        """
        return (await self.record(refresh_token)).tokens

    async def save(self, refresh_token: str, tokens: Tokens, over: GrantState) -> bool:
        """Save what a refresh token was exchanged for, unless the record changed since `over`.

        Returns:
            True if it was saved. A record that did not exist in `over` is written in any case: the
            caller holds the lease.
        """
        return await self._write(refresh_token, tokens, "", over)

    async def add_login(self, tokens: Tokens) -> None:
        """Note the tokens of a login: CameraManager may give those of a grant that is known."""
        refresh_token = tokens.refresh_token
        if refresh_token is None:
            return
        # A logout may have been marked for it. Mostly there is none, and reading is no write that
        # has to reach a disk or a replica.
        mark = _logout_key(refresh_token)
        if await self._store.get(mark) is not None:
            await self._store.delete(mark)
        record = await self._read(refresh_token)
        known = record.tokens
        # Where the refresh token was rotated since, tokens of this login in the place of the newer
        # ones would cut off all sessions that hold it. A refresh may just have saved newer ones.
        if (
            known is not None
            and known.refresh_token == refresh_token
            and known.expires_at <= tokens.expires_at
        ):
            await self.save(refresh_token, tokens, over=record)

    async def mark_logged_out(self, tokens: Tokens) -> None:
        """Mark a logout: a refresh under way revokes the tokens that it gets."""
        if tokens.refresh_token is None:
            return
        newest = await self.newest(tokens.refresh_token) or tokens
        for refresh_token in {tokens.refresh_token, newest.refresh_token or tokens.refresh_token}:
            mark = secrets.token_bytes(8)
            await self._store.put(_logout_key(refresh_token), mark, _LOGOUT_TTL)

    async def was_logged_out(self, tokens: Tokens) -> bool:
        """True if a logout was marked a moment ago."""
        if tokens.refresh_token is None:
            return False
        return await self._store.get(_logout_key(tokens.refresh_token)) is not None

    async def delete(self, tokens: Tokens) -> Tokens:
        """Delete the record of a grant and return its newest tokens."""
        if tokens.refresh_token is None:
            return tokens
        newest = await self.newest(tokens.refresh_token)
        await self._store.delete(grant_name(tokens.refresh_token))
        return newest or tokens

    async def mark_failed(self, refresh_token: str, kind: str) -> None:
        """Tell the processes that wait how a refresh failed: `UNAVAILABLE` or `REFUSED`."""
        record = await self._read(refresh_token)
        if record.stored is not None and record.tokens is None and not record.failure:
            return  # encrypted with a secret key that this process does not have: leave its tokens
        # Unless a logout has just deleted it; a process that waits then finds out by itself.
        await self._write(refresh_token, record.tokens, kind + secrets.token_hex(8), over=record)

    async def _follow(self, refresh_token: str, tokens: Tokens | None) -> Tokens | None:
        """Return the last tokens of a chain of rotated refresh tokens."""
        chain: list[Tokens] = []
        seen = {refresh_token}
        while tokens is not None and len(chain) < _CHAIN:
            chain.append(tokens)
            following = tokens.refresh_token
            if following is None or following == refresh_token:
                break
            if following in seen:  # the server gave an earlier one again: the chain is a circle
                return max(chain, key=lambda one: one.expires_at)
            seen.add(refresh_token := following)
            tokens = (await self._read(refresh_token)).tokens
        return chain[-1] if chain else None

    # -- one record ------------------------------------------------------------------------

    async def _read(self, refresh_token: str) -> GrantState:
        """Return one record of a chain, without the logout."""
        name = grant_name(refresh_token)
        stored = await self._store.get(name)
        plain = stored and self._sealer.open_grant(name, _grant_key(refresh_token), stored)
        return GrantState(*decode_grant(plain), stored) if plain else GrantState(stored=stored)

    async def _write(
        self, refresh_token: str, tokens: Tokens | None, failure: str, over: GrantState
    ) -> bool:
        name = grant_name(refresh_token)
        new = self._sealer.seal_grant(
            name, _grant_key(refresh_token), encode_grant(tokens, failure)
        )
        ttl = _FAILURE_TTL if tokens is None else self._ttl
        if over.stored is None:
            await self._store.put(name, new, ttl)
            return True
        return await self._store.replace(name, over.stored, new, ttl)


def grant_name(refresh_token: str) -> str:
    """Return the key of a grant's record in the store."""
    return "grant." + hashlib.sha256(b"cm_auth.grant.name:" + refresh_token.encode()).hexdigest()


def _logout_key(refresh_token: str) -> str:
    return f"gone.{grant_name(refresh_token)}"


def _grant_key(refresh_token: str) -> bytes:
    return hashlib.sha256(b"cm_auth.grant.key:" + refresh_token.encode()).digest()


def encode_grant(tokens: Tokens | None, failure: str) -> bytes:
    """Encode a record as JSON. Without a failure it is what `Tokens` are in every version.

    What a record does not have is left out at its end: older versions read those without.
    """
    *values, former, api_base = [None, ""] if tokens is None else astuple(tokens)
    ending = [failure, former, api_base]
    while ending and not ending[-1]:
        ending.pop()
    return dumps([*values, *ending]).encode()


def decode_grant(raw: bytes) -> tuple[Tokens | None, str]:
    try:
        values = json.loads(raw)
        if not isinstance(values, list):
            return None, ""
        count = _PLAIN if len(values) > 1 else 0
        ending = values[count:]
        given: list[Any] = ["", None, ""]
        given[: len(ending)] = ending
        failure, former, api_base = given
        if not count:
            return None, failure
        access_token, refresh_token, expires_at, refresh_at, scope = values[:count]
        plain = access_token, refresh_token, expires_at, refresh_at, scope
        return Tokens(*plain, former, api_base), failure
    except (ValueError, TypeError):
        return None, ""
