"""The tokens that this process fetched lately, in case the store loses them.

The docstring of this folder explains why ("If the store loses what it has acknowledged").
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from sys import getsizeof
from typing import TYPE_CHECKING, NamedTuple

from ..errors import StoreError
from ..events import log
from ..runtime.after_fork import after_fork
from ..runtime.bounded_cache import BoundedCache
from ..sessions.record import size_in_memory

if TYPE_CHECKING:
    from ..runtime.base import Repetition, Runtime
    from ..sessions.record import Tokens
    from .grant_records import GrantRecords, GrantState

_KEPT = 60.0  # seconds that tokens are kept once they were saved
_LOOK_EVERY = 0.25  # seconds between looks at the store after trouble
_LOOK_IN_PEACE = 0.5  # the same without trouble
_AFTER_FAILURE = 0.8  # seconds without refreshes after the store failed: others put tokens back
_AFTER_LOSS = 4.0  # the same once a loss was found: a busy process needs seconds for many tokens


class Kept(NamedTuple):
    """Tokens that this process fetched.

    Attributes:
        held: the tokens in whose place they came.
        logout: the mark of a logout that was known then.
        saved_at: when the store took them, by the monotonic clock; infinite until it does.
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
        grants: GrantRecords,
        put_back: Callable[[str, Kept], Awaitable[bool]],
    ) -> None:
        self._runtime = runtime
        self._grants = grants
        self._put_back = put_back
        self._kept: BoundedCache[str, Kept] = BoundedCache(
            self._is_over, memory=runtime.cache_memory, size=_size
        )
        self._trouble_until = -math.inf
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

    def note_trouble(self, seconds: float = _AFTER_FAILURE) -> None:
        """Note that the store has failed: it may come back with less than it had."""
        until = self._runtime.monotonic() + seconds
        self._trouble_until = max(self._trouble_until, until)

    async def trouble(self) -> float:
        """Return the seconds to wait until others have put back what the store may have lost.

        A token call with a refresh token that was used already may end the grant.
        """
        is_calm = self._runtime.monotonic() >= self._trouble_until
        if is_calm and await self._is_lost(self._newest):
            self.note_trouble(_AFTER_LOSS)
            await self.put_back()
        return self._trouble_until - self._runtime.monotonic()

    async def put_back(self) -> None:
        """Give the store all tokens again that it does not have."""
        await self._runtime.single_flight.do("put back", self._put_all_back)

    async def _put_all_back(self) -> None:
        count = 0
        for refresh_token, kept in list(self._kept.items()):
            count += await self._put_back(refresh_token, kept)
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
        now = self._runtime.monotonic()
        if now >= self._look_at:
            try:
                await self._look_at_one()
            except StoreError:
                self.note_trouble()
            except Exception:
                log("watch_failed", exc_info=True)
            is_trouble = now < self._trouble_until + _KEPT
            self._look_at = now + (0 if is_trouble else _LOOK_IN_PEACE)
        return True

    async def _look_at_one(self) -> None:
        # A server that takes another one's place has all that came before some moment. So the
        # newest tells of all; but a cluster has several servers, so the others have a turn, too.
        everything = list(self._kept.items())
        self._turn += 1
        another = everything[self._turn % len(everything)][0]
        looked_at = another if self._turn % 2 else self._newest
        if any(kept.is_unsaved for _, kept in everything) or await self._is_lost(looked_at):
            self.note_trouble(_AFTER_LOSS)
            await self.put_back()


async def _look_if_alive(reference: weakref.ref[KeptTokens]) -> bool:
    """Look, unless the engine is gone: a watch that sleeps must not keep it alive."""
    kept = reference()
    return kept is not None and await kept._look()
