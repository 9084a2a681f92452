"""Notices that another server took over the store, and waits until lost tokens are put back.

The docstring of this folder explains why ("If the store loses what it has acknowledged").
"""

from __future__ import annotations

import json
import secrets
import weakref
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..errors import StoreError, UnavailableError
from ..events import log
from ..runtime.after_fork import after_fork
from .kept_tokens import take_each

if TYPE_CHECKING:
    from ..runtime.base import Repetition, Runtime
    from ..stores import SessionStore
    from .kept_tokens import KeptTokens

T = TypeVar("T")
State = dict[str, int]

_LOOK_EVERY = 0.25  # seconds between looks at the servers' epochs: at every second one in peace
_POLL_FIRST, _POLL_LAST = 0.05, 0.25  # seconds between looks at an epoch that is not settled
_PATIENCE = 4.5  # seconds that a refresh waits for that
_DEAD = 3.0  # seconds without a change after which the processes that are waited for count as dead
_WORKING = 1.0  # seconds after which a process that puts tokens back says that it is still at it
_RENEW_EVERY = 20.0  # seconds between two entries of a process among the keepers
_MISSED = 4  # entries of each other process that a process may miss before it counts as gone
_KEEPERS = "keepers"  # the key under which processes that may keep tokens are noted
_KEEPERS_TTL = 600.0
_EPOCH_TTL = 30 * 86_400.0
_OPENING = 5.0  # seconds that a process may take to write a record that is not there
_KIND = b"\x02"  # begins a record, as those of grants: it belongs to no user
_WORK = "+"  # in the record of an epoch: the entry that counts signs of life


class Failovers:
    """Knows which processes keep tokens, and which of them have put back what a server lost.

    Each process that is used enters itself among the **keepers**. When it sees a server's epoch
    that it does not know, it looks for the record of that epoch, or writes it, with the names of
    all keepers. Each of these puts back what it keeps, and removes its name. The epoch is
    **settled** when no name is left, or when those that are left do not move any more.

    Where a store has no epochs (`HasEpochs`), everything counts as settled.

    Attributes:
        has_epochs: False for such a store, for which nobody needs to `note_use`.
    """

    def __init__(self, runtime: Runtime, store: SessionStore, kept: KeptTokens) -> None:
        self._runtime = runtime
        self._store = store
        self._epochs: Callable[..., Awaitable[frozenset[str]]] | None
        self._epochs = getattr(store, "epochs", None)  # see HasEpochs
        self.has_epochs = self._epochs is not None
        self._kept = kept
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Start anew: the task or thread that looked was not forked."""
        self._name = secrets.token_hex(8)
        self._settled: set[str] = set()
        self._unsettled: set[str] = set()
        self._seen: dict[str, tuple[State, float]] = {}  # records of epochs, and since when
        self._exchanges: set[object] = set()
        self._leases: dict[str, str] = {}  # and their owners, to be given back
        self._under_way: dict[str, set[object]] = {}  # exchanges, when an epoch was first seen
        self._watch: Repetition | None = None
        self._is_used = self._has_complained = False
        self._renew_at = self._look_at = self._said_at = float("-inf")

    # -- what this process does --------------------------------------------------------------

    def note_use(self) -> bool:
        """Note a request: this process may soon keep tokens. Return True if it has to `enter`."""
        self._is_used = True
        return self._epochs is not None and (self._watch is None or self._watch.is_over)

    async def enter(self) -> None:
        """Enter this process among the keepers, and go on to look at the store."""
        self._is_used = True
        if self._epochs is not None:
            self.watch()
            if self._runtime.monotonic() >= self._renew_at:
                await self._runtime.run_beside("epochs", self._look)

    def watch(self) -> None:
        """Start to look at the store, unless that is done already."""
        if self._watch is None or self._watch.is_over:
            work = partial(_look_if_alive, weakref.ref(self))
            self._watch = self._runtime.repeat(_LOOK_EVERY, work)

    def release_later(self, key: str, owner: str) -> None:
        """Give a lease back when the store works again: others would wait for its owner."""
        self._leases[key] = owner
        self.watch()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count a token call, from the look that says it is safe until its tokens are saved."""
        call = object()
        self._exchanges.add(call)
        try:
            yield
        finally:
            self._exchanges.discard(call)

    async def close(self) -> None:
        """Leave the keepers: nobody waits for this process any longer."""
        if self._watch is not None:
            with suppress(StoreError):
                await self._leave()

    # -- before a token call -----------------------------------------------------------------

    async def is_settled(self, key: str) -> bool:
        """Return True if the server that has a key has all that was acknowledged, as far as may be.

        Call it after the key was read: a server that takes over later had no part in the answer.
        """
        return self._epochs is None or await self._epochs(key) <= self._settled

    async def wait(self, key: str, find: Callable[[], Awaitable[T | None]]) -> T | None:
        """Wait until others have put back what the store may have lost.

        Args:
            find: looks if they have put back what is waited for.

        Returns:
            What `find` returns; None if it was not put back.

        Raises:
            UnavailableError: they are still at it.
        """
        if self._epochs is None:
            return None
        self.watch()
        give_up_at = self._runtime.monotonic() + _PATIENCE
        pause = _POLL_FIRST
        while True:
            is_settled = True
            for epoch in await self._epochs(key) - self._settled:
                is_settled = await self._share(epoch) and is_settled
            if is_settled:
                return None
            if (found := await find()) is not None:
                return found
            if self._runtime.monotonic() > give_up_at:
                raise UnavailableError("tokens that the store has lost are being put back")
            await self._runtime.sleep(pause)
            pause = min(2 * pause, _POLL_LAST)

    # -- in the background -------------------------------------------------------------------

    async def _look(self) -> bool:
        """Look at the store; return False if there is nothing to look for any longer."""
        is_over = False
        try:
            # Of each by itself: what only an application's store raises may be about one record.
            for step in (self._kept.save_unsaved, self._release, self._look_at_all):
                try:
                    is_over = bool(await step())
                except StoreError:
                    raise
                except Exception:
                    log("watch_failed", exc_info=True)
                    is_over = False
        except StoreError:
            self._kept.note_trouble()
            return True
        if is_over:
            self._watch = None  # the next request, or refresh, starts another watch
        return not is_over

    async def _release(self) -> None:
        leases = list(self._leases.items())
        await take_each([partial(self._release_one, *entry) for entry in leases])

    async def _release_one(self, key: str, owner: str) -> None:
        await self._store.release(key, owner)
        if self._leases.get(key) == owner:
            del self._leases[key]

    async def _look_at_all(self) -> bool:
        if self._epochs is None:
            return not self._kept.holds_any() and not self._leases
        return await self._look_at_epochs(self._epochs)

    async def _look_at_epochs(self, epochs: Callable[..., Awaitable[frozenset[str]]]) -> bool:
        now = self._runtime.monotonic()
        if now < self._look_at and not self._unsettled:
            return False
        self._look_at = now + 1.5 * _LOOK_EVERY
        self._unsettled = set()
        found = await epochs()
        if not found and not self._has_complained:
            self._has_complained = True
            log("failovers_unseen")
        for epoch in found - self._settled:
            if not await self._share(epoch):
                self._unsettled.add(epoch)
        if now < self._renew_at:
            return False
        is_used, self._is_used = self._is_used or self._kept.holds_any(), False
        if is_used:
            await self._change(_KEEPERS, self._entered, _KEEPERS_TTL)
            self._renew_at = now + _RENEW_EVERY
        elif not self._unsettled:
            await self._leave()
            return True
        return False

    def _entered(self, keepers: State) -> State:
        # By counting, not by clocks, which differ: an entry is dropped when each other process
        # has renewed its own several times meanwhile.
        most = _MISSED * len(keepers)
        missed = {name: count + 1 for name, count in keepers.items() if count < most}
        return {**missed, self._name: 0}

    async def _leave(self) -> None:
        self._renew_at = float("-inf")
        await self._change(_KEEPERS, self._without_me, _KEEPERS_TTL)

    def _without_me(self, names: State) -> State:
        return _without({self._name}, names)

    # -- one epoch ---------------------------------------------------------------------------

    async def _share(self, epoch: str) -> bool:
        """Do as `_settle`, once for all that ask at one time."""
        is_settled: bool = await self._runtime.single_flight.do(
            f"epoch {epoch}", partial(self._settle, epoch)
        )
        return is_settled

    async def _settle(self, epoch: str) -> bool:
        """Do this process's part to settle an epoch; return True if it is settled."""
        key = f"epoch.{epoch}"
        before = self._under_way.setdefault(epoch, set(self._exchanges))
        state = await self._read(key) or await self._open(key)
        if self._name in state:
            before &= self._exchanges
            say = partial(self._say_working, key)
            if not await self._kept.put_back(say) or before:
                await say()
            else:
                state = await self._change(key, self._without_me, _EPOCH_TTL)
        names = state.keys() - {_WORK}
        if names and self._is_stuck(epoch, state):
            log("keepers_gone", count=len(names))
            # Those that live enter themselves again; for the others nobody waits the next time.
            await self._change(_KEEPERS, partial(_without, names), _KEEPERS_TTL)
            state = await self._change(
                key, lambda now: {_WORK: 0} if now == state else now, _EPOCH_TTL
            )
            names = state.keys() - {_WORK}
        if names:
            return False
        self._settled.add(epoch)
        self._seen.pop(epoch, None)
        self._under_way.pop(epoch, None)
        return True

    def _is_stuck(self, epoch: str, state: State) -> bool:
        """Return True if the processes that are waited for have not moved for some time."""
        now = self._runtime.monotonic()
        seen, since = self._seen.get(epoch, ({}, now))
        if seen != state:
            self._seen[epoch] = state, now
            return False
        return now > since + _DEAD

    async def _say_working(self, key: str) -> None:
        """Let others wait for longer: this process still puts tokens back."""
        now = self._runtime.monotonic()
        if now > self._said_at + _WORKING:
            self._said_at = now
            await self._change(
                key, lambda state: {**state, _WORK: state.get(_WORK, 0) + 1}, _EPOCH_TTL
            )

    async def _open(self, key: str) -> State:
        """Return the record of an epoch; write it, if it is still not there."""
        return await self._change(key, lambda state: state, _EPOCH_TTL, self._keepers)

    async def _keepers(self) -> State:
        keepers = await self._read(_KEEPERS) or {}
        return {_WORK: 0, **dict.fromkeys(keepers, 0)}

    # -- records -----------------------------------------------------------------------------

    async def _read(self, key: str) -> State | None:
        stored = await self._store.get(key)
        return None if stored is None else _load(stored)

    async def _change(
        self,
        key: str,
        change: Callable[[State], State],
        ttl: float,
        first: Callable[[], Awaitable[State]] | None = None,
    ) -> State:
        """Change a record, which processes may do at one time, and return it.

        Args:
            first: returns what is written if there is no record.
        """
        while True:
            stored = await self._store.get(key)
            if stored is None:
                await self._write_first(key, {} if first is None else await first(), ttl)
                continue
            state = _load(stored)
            changed = change(state)
            if changed == state or await self._store.replace(key, stored, _dump(changed), ttl):
                return changed

    async def _write_first(self, key: str, state: State, ttl: float) -> None:
        if not await self._store.acquire(key, self._name, _OPENING):
            await self._runtime.sleep(_POLL_FIRST)
            return
        try:
            if await self._store.get(key) is None:
                await self._store.put(key, _dump(state), ttl)
        finally:
            with suppress(StoreError):
                await self._store.release(key, self._name)


def _without(names: Collection[str], state: State) -> State:
    return {name: count for name, count in state.items() if name not in names}


def _dump(state: State) -> bytes:
    return _KIND + json.dumps(state, separators=(",", ":")).encode()


def _load(stored: bytes) -> State:
    state: State = json.loads(stored.removeprefix(_KIND))
    return state


async def _look_if_alive(reference: weakref.ref[Failovers]) -> bool:
    """Look, unless the engine is gone: a watch that sleeps must not keep it alive."""
    failovers = reference()
    return failovers is not None and await failovers._look()
