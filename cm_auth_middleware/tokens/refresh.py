"""Refresh access tokens: once for each expiry, for all sessions that hold the same grant.

The docstring of this folder explains the rules.
"""

from __future__ import annotations

import math
import random
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import (
    KeyRefusedError,
    OAuthError,
    OperatorError,
    SessionExpiredError,
    StoreError,
    TokenRefusedError,
    UnavailableError,
)
from ..events import log
from ..runtime.base import UnderWayError
from ..runtime.bounded_cache import BoundedCache
from ..stores import method_of
from .circuit_breaker import PAUSE, CircuitBreaker
from .failovers import Failovers
from .grant_records import REFUSED, UNAVAILABLE, GrantRecords, GrantState, grant_name
from .kept_tokens import Kept, KeptTokens
from .oauth import OAuthClient

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..sessions.manager import SessionManager
    from ..sessions.record import Record, Tokens
    from ..sessions.session import Session
    from ..stores import SessionStore

_GRACE = 60.0  # seconds that a session counts as alive while the store cannot be asked
_ALIVE = 60.0  # seconds that a token counts as alive once CameraManager has taken it
_FRESH = 1.0  # seconds that a refresh does without another look at a session
_REFUSED_TTL = 86_400.0  # seconds that a session is known to have paths that refuse any token
_ROUNDS = 64  # changes of a session, or of a grant, while its tokens are refreshed
_POLL_FIRST, _POLL_LAST = 0.025, 0.25  # seconds between looks at another process's refresh
_POLL_GROWTH = 1.25  # of a pause: most refreshes are over within a few
_ASK_AGAIN = 1.0  # seconds until a lease is asked for again that another process holds
_LEASE_MARGIN = 5.0  # seconds that a lease is longer than a token call may take
# Seconds that who let a lease run out has to save new tokens. A thread tries a store that was cut
# off every 2.5 s, for which see `stores.circuit_breaker`, and goes on to save 0.25 s after that.
_LAPSED_PATIENCE = 3.5
_SAVE_AGAIN = 0.25  # seconds between attempts to save new tokens in a store that fails
_SAVE_PATIENCE = 15.0  # seconds of such attempts
_SETTLING = 16  # looks at what others may save in a store that keeps failing


class Refreshed(NamedTuple):
    """The result of a refresh: tokens, and True if CameraManager gave them just now."""

    tokens: Tokens
    is_new: bool


class Revalidation(Protocol):
    """Reads the user of a session anew.

    Attributes:
        every: seconds after which that is due; infinite for after each refresh only.
    """

    every: float

    async def admits(self, session: Session) -> bool:
        """Return True if the user of a session may come in."""

    async def start_if_due(self, session: Session) -> None:
        """Read the user anew, beside the request, if that is due."""

    async def start(self, session: Session) -> None:
        """Read the user anew, beside the request."""

    async def run_if_due(self, session: Session) -> bool:
        """Read the user anew and wait for it, if that is due; return True if it was."""


class TokenRefresher:
    """Keeps the access tokens of sessions fresh.

    Attributes:
        revalidation: reads users anew; set once, by the gate.
        kept: the tokens that this process fetched lately.
        failovers: notices that the store may have lost some.
    """

    revalidation: Revalidation

    def __init__(
        self,
        runtime: Runtime,
        sessions: SessionManager,
        grants: GrantRecords,
        oauth: OAuthClient,
        on_refresh: Callable[[Session], Any] | None,
    ) -> None:
        self.grants = grants
        self.runtime = runtime
        self.store = sessions.store
        self._sessions = sessions
        self.oauth = oauth
        self._on_refresh = on_refresh
        self.breaker = CircuitBreaker(runtime.clock)
        memory = runtime.cache_memory
        self.kept = KeptTokens(runtime, grants, self._put_back)
        self.failovers = Failovers(runtime, self.store, self.kept)
        self._known_alive_until: BoundedCache[int, float] = BoundedCache(memory=memory)
        # By token and path.
        self._refuses_until: BoundedCache[int, float] = BoundedCache(memory=memory)

    # -- for a session ---------------------------------------------------------------------

    async def ensure_fresh(self, session: Session) -> None:
        """Refresh the access token if that is due: beside the request while the old one lives.

        The session may be older than the request: a handler may keep it, with its client. So the
        store is asked every 30 s whether it still exists, and before each call if a handle opened
        it: no middleware has just done so for that one.

        Raises: as `replace`.
        """
        await self.look_up(session)
        if self.runtime.clock() >= session.record.tokens.refresh_at:
            await self._refresh_in_time(session)
        if not session.is_detached:
            await self.revalidation.start_if_due(session)
        # Not beside the call: a person waits for a page, but no person waits for a job.
        elif await self.revalidation.run_if_due(session):
            await self.look_up(session)

    async def look_up(self, session: Session) -> None:
        """Check that a session still exists, if the store was not asked lately.

        Raises:
            SessionExpiredError: it does not, or the application refuses the user of a handle.
            UnavailableError: the store has not been available for longer than a moment.
        """
        if session.ended:
            raise SessionExpiredError
        if not session.is_detached and not self._sessions.is_stale(session):
            return
        try:
            exists = await self._sessions.reload(session)
        except StoreError:
            self.kept.note_trouble()
            # A short outage ends no session; a longer one may hide a logout.
            if session.is_detached or self.runtime.clock() - session.checked_at >= _GRACE:
                raise
            return
        if not exists:
            session.ended = True
            raise SessionExpiredError
        if session.is_detached and not await self.revalidation.admits(session):
            raise SessionExpiredError("this application does not admit the user of this session")

    async def _refresh_in_time(self, session: Session) -> None:
        tokens = session.record.tokens
        if self.runtime.clock() >= tokens.expires_at:
            await self.replace(session, tokens.access_token)
            return
        held = tokens.refresh_token
        if held is not None and not self.breaker.is_open(grant_name(held)):
            await self.runtime.run_beside(
                f"soon {session.record_id}", partial(self._refresh_beside, session)
            )
            if session.ended:
                raise SessionExpiredError

    async def _refresh_beside(self, session: Session) -> None:
        # Logged where it happened; the next request gets a response of its own.
        with suppress(SessionExpiredError, UnavailableError):
            await self.replace(session, session.record.tokens.access_token)

    async def replace(self, session: Session, refused: str) -> bool:
        """Give the session another access token than the one that is `refused`, or expired.

        Returns:
            True if CameraManager gave it just now; False if another request had refreshed already.

        Raises:
            SessionExpiredError: the grant is over; the session was deleted.
            UnavailableError: CameraManager or the store cannot be asked; nothing was lost.
        """
        if session.ended:
            raise SessionExpiredError
        if session.record.tokens.access_token != refused:
            return False
        single_flight = self.runtime.single_flight
        # A job has its threads to itself, and waits.
        do = (
            single_flight.do
            if session.is_detached
            else partial(single_flight.do_apart, asks=[self.oauth.token_url])
        )
        try:
            refreshed: Refreshed = await do(
                f"session {session.record_id} {hash(refused)}",
                partial(self._refresh, session, refused),
            )
        except SessionExpiredError:
            session.ended = True
            raise
        session.record = replace(session.record, tokens=refreshed.tokens)
        return refreshed.is_new

    async def reload(self, session: Session, refused: str) -> bool:
        """Load newer tokens from the store, if another request has saved some.

        Does not call CameraManager.

        Returns:
            True if the session has another access token than `refused` now.
        """
        stored = await self._sessions.load_record(session.record_id, session.cookie_key)
        if stored is None:
            return False
        tokens = stored.record.tokens
        if tokens.access_token == refused and tokens.refresh_token is not None:
            tokens = await self.grants.newest(tokens.refresh_token) or tokens
        session.record = replace(session.record, tokens=tokens)
        return tokens.access_token != refused

    async def is_dead(self, session: Session, token: str) -> bool:
        """Return True if CameraManager refuses a token everywhere, not for one path alone.

        Asks for the user, who may always be read: once a minute for each token.
        """
        if session.record.tokens.access_token != token:
            return True  # another request has renewed it
        return not self._is_known_alive(token) and await self._ask_if_dead(session, token)

    async def note_refusal(self, session: Session, token: str, path: str) -> None:
        """Note that a path answers 401 to a living token, for every process: 403 is meant.

        A new token would not help, and would end the one that other requests hold.
        """
        self._refuses_until[hash((token, path))] = self.runtime.clock() + _ALIVE
        with suppress(StoreError):  # then each process finds out by itself
            await self.store.put(f"refused.{session.record_id}", b"1", _REFUSED_TTL)

    async def may_be_dead(self, session: Session, token: str, path: str, is_suspect: bool) -> bool:
        """Return True if another token may do where a path answered 401 to this one.

        It may, unless the session is known to have paths that refuse living tokens. Then the user
        is asked for, once a minute for each token and path.

        Args:
            is_suspect: True to ask for the user in any case.
        """
        if self.runtime.clock() >= self._refuses_until.get(hash((token, path)), -math.inf):
            if not is_suspect and await self.store.get(f"refused.{session.record_id}") is None:
                return True
            if await self._ask_if_dead(session, token):
                return True
            if self._is_known_alive(token):
                await self.note_refusal(session, token, path)
        return await self.reload(session, token)

    def _is_known_alive(self, token: str) -> bool:
        return self.runtime.clock() < self._known_alive_until.get(hash(token), -math.inf)

    async def _ask_if_dead(self, session: Session, token: str) -> bool:
        api_base = session.record.tokens.api_base
        try:
            is_dead: bool = await self.runtime.single_flight.do_apart(
                f"alive {hash(token)}",
                partial(self._is_dead, token, api_base),
                asks=[self.oauth.user_url(api_base)],
            )
        except UnavailableError:  # it takes too long
            return False
        return is_dead

    async def _is_dead(self, token: str, api_base: str) -> bool:
        try:
            await self.oauth.user(token, api_base)
        except TokenRefusedError:
            return True
        except UnavailableError:
            return False
        self._known_alive_until[hash(token)] = self.runtime.clock() + _ALIVE
        return False

    async def _refresh(self, of: Session, refused: str) -> Refreshed:
        """Refresh for all requests of one session in this process.

        They may go on with their own session objects meanwhile; this works on another one.
        """
        record_id, cookie_key = of.record_id, of.cookie_key
        session: Session | None = of.copy()
        if self.runtime.clock() - of.checked_at > _FRESH:
            session = await self._sessions.load_record(record_id, cookie_key)
        for _ in range(_ROUNDS):
            if session is None:
                raise SessionExpiredError
            held = session.record.tokens
            if held.access_token != refused:
                return Refreshed(held, is_new=False)
            try:
                refreshed = await self._newer_than(held)
            except SessionExpiredError:
                newest = await self._sessions.load_record(record_id, cookie_key)
                if newest is None or newest.record.tokens == held:
                    await self._sessions.delete(session)
                    log("session_ended", session=session.log_id)
                    self._sessions.audit("session_ended", session)
                    raise
                session = newest
            else:
                return await self._adopt(session, held, refreshed)
        raise UnavailableError("the server refuses every token it gives")

    async def _newer_than(self, held: Tokens) -> Refreshed:
        """Return newer tokens than these, and such as have not expired themselves.

        Raises:
            SessionExpiredError: CameraManager ended the grant, or a logout did.
            UnavailableError: CameraManager or the store cannot be asked; nothing was lost.
        """
        for _ in range(_ROUNDS):
            if held.refresh_token is None:
                raise SessionExpiredError
            refresh = GrantRefresh(self, held, held.refresh_token)
            # By the access token, too: a request that joins must not get the one that it refuses.
            refreshed: Refreshed = await self.runtime.single_flight.do(
                f"{refresh.name} {hash(held.access_token)}", refresh.newer_than_held
            )
            if refreshed.is_new or self.runtime.clock() < refreshed.tokens.expires_at:
                return refreshed
            held = refreshed.tokens
        raise UnavailableError("the server gives only tokens that have expired")

    async def _adopt(self, session: Session, held: Tokens, refreshed: Refreshed) -> Refreshed:
        """Write newer tokens into a session, unless it was logged out, or has others by now."""
        is_first = False

        def change(record: Record) -> Record:
            nonlocal is_first
            is_first = record.tokens == held
            return replace(record, tokens=refreshed.tokens) if is_first else record

        if not await self._sessions.update(session, change):
            # A session that is gone may also have timed out, or been replaced by a login.
            if await self._sessions.was_ended(
                session.record_id
            ) or await self.grants.was_logged_out(held):
                await self.oauth.try_to_revoke(refreshed.tokens)
            raise SessionExpiredError
        if not is_first:
            return Refreshed(session.record.tokens, is_new=False)
        await self.runtime.run_hook("on_refresh", self._on_refresh, session)
        if math.isinf(self.revalidation.every):
            await self.revalidation.start(session)
        return refreshed

    async def end_grant(self, tokens: Tokens) -> None:
        """Delete the record of a grant and revoke it at CameraManager, if that can be reached.

        The tokens may be old: the newest ones, which another session may have got, are revoked.
        Between threads that may go on after this has returned: see `SingleFlight.do_apart`.
        """
        await self._revoke_apart(partial(self._end_grant, tokens), tokens)

    async def revoke(self, tokens: Tokens) -> None:
        """Revoke the tokens of a login that ends before it began, as `end_grant` does."""
        await self._revoke_apart(partial(self.oauth.try_to_revoke, tokens), tokens)

    async def _revoke_apart(self, work: Callable[[], Any], tokens: Tokens) -> None:
        try:
            await self.runtime.single_flight.do_apart(
                f"revoke {hash(tokens)}",
                work,
                asks=[self.oauth.logout_url, self.oauth.token_url],  # the latter for newer tokens
            )
        except UnderWayError:
            return  # it logs its failure itself
        except UnavailableError as error:
            log("revoke_failed", reason=error)

    async def _end_grant(self, tokens: Tokens) -> None:
        self.kept.forget(tokens.refresh_token)
        try:
            newest = await self.grants.delete(tokens)
        except UnavailableError as error:
            log("revoke_failed", reason=error)
        else:
            self.kept.forget(newest.refresh_token)
            await self.oauth.revoke_newest(newest)

    async def _put_back(self, refresh_token: str, kept: Kept) -> bool:
        refresh = GrantRefresh(self, kept.held, refresh_token, kept.lease_owner)
        return await refresh.put_back()


class GrantRefresh:
    """One refresh of one grant, for all its sessions in this process.

    Args:
        held: tokens that are refused or have expired.
        lease_owner: the owner of the lease, if it was taken before.
    """

    def __init__(
        self,
        refresher: TokenRefresher,
        held: Tokens,
        refresh_token: str,
        lease_owner: str | None = None,
    ) -> None:
        self.name = grant_name(refresh_token)
        self._held = held
        self._refresh_token = refresh_token
        self._runtime = refresher.runtime
        self._grants = refresher.grants
        self._oauth = refresher.oauth
        self._breaker = refresher.breaker
        self._kept = refresher.kept
        self._failovers = refresher.failovers
        self._lease = Lease(
            refresher.runtime,
            refresher.store,
            f"lease.{self.name}",
            self._failovers.release_later,
            lease_owner,
        )
        self._before: GrantState | None = None  # when this refresh began to wait for another one

    async def newer_than_held(self) -> Refreshed:
        """Find newer tokens in the store, or request them."""
        waits = self._runtime.timeout + self._lease.seconds + _LAPSED_PATIENCE
        give_up_at = self._runtime.monotonic() + waits
        ask_at = -math.inf  # for the lease: it is free again without new tokens only if all failed
        take_at = math.inf  # a lease that has run out
        for pause in _pauses():
            if self._breaker.is_open(self.name):
                if (found := await self._look()) is not None:
                    return found
                await self._breaker.wait(self.name, self._runtime.sleep)
            if self._runtime.monotonic() >= ask_at:
                if (found := await self._wait_after_failure()) is not None:
                    return found
                is_mine = await self._lease.acquire(
                    even_lapsed=self._runtime.monotonic() >= take_at
                )
                if is_mine:
                    if (found := await self._refresh_holding_lease()) is not None:
                        return found
                    # Without the lease: others need it to put tokens back.
                    found = await self._failovers.wait(self.name, self._look)
                    if found is not None:
                        return found
                    continue
                now = self._runtime.monotonic()
                take_at = min(take_at, now + _LAPSED_PATIENCE) if is_mine is None else math.inf
                ask_at = min(now + _ASK_AGAIN, take_at)
            if (found := await self._look()) is not None:
                return found
            if self._runtime.monotonic() > give_up_at:
                raise UnavailableError("another process holds the refresh for too long")
            await self._runtime.sleep(pause)
        raise AssertionError("there is always another pause")

    async def _wait_after_failure(self) -> Refreshed | None:
        """Wait if the store has just failed, without the lease: others save their tokens."""
        if self._kept.find(self._refresh_token, self._held, GrantState()) is not None:
            self._failovers.watch()  # it may have ended with another event loop
            return None  # this process will do that
        for _ in range(_SETTLING):
            wait = self._kept.trouble()
            if wait <= 0:
                break
            if (found := await self._look()) is not None:
                return found
            await self._runtime.sleep(min(wait, _POLL_LAST))
        return None

    async def _look(self) -> Refreshed | None:
        """Return newer tokens that another process has saved; None if there are none.

        Raises:
            SessionExpiredError, UnavailableError: the refresh that this one waits for ended so.
        """
        if self._before is None:
            state = self._before = await self._grants.state(self._refresh_token)
        else:
            state = await self._grants.record(self._refresh_token)
        found = self._newer_in(state)
        if found is None:
            self._share_failure(state, self._before)
        return found

    def _share_failure(self, state: GrantState, before: GrantState) -> None:
        if state.failed_since(before, REFUSED):
            raise SessionExpiredError
        if state.failed_since(before, UNAVAILABLE):
            raise UnavailableError("another process has just failed to reach the server")

    def _newer_in(self, state: GrantState) -> Refreshed | None:
        tokens, held = state.tokens, self._held
        if tokens is None:
            return None
        if tokens.access_token == held.access_token:
            # Another process may just have found out that the server gives the same one again.
            is_known = held.refresh_at == held.expires_at
            if is_known or tokens.refresh_at < tokens.expires_at:
                return None
        return Refreshed(tokens, is_new=False)

    async def _refresh_holding_lease(self) -> Refreshed | None:
        """Find newer tokens, or request them; None if the store may just have lost some."""
        async with self._lease.kept():
            with self._failovers.exchange():
                return await self._refresh()

    async def _refresh(self) -> Refreshed | None:
        state = await self._grants.state(self._refresh_token)
        if (found := self._newer_in(state)) is not None:
            return found
        before = self._before or state
        if state.logged_out_since(before):
            raise SessionExpiredError
        kept = await self._find_kept(state)
        if kept is not None:
            return await self._save(kept, state)
        self._share_failure(state, before)
        if not await self._failovers.is_settled(self.name):
            return None
        tokens = state.tokens or self._held
        try:
            fresh = await self._request(tokens, tokens.refresh_token or self._refresh_token)
        except SessionExpiredError:
            # Another process may have refreshed while this one stood still.
            for pause in _pauses():
                if not self._lease.may_be_over() or await self._lease.acquire():
                    break
                await self._runtime.sleep(pause)
            now = await self._grants.state(self._refresh_token)
            if (found := self._newer_in(now)) is not None:
                return found
            fresh = await self._request_by_former(tokens, now, before)
        return await self._save(fresh, state)

    async def _request_by_former(
        self, tokens: Tokens, now: GrantState, before: GrantState
    ) -> Tokens:
        """Try the refresh token before the one that CameraManager refuses, once.

        Spring Security OAuth with a token enhancer may answer a refresh with a new refresh token
        that it does not know, while the one before it stays valid.
        """
        if now.logged_out_since(before):
            raise SessionExpiredError  # whoever waits sees the logout: leave no record of it
        former = tokens.former_refresh_token
        if former is not None:
            with suppress(SessionExpiredError):
                return await self._request(tokens, former)
        if not self._lease.may_be_over():
            await self._grants.mark_failed(self._refresh_token, REFUSED)
        raise SessionExpiredError

    async def _request(self, tokens: Tokens, refresh_token: str) -> Tokens:
        """Exchange a refresh token of these tokens, or the one before it, at CameraManager."""
        self._breaker.enter(self.name, self._runtime.timeout)
        try:
            fresh = await self._oauth.refresh(refresh_token, tokens.api_base)
        except OAuthError as error:
            if error.is_grant_over:
                self._breaker.succeeded()
                log("refresh_refused", error=error.error)
                raise SessionExpiredError from None
            kind: type[UnavailableError] = UnavailableError
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
                kind = KeyRefusedError
            log("refresh_failed", reason=error)
            await self._mark_failed(PAUSE, kind)
            raise kind(f"the server refused the refresh: {error.error}") from None
        except UnavailableError as error:
            log("refresh_failed", reason=error)
            await self._mark_failed(error.retry_after)
            raise
        self._breaker.succeeded()
        log("refreshed", expires_in=int(fresh.expires_at - self._runtime.clock()))
        if fresh.access_token == tokens.access_token:
            # Some servers give another one only after it has expired: it is no use to ask before.
            return replace(fresh, refresh_at=fresh.expires_at)
        return fresh

    async def _mark_failed(
        self, retry_after: float, kind: type[UnavailableError] = UnavailableError
    ) -> None:
        self._breaker.failed(self.name, retry_after, kind)
        if not self._lease.may_be_over():
            with suppress(StoreError):  # then each process that waits finds out by itself
                await self._grants.mark_failed(self._refresh_token, UNAVAILABLE)

    async def _save(self, fresh: Tokens, before: GrantState) -> Refreshed:
        """Save new tokens. They exist nowhere else, so a store that fails is asked again."""
        if fresh.access_token != self._held.access_token:  # else a server would give it again
            kept = Kept(self._held, fresh, before.logout, self._lease.owner)
            self._kept.keep(self._refresh_token, kept)
            self._failovers.watch()
        give_up_at = self._runtime.monotonic() + _SAVE_PATIENCE
        while True:
            try:
                saved = await self._save_once(fresh, before)
            except SessionExpiredError:
                self._kept.forget(self._refresh_token)
                raise
            except StoreError:
                self._kept.note_trouble()
                if self._runtime.monotonic() > give_up_at:
                    self._leave_unsaved()
                    raise
            except BaseException:  # cancelled, or an error that only an application's store raises
                self._leave_unsaved()
                raise
            else:
                self._note(fresh, saved)
                return saved
            await self._runtime.sleep(_SAVE_AGAIN)

    def _leave_unsaved(self) -> None:
        """Save the new tokens later; meanwhile nobody else may use the old refresh token."""
        self._kept.note_unsaved(self._refresh_token)
        self._lease.leave()

    def _note(self, fresh: Tokens, saved: Refreshed) -> None:
        if saved.tokens.access_token == fresh.access_token:
            self._kept.note_saved(self._refresh_token)
        else:
            self._kept.drop(self._refresh_token)  # another process saved newer ones

    async def _find_kept(self, state: GrantState) -> Tokens | None:
        """Return newer tokens that this process keeps, unless the grant was logged out since."""
        fresh = self._kept.find(self._refresh_token, self._held, state)
        return None if fresh is None or await self._grants.was_logged_out(fresh) else fresh

    async def put_back(self) -> bool:
        """Save the tokens again that this process keeps; return True if the store had lost them."""
        if not await self._lease.acquire():
            return False
        try:
            state = await self._grants.state(self._refresh_token)
            fresh = await self._find_kept(state)
            if fresh is None:  # logged out since
                self._kept.drop(self._refresh_token)
                return False
            found = self._newer_in(state)
            if found is not None:
                self._note(fresh, found)
                return False
            if self._lease.may_be_over() or not await self._grants.save(
                self._refresh_token, fresh, over=state
            ):
                newest = self._newer_in(await self._grants.state(self._refresh_token))
                if newest is None:
                    self._lease.leave()  # the next look finds out what happened
                else:
                    self._note(fresh, newest)
                return False
            self._kept.note_saved(self._refresh_token)
            # No session is written here that would notice a logout which came in between.
            if await self._grants.was_logged_out(self._held) and state.logout is None:
                await self._grants.delete(self._held)
                self._kept.drop(self._refresh_token)
                return False
            return True
        except BaseException:  # as in `_save`: the store may still lack the tokens
            self._lease.leave()
            raise
        finally:
            await self._lease.release()

    async def _save_once(self, fresh: Tokens, before: GrantState) -> Refreshed:
        for _ in range(_ROUNDS):
            if self._lease.may_be_over():
                # This process was held up for so long that another one may have refreshed.
                await self._lease.acquire()
            state = await self._grants.state(self._refresh_token)
            if state.logged_out_since(before):
                await self._oauth.try_to_revoke(fresh)
                raise SessionExpiredError
            if (found := self._newer_in(state)) is not None:
                return found
            if not self._lease.may_be_over() and await self._grants.save(
                self._refresh_token, fresh, over=state
            ):
                return Refreshed(fresh, is_new=True)
        raise StoreError("the record of the grant changes all the time")


def _pauses() -> Iterator[float]:
    """Yield the seconds between looks at what another process does.

    A quick refresh is noticed soon, and one that takes long does not load the store. They vary, so
    that processes which began to wait at one time do not ask at one time.
    """
    pause = _POLL_FIRST
    while True:
        yield pause * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
        pause = min(_POLL_GROWTH * pause, _POLL_LAST)


class Lease:
    """The right to refresh a grant, which one process has at a time.

    Args:
        release_later: is told the key and the owner of a lease that could not be given back.

    Attributes:
        seconds: that it lasts if it is not renewed.
        owner: a random name of who takes it.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: SessionStore,
        key: str,
        release_later: Callable[[str, str], None],
        owner: str | None = None,
    ) -> None:
        self.seconds = runtime.timeout + _LEASE_MARGIN
        self._runtime = runtime
        self._store = store
        self._release_later = release_later
        self._claim = method_of(store, "claim")  # see TellsLapsedLeases
        self._key = key
        self.owner = owner or secrets.token_hex(16)
        self._asked_at = -math.inf, -math.inf
        self._is_left = False

    async def acquire(self, *, even_lapsed: bool = True) -> bool | None:
        """Take the lease, or renew it; True unless another process holds it.

        Args:
            even_lapsed: take it also if another process let it run out; else None is returned then.
        """
        now, key, owner = self._now(), self._key, self.owner
        is_mine: bool | None
        if self._claim is None:
            is_mine = await self._store.acquire(key, owner, self.seconds)
        else:
            is_mine = await self._claim(key, owner, self.seconds, even_lapsed=even_lapsed)
        self._asked_at = now
        return is_mine

    def may_be_over(self) -> bool:
        """True if the lease was not asked for in the last half of its time.

        It is renewed more often than that, unless the process or the machine stood still.
        """
        asked_at, now = self._asked_at, self._now()
        return not all(0 <= b - a < self.seconds / 2 for a, b in zip(asked_at, now, strict=True))

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Renew the lease while the block runs, and give it back at its end."""
        try:
            async with self._runtime.heartbeat(self._renew, self.seconds / 3):
                yield
        finally:
            await self.release()

    def leave(self) -> None:
        """Let the lease run out: the store lacks tokens that this process has."""
        self._is_left = True

    async def release(self) -> None:
        """Give the lease back, unless it was left."""
        if self._is_left:
            return
        try:
            await self._store.release(self._key, self.owner)
        except Exception:  # a StoreError, or what only an application's store raises
            self._release_later(self._key, self.owner)
        except BaseException:  # cancelled
            self._release_later(self._key, self.owner)
            raise

    async def _renew(self) -> None:
        # Tried again in a moment, and before the tokens are saved: no reason to give up the call.
        with suppress(Exception):
            await self.acquire()

    def _now(self) -> tuple[float, float]:
        # A clock that can be set may be wrong; one that cannot may stop while the machine sleeps.
        return self._runtime.clock(), self._runtime.monotonic()
