"""What is known of each grant in the store: its newest tokens, its logout, its last failed try."""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, NamedTuple

from ..config import CMAuthConfig, seconds
from ..sessions.record import Tokens

if TYPE_CHECKING:
    from ..sessions.manager import SessionManager

_CHAIN = 4096  # rotations of a refresh token that a sleeping session can catch up with at once
_GONE_TTL = 600.0  # seconds that a logout is remembered for refreshes under way
_TRIED_TTL = 60.0  # seconds that a failure is remembered for those who waited for its end
_UNAVAILABLE, _REFUSED = b"u", b"r"


class Marks(NamedTuple):
    """What had happened to a grant at some moment; values that differ are other events."""

    gone: bytes | None
    tried: bytes | None

    def gone_by(self, later: Marks) -> bool:
        """Whether it was logged out since then."""
        return later.gone not in (None, self.gone)

    def refused_by(self, later: Marks) -> bool:
        """Whether CameraManager refused it to somebody else since then."""
        return later.tried not in (None, self.tried) and later.tried[:1] == _REFUSED

    def failed_by(self, later: Marks) -> bool:
        """Whether somebody else could not reach CameraManager since then."""
        return later.tried not in (None, self.tried) and later.tried[:1] == _UNAVAILABLE


class Grants:
    """Records of grants, found by a hash of the refresh token.

    They are sealed with a key derived from it: whoever holds the refresh token finds the newest
    tokens, and opens nobody's session. A rotated refresh token leaves a chain of such records.
    """

    def __init__(self, config: CMAuthConfig, sessions: SessionManager) -> None:
        self._ttl = seconds(config.absolute_timeout)
        self._sessions = sessions

    async def newest(self, refresh_token: str) -> Tokens | None:
        """The newest tokens of a grant, following rotated refresh tokens; None if none are kept."""
        newest: Tokens | None = None
        for _ in range(_CHAIN):
            _, tokens = await self._link(refresh_token)
            if tokens is None:
                break
            newest = tokens
            if tokens.refresh_token is None or tokens.refresh_token == refresh_token:
                break
            refresh_token = tokens.refresh_token
        return newest

    async def keep(self, refresh_token: str, tokens: Tokens) -> None:
        """Keep what a refresh token was traded for."""
        name, sealed = self._seal(refresh_token, tokens)
        await self._sessions.store.put(name, sealed, self._ttl)

    async def welcome(self, tokens: Tokens) -> None:
        """Note a login, which CameraManager may have answered with a grant that is known here."""
        if tokens.refresh_token is None:
            return
        # It may be one that a logout had named.
        await self._sessions.store.delete(f"gone.{grant_name(tokens.refresh_token)}")
        sealed, known = await self._link(tokens.refresh_token)
        if sealed is None or known is None or known.refresh_token != tokens.refresh_token:
            # A refresh token that was traded for another since is known better here: to name
            # this login's tokens as its newest would cut off everybody who holds it.
            return
        if known.expires_at <= tokens.expires_at:
            name, new = self._seal(tokens.refresh_token, tokens)
            await self._sessions.store.replace(
                name, sealed, new, self._ttl
            )  # unless renewed just now

    # -- marks -----------------------------------------------------------------------------

    async def marks(self, refresh_token: str) -> Marks:
        """What has happened to a grant."""
        store, name = self._sessions.store, grant_name(refresh_token)
        return Marks(await store.get(f"gone.{name}"), await store.get(f"tried.{name}"))

    async def forget(self, tokens: Tokens) -> None:
        """Note a logout: refreshes under way revoke what they bring home."""
        if tokens.refresh_token is None:
            return
        newest = await self.newest(tokens.refresh_token) or tokens
        for refresh_token in {tokens.refresh_token, newest.refresh_token or tokens.refresh_token}:
            mark = secrets.token_bytes(8)
            await self._sessions.store.put(f"gone.{grant_name(refresh_token)}", mark, _GONE_TTL)

    async def drop(self, tokens: Tokens) -> Tokens:
        """Remove the record of a grant and return its newest tokens."""
        if tokens.refresh_token is None:
            return tokens
        newest = await self.newest(tokens.refresh_token)
        await self._sessions.store.delete(grant_name(tokens.refresh_token))
        return newest or tokens

    async def note_unavailable(self, refresh_token: str) -> None:
        """Tell those who wait that CameraManager could not be reached."""
        await self._note(refresh_token, _UNAVAILABLE)

    async def note_refused(self, refresh_token: str) -> None:
        """Tell those who wait that CameraManager ended the grant."""
        await self._note(refresh_token, _REFUSED)

    async def _note(self, refresh_token: str, outcome: bytes) -> None:
        mark = outcome + secrets.token_bytes(8)
        await self._sessions.store.put(f"tried.{grant_name(refresh_token)}", mark, _TRIED_TTL)

    # -- sealing ---------------------------------------------------------------------------

    async def _link(self, refresh_token: str) -> tuple[bytes | None, Tokens | None]:
        """What a refresh token was last traded for, sealed and open."""
        name = grant_name(refresh_token)
        sealed = await self._sessions.store.get(name)
        if sealed is None:
            return None, None
        return sealed, self._sessions.sealer.open_grant(name, _grant_key(refresh_token), sealed)

    def _seal(self, refresh_token: str, tokens: Tokens) -> tuple[str, bytes]:
        name = grant_name(refresh_token)
        return name, self._sessions.sealer.seal_grant(name, _grant_key(refresh_token), tokens)


def grant_name(refresh_token: str) -> str:
    """The name of a grant in the store."""
    return "grant." + hashlib.sha256(b"cm_auth.grant.name:" + refresh_token.encode()).hexdigest()


def _grant_key(refresh_token: str) -> bytes:
    return hashlib.sha256(b"cm_auth.grant.key:" + refresh_token.encode()).digest()
