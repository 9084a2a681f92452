"""One refresh per grant: one at a time in a process, and one process at a time."""

from __future__ import annotations

import secrets
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..errors import OAuthError, OperatorError, SessionExpiredError, StoreError, UnavailableError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..sessions.record import Tokens
from .circuit_breaker import PAUSE, Backoff
from .grant_records import Grants, Marks, grant_name
from .oauth import GRANT_REFUSED, CameraManager

if TYPE_CHECKING:
    from ..runtime.base import Runtime, Work
    from ..stores import SessionStore

_ROUNDS = 64  # steps to tokens that have not expired
_POLL = 0.025  # seconds between looks at a refresh that another process makes
_LEASE_MARGIN = 5.0  # seconds that a lease is longer than a token call may take
_SAVE_AGAIN = 0.25  # seconds between attempts to keep new tokens in a store that fails
_SAVE_PATIENCE = 15.0  # seconds of such attempts


class Refreshed(NamedTuple):
    """What a refresh came to: the tokens, and whether CameraManager gave them just now."""

    tokens: Tokens
    is_new: bool


class Renewal:
    """Trades refresh tokens for new tokens, each once.

    Within a process all who need it wait for one refresh. Between processes a lease in the store
    lets one do it; the others find what it brought home (see `Grants`).
    """

    def __init__(
        self, runtime: Runtime, store: SessionStore, grants: Grants, server: CameraManager
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._grants = grants
        self._server = server
        self._backoff = Backoff(runtime.clock)
        # What a store that failed could not take.
        self._unsaved: BoundedCache[str, Tokens] = BoundedCache()

    def is_closed(self, refresh_token: str) -> bool:
        """Whether CameraManager failed a moment ago and is left alone."""
        return self._backoff.left(grant_name(refresh_token)) > 0

    async def newer(self, held: Tokens) -> Refreshed:
        """Newer tokens than these, and such as have not expired by themselves.

        Raises:
            SessionExpiredError: CameraManager ended the grant, or a logout did.
            UnavailableError: CameraManager or the store cannot be asked; nothing was lost.
        """
        for _ in range(_ROUNDS):
            if held.refresh_token is None:
                raise SessionExpiredError
            # By the access token, too: who joins must not be given the very one that it refuses.
            refreshed: Refreshed = await self._runtime.single_flight.do(
                f"{grant_name(held.refresh_token)} {hash(held.access_token)}",
                partial(self._renew, held, held.refresh_token),
            )
            if refreshed.is_new or self._runtime.clock() < refreshed.tokens.expires_at:
                return refreshed
            held = refreshed.tokens
        raise UnavailableError("CameraManager gives only tokens that have expired")

    async def _renew(self, held: Tokens, refresh_token: str) -> Refreshed:
        """Find newer tokens of this grant, or fetch them; runs once in this process."""
        name = f"lease.{grant_name(refresh_token)}"
        owner, seconds = secrets.token_hex(16), self._runtime.timeout + _LEASE_MARGIN
        before = await self._grants.marks(refresh_token)
        give_up_at = self._runtime.monotonic() + self._runtime.timeout + seconds

        async def lease() -> bool:
            return await self._store.acquire(name, owner, seconds)

        while True:
            kept = await self._grants.newest(refresh_token)
            if kept is not None and kept.access_token != held.access_token:
                return Refreshed(kept, is_new=False)
            await self._backoff.wait(grant_name(refresh_token), self._runtime.sleep)
            if await lease():
                break
            if self._runtime.monotonic() > give_up_at:
                raise UnavailableError("another process holds the refresh for too long")
            await self._runtime.sleep(_POLL)

        async def extend() -> None:
            with suppress(StoreError):  # asked again in a moment, and before the tokens are kept
                await lease()

        try:
            async with self._runtime.heartbeat(extend, seconds / 3):
                return await self._renew_alone(held, refresh_token, before, lease)
        finally:
            with suppress(StoreError):  # it runs out by itself
                await self._store.release(name, owner)

    async def _renew_alone(
        self, held: Tokens, refresh_token: str, before: Marks, lease: Work
    ) -> Refreshed:
        """Renew a grant while holding its lease."""
        kept = await self._grants.newest(refresh_token)
        if kept is not None and kept.access_token != held.access_token:
            return Refreshed(kept, is_new=False)
        marks = await self._grants.marks(refresh_token)
        if before.gone_by(marks) or before.refused_by(marks):
            raise SessionExpiredError
        if before.failed_by(marks):
            raise UnavailableError("another process has just failed to reach CameraManager")
        fresh = self._unsaved.pop(refresh_token, None)
        if fresh is None:
            try:
                fresh = await self._fetch(kept or held, refresh_token)
            except SessionExpiredError:
                kept = await self._grants.newest(refresh_token)
                if kept is None or kept.access_token == held.access_token:
                    await self._grants.note_refused(refresh_token)
                    raise
                return Refreshed(kept, is_new=False)
        return await self._bring_home(held, refresh_token, fresh, marks, lease)

    async def _bring_home(
        self, held: Tokens, refresh_token: str, fresh: Tokens, marks: Marks, lease: Work
    ) -> Refreshed:
        """Keep new tokens. They exist nowhere else, so a store that fails is asked again."""
        give_up_at = self._runtime.monotonic() + _SAVE_PATIENCE
        while True:
            try:
                return await self._settle(held, refresh_token, fresh, marks, lease)
            except StoreError:
                if self._runtime.monotonic() > give_up_at:
                    self._unsaved[refresh_token] = fresh
                    raise
            await self._runtime.sleep(_SAVE_AGAIN)

    async def _settle(
        self, held: Tokens, refresh_token: str, fresh: Tokens, marks: Marks, lease: Work
    ) -> Refreshed:
        if marks.gone_by(await self._grants.marks(refresh_token)):
            await revoke(self._server, fresh.access_token)
            raise SessionExpiredError
        await lease()
        # This process may have been held up for longer than its lease, and another taken over.
        kept = await self._grants.newest(refresh_token)
        if kept is not None and kept.access_token != held.access_token:
            return Refreshed(kept, is_new=False)
        await self._grants.keep(refresh_token, fresh)
        return Refreshed(fresh, is_new=True)

    async def _fetch(self, tokens: Tokens, refresh_token: str) -> Tokens:
        self._backoff.begin(grant_name(refresh_token), self._runtime.timeout)
        try:
            fresh = await self._server.refresh(tokens.refresh_token or refresh_token)
        except OAuthError as error:
            if error.error in GRANT_REFUSED:
                self._backoff.answered()
                log("refresh_refused", error=error.error)
                raise SessionExpiredError from None
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
            log("refresh_failed", reason=error)
            await self._failed(refresh_token, PAUSE)
            raise UnavailableError(f"CameraManager refused the refresh: {error.error}") from None
        except UnavailableError as error:
            log("refresh_failed", reason=error)
            await self._failed(refresh_token, error.retry_after)
            raise
        self._backoff.answered()
        log("refreshed", expires_in=int(fresh.expires_at - self._runtime.clock()))
        return fresh

    async def _failed(self, refresh_token: str, retry_after: float) -> None:
        self._backoff.failed(grant_name(refresh_token), retry_after)
        with suppress(StoreError):  # then each who waits finds out for itself
            await self._grants.note_unavailable(refresh_token)


async def revoke(server: CameraManager, access_token: str) -> None:
    """Delete tokens at CameraManager, if it can be reached."""
    try:
        if not await server.revoke(access_token):
            log("revoke_failed", reason="CameraManager refused it")
    except UnavailableError as error:
        log("revoke_failed", reason=error)
