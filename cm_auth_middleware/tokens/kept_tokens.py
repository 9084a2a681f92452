"""The tokens that this process fetched or found lately, in case the store loses them.

The docstring of this folder explains why ("If the store loses what it has acknowledged").
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from sys import getsizeof
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..errors import StoreError, UnavailableError
from ..events import log
from ..runtime.after_fork import after_fork
from ..runtime.bounded_cache import BoundedCache
from ..sessions.record import size_in_memory

if TYPE_CHECKING:
    from ..runtime.base import Repetition, Runtime
    from ..sessions.record import Tokens
    from ..stores import SessionStore
    from .grant_records import GrantRecords, GrantState

T = TypeVar("T")

_KEPT = 60.0  # seconds that tokens are kept once they were saved
_LOOK_EVERY = 0.25  # seconds between looks at the store after trouble
_LOOK_IN_PEACE = 0.5  # the same without trouble
_TROUBLE = 15.0  # seconds after a failure in which a refresh waits for what others put back
_OTHERS_BEGIN = 1.5  # seconds that they have to begin with that, from when the store works
_BREAK = 1.0  # seconds without an answer of the store after which that time begins anew
_PATIENCE = 10.0  # seconds that a refresh waits at most
_RESTORING = "restoring"  # the key that tells other processes of tokens that are being put back
_RESTORING_TTL = 3.0  # seconds that it tells so, unless it is renewed
_RESTORING_EVERY = 0.5  # seconds between two writes of it


class Kept(NamedTuple):
    """Tokens that this process fetched, or found in the store.

    Attributes:
        held: the tokens in whose place they came.
        logout: the mark of a logout that was known then.
        saved_at: when the store had them, by the monotonic clock; infinite until it does.
        is_unsaved: True once it was given up to save them, because the store fails.
    """

    held: Tokens
    tokens: Tokens
    logout: bytes | None
    saved_at: float = math.inf
    is_unsaved: bool = False


def _size(kept: Kept) -> int:
    return getsizeof(kept) + size_in_memory(kept.held) + size_in_memory(kept.tokens)


class KeptTokens:
    """Keeps new tokens for a minute, by the old refresh token, and puts them back if need be.

    Args:
        put_back: saves the tokens of one refresh token again, unless newer ones are there.
    """

    def __init__(
        self,
        runtime: Runtime,
        store: SessionStore,
        grants: GrantRecords,
        put_back: Callable[[str, Kept], Awaitable[bool]],
    ) -> None:
        self._runtime = runtime
        self._store = store
        self._grants = grants
        self._put_back = put_back
        self._kept: BoundedCache[str, Kept] = BoundedCache(
            self._is_over, memory=runtime.cache_memory, size=_size
        )
        self._noted_at = -math.inf  # when the store was last seen to fail or to have lost something
        self._checked_at = -math.inf  # when a look at all tokens began that found all of them
        self._told_at = -math.inf  # when other processes were last told of what is put back
        self._look_at = -math.inf
        self._newest = ""  # the refresh token whose exchange was saved last
        self._turn = 0
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Start to look anew: the task or thread that did was not forked."""
        self._watch: Repetition | None = None

    def _is_over(self, kept: Kept) -> bool:
        return self._runtime.monotonic() - kept.saved_at > _KEPT

    # -- keeping ---------------------------------------------------------------------------

    def keep(self, refresh_token: str, kept: Kept) -> None:
        """Keep the tokens that a refresh token was exchanged for."""
        self._kept[refresh_token] = kept
        if self._watch is None or self._watch.is_over:
            work = partial(_look_if_alive, weakref.ref(self))
            self._watch = self._runtime.repeat(_LOOK_EVERY, work)

    def keep_found(self, held: Tokens, tokens: Tokens, logout: bytes | None = None) -> None:
        """Keep tokens that another process fetched, and that the store has: it may lose them."""
        refresh_token = held.refresh_token
        if refresh_token is not None and refresh_token not in self._kept:
            self.keep(refresh_token, Kept(held, tokens, logout))
            self.note_saved(refresh_token)

    def note_saved(self, refresh_token: str) -> None:
        """Note that the store has the tokens now."""
        kept = self._kept.get(refresh_token)
        if kept is not None:
            now = self._runtime.monotonic()
            self._kept[refresh_token] = kept._replace(saved_at=now, is_unsaved=False)
            self._newest = refresh_token

    def note_unsaved(self, refresh_token: str) -> None:
        """Note that the store has failed for too long to take the tokens."""
        kept = self._kept.get(refresh_token)
        if kept is not None:
            self._kept[refresh_token] = kept._replace(is_unsaved=True)

    def find(self, refresh_token: str, held: Tokens, state: GrantState) -> Tokens | None:
        """Return the tokens that replaced these, unless the grant was logged out since."""
        kept = self._kept.get(refresh_token)
        if kept is None or state.logout not in (None, kept.logout):
            return None
        # A refresh token that does not change, or is given again, leads to many tokens: here only
        # to those that came in the place of `held`.
        return kept.tokens if kept.held.access_token == held.access_token else None

    def drop(self, refresh_token: str) -> None:
        """Keep what a refresh token was exchanged for no longer."""
        self._kept.pop(refresh_token, None)

    def forget(self, refresh_token: str | None) -> None:
        """Forget a grant that is over: also the tokens by which this refresh token came."""
        for key, kept in list(self._kept.items()):
            if refresh_token in (key, kept.tokens.refresh_token):
                self.drop(key)

    # -- when the store may have lost something --------------------------------------------

    def note_trouble(self) -> None:
        """Note that the store has failed: it may come back with less than it had."""
        self._noted_at = self._runtime.monotonic()

    @property
    def failed_at(self) -> float:
        """When the store last failed, by the monotonic clock, also if a second try went well."""
        return max(self._noted_at, getattr(self._store, "failed_at", -math.inf))

    async def is_trouble(self) -> bool:
        """Return True if the store may just have lost tokens that another process keeps.

        A token call with a refresh token that was used already may end the grant.
        """
        if self._runtime.monotonic() < self.failed_at + _TROUBLE:
            return True
        if self._newest not in self._kept:
            return await self._is_restoring()
        if not await self._is_lost(self._newest):
            return False
        self.note_trouble()
        await self.put_back()
        return True

    async def settled(self, find: Callable[[], Awaitable[T | None]]) -> T | None:
        """Wait until others have put back what the store may have lost.

        They notice that the store works again, as this process does, and begin at once. How long
        that takes them they tell.

        Args:
            find: looks if they have put back what is waited for; it is what shows, too, that the
                server which keeps that works.

        Returns:
            What `find` returns; None if it was not put back.

        Raises:
            UnavailableError: they are still at it.
        """
        now = began = since = last = self._runtime.monotonic()
        while now < began + _PATIENCE:
            if (found := await find()) is not None:
                return found
            is_restoring = await self._is_restoring()
            now = self._runtime.monotonic()
            # After a break another server may have taken over. And where one process has told that
            # it is done, another one that is not tells so in a moment.
            if is_restoring or now > last + _BREAK or last == began:
                since = now
            if now >= since + _OTHERS_BEGIN:
                return None
            last = now
            await self._runtime.sleep(_LOOK_EVERY)
        raise UnavailableError("tokens that the store has lost are being put back")

    async def _is_restoring(self) -> bool:
        return await self._store.get(_RESTORING) is not None

    async def _tell(self, *, is_over: bool) -> None:
        """Tell other processes that tokens are being put back, or are no longer."""
        self._told_at = self._runtime.monotonic()
        with suppress(StoreError):  # in a cluster the tokens may lie on another server
            if is_over:
                await self._store.delete(_RESTORING)
            else:
                await self._store.put(_RESTORING, b"1", _RESTORING_TTL)

    async def put_back(self) -> None:
        """Give the store all tokens again that it does not have."""
        await self._runtime.single_flight.do("put back", self._put_all_back)

    async def _put_all_back(self) -> None:
        began = self._runtime.monotonic()
        self._told_at = -math.inf
        count = left = 0
        # A server that takes another one's place lacks the last tokens first of all.
        for refresh_token, kept in reversed(list(self._kept.items())):
            try:
                if not kept.is_unsaved and not await self._is_lost(refresh_token):
                    continue
                if self._runtime.monotonic() > self._told_at + _RESTORING_EVERY:
                    await self._tell(is_over=False)
                if await self._put_back(refresh_token, kept):
                    count += 1
                elif await self._is_lost(refresh_token):  # another process holds the lease
                    left += 1
            except StoreError:  # a cluster has other servers, which may work
                self.note_trouble()
                left += 1
        if not left:
            self._checked_at = began
        if self._told_at > -math.inf:
            await self._tell(is_over=not left)
        if count:
            log("tokens_put_back", count=count)

    async def _is_lost(self, refresh_token: str) -> bool:
        kept = self._kept.get(refresh_token)
        if kept is None or kept.saved_at == math.inf:
            return False
        state = await self._grants.saved(refresh_token)
        if state.tokens is None:  # or encrypted with a secret key that this process does not have
            return state.stored is None or bool(state.failure)
        return state.tokens.access_token == kept.held.access_token

    async def _look(self) -> bool:
        """Look if the store still has what it took; return False once nothing is kept."""
        for key, kept in list(self._kept.items()):
            if self._is_over(kept):
                self.drop(key)
        if not self._kept:
            self._watch = None  # the next refresh starts another watch
            return bool(self._kept)
        try:
            await self._look_at_one_or_all()
        except StoreError:
            self.note_trouble()
        except Exception:
            log("watch_failed", exc_info=True)
        return True

    async def _look_at_one_or_all(self) -> None:
        if self.failed_at >= self._checked_at:
            await self.put_back()
            return
        now = self._runtime.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_IN_PEACE
        # A server that takes another one's place has all that came before some moment. So the
        # newest tells of all; but a cluster has several servers, so the others have a turn, too.
        everything = list(self._kept)
        self._turn += 1
        another = everything[self._turn // 2 % len(everything)]
        looked_at = another if self._turn % 2 else self._newest
        if any(kept.is_unsaved for kept in self._kept.values()) or await self._is_lost(looked_at):
            self.note_trouble()
            await self.put_back()


async def _look_if_alive(reference: weakref.ref[KeptTokens]) -> bool:
    """Look, unless the engine is gone: a watch that sleeps must not keep it alive."""
    kept = reference()
    return kept is not None and await kept._look()
