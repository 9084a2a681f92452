"""The tokens that this process fetched lately, in case the store loses them.

The docstring of this folder explains why ("If the store loses what it has acknowledged").
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StoreError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..sessions.record import size_in_memory

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..sessions.record import Tokens
    from .grant_records import GrantRecords, GrantState

_KEPT = 60.0  # seconds that tokens are kept once they were saved
_AFTER_FAILURE = 0.8  # seconds without refreshes after the store failed: others save tokens


class Kept(NamedTuple):
    """Tokens that this process fetched.

    Attributes:
        held: the tokens in whose place they came.
        logout: the mark of a logout that was known then.
        lease_owner: of the lease under which they were fetched. A server that takes over may know
            that lease, and not that it was given back.
        saved_at: when the store took them, by the monotonic clock; infinite until it does.
        is_unsaved: True once it was given up to save them, because the store fails.
    """

    held: Tokens
    tokens: Tokens
    logout: bytes | None
    lease_owner: str
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

    def _is_over(self, kept: Kept) -> bool:
        return self._runtime.monotonic() - kept.saved_at > _KEPT

    # -- keeping ---------------------------------------------------------------------------

    def keep(self, refresh_token: str, kept: Kept) -> None:
        """Keep the tokens that a refresh token was exchanged for."""
        self._kept[refresh_token] = kept

    def holds_any(self) -> bool:
        """Return True if any tokens are kept."""
        for key, kept in list(self._kept.items()):
            if self._is_over(kept):
                self.drop(key)
        return bool(self._kept)

    def note_saved(self, refresh_token: str) -> None:
        """Note that the store has the tokens now."""
        kept = self._kept.get(refresh_token)
        if kept is not None:
            now = self._runtime.monotonic()
            self._kept[refresh_token] = kept._replace(saved_at=now, is_unsaved=False)

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

    # -- when the store has failed, or may have lost something --------------------------------

    def note_trouble(self) -> None:
        """Note that the store has failed: another process may have tokens that it could not save.

        A token call with a refresh token that was used already may end the grant.
        """
        self._trouble_until = self._runtime.monotonic() + _AFTER_FAILURE

    def trouble(self) -> float:
        """Return the seconds to wait until such tokens are saved; negative after that."""
        return self._trouble_until - self._runtime.monotonic()

    async def save_unsaved(self) -> None:
        """Save the tokens that the store did not take.

        Raises:
            StoreError: it still fails.
            Exception: what a store of an application's own raises, after all were tried.
        """
        unsaved = [entry for entry in list(self._kept.items()) if entry[1].is_unsaved]
        await take_each([partial(self._put_back, *entry) for entry in unsaved])

    async def put_back(self, progress: Callable[[], Awaitable[None]]) -> bool:
        """Give the store all tokens again that it has lost.

        Args:
            progress: is called between the tokens.

        Returns:
            False if another process holds the lease of some: try again.
        """
        is_complete, count = True, 0
        # What was saved last is lost first.
        for refresh_token, kept in reversed(list(self._kept.items())):
            if await self._is_lost(refresh_token):
                if await self._put_back(refresh_token, kept):
                    count += 1
                elif await self._is_lost(refresh_token):
                    is_complete = False
                await progress()
        if count:
            log("tokens_put_back", count=count)
        return is_complete

    async def _is_lost(self, refresh_token: str) -> bool:
        kept = self._kept.get(refresh_token)
        if kept is None or kept.saved_at == math.inf:
            return False
        state = await self._grants.saved(refresh_token)
        if state.tokens is None:  # or encrypted with a secret key that this process does not have
            return state.stored is None or bool(state.failure)
        return state.tokens.access_token == kept.held.access_token


async def take_each(steps: Iterable[Callable[[], Awaitable[Any]]]) -> None:
    """Take steps one after the other, also those after one that fails by itself.

    Raises:
        StoreError: by the first step that the store fails at: so it would at the others.
        Exception: by the last step that raised what only an application's store does, which may be
            about one record, after all were taken.
    """
    failure: Exception | None = None
    for step in steps:
        try:
            await step()
        except StoreError:
            raise
        except Exception as error:
            failure = error
    if failure is not None:
        raise failure
