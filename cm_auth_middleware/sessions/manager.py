"""Sealed session records in a store: read, write, and change without losing a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import CMAuthConfig, seconds
from ..errors import StoreError, UnavailableError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from .encryption import Sealer, SessionInfo
from .record import Record, Session

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..stores import SessionStore
    from .cookie import Ticket

_TOUCH = 60.0  # seconds between two writes of "last seen"
_IDLE = 120.0  # seconds after which a record that nobody asks for is not kept open
STALE = 30.0  # seconds after which a session that is held is looked up before it is used again
_DENIED_TTL = 86_400.0  # seconds that a browser is told why its session ended
_GONE_TTL = 600.0  # seconds that refreshes under way can learn that a session was ended
_Opened = tuple[bytes, bytes, Record, float]  # half key, stored value, record, when to look again


class SessionManager:
    """The sessions of a store, as those who hold the tickets see them."""

    def __init__(self, config: CMAuthConfig, runtime: Runtime, store: SessionStore) -> None:
        self._runtime = runtime
        self._clock = runtime.clock
        self._idle = seconds(config.idle_timeout)
        self._absolute = seconds(config.absolute_timeout)
        self._touch_every = min(_TOUCH, self._idle / 10)
        self._owner = (config.client_id, config.scope)
        self.store = store
        self.sealer = Sealer(tuple(config.secret_key))
        # Records by the very bytes they were opened from, so none can outlive a change or a
        # logout: the store is asked every time.
        self._opened: BoundedCache[str, _Opened] = BoundedCache(
            lambda opened: opened[3] < self._clock() - _IDLE
        )
        self._unreadable: BoundedCache[str, bytes] = BoundedCache()

    async def read(self, ticket: Ticket, now: float) -> Session | None:
        """Return the live session of a ticket, or None; note once a minute that it is used."""
        key, cookie_key = ticket.record_id, ticket.cookie_key
        sealed = await self.store.get(key)
        known = self._opened.get(key)
        if sealed is None:
            if known is not None:
                self._opened.pop(key, None)
            return None
        if known is None or known[1] != sealed or known[0] != cookie_key:
            record = self.sealer.open_session(key, cookie_key, sealed)
            if record is None:
                await self._set_aside(key, sealed)
                return None
            if not self._is_ours(record):
                return None
            known = self._keep_opened(key, cookie_key, sealed, record)
            if not record.client_id:
                session = Session(key, cookie_key, record, self.sealer, now)
                await self.update(session, lambda opened: opened.owned_by(*self._owner))
                return session
        session = Session(key, cookie_key, known[2], self.sealer, now)
        if now >= known[3]:
            return await self._look_again(session)
        return session

    def _is_ours(self, record: Record) -> bool:
        """Return True for a session that this application opened, or one that shares its login.

        A session from before version 0.2 names no application; the first that reads it keeps it.
        """
        return not record.client_id or (record.client_id, record.scope) == self._owner

    def _open(self, key: str, cookie_key: bytes, sealed: bytes | None) -> Record | None:
        """Return the record of a session of ours; None for any other, and for none."""
        record = self.sealer.open_session(key, cookie_key, sealed) if sealed else None
        return record if record is not None and self._is_ours(record) else None

    async def _set_aside(self, key: str, sealed: bytes) -> None:
        """Delete what is nobody's session; leave what somebody else may be able to open."""
        if self._unreadable.get(key) != sealed:
            self._unreadable[key] = sealed
            log("session_unreadable", session=key[:8])
        if not self.sealer.may_be_anothers(sealed):
            await self.store.delete(key)

    async def _look_again(self, session: Session) -> Session | None:
        """End a session whose time is over; note that any other one is used."""
        if self.ttl(session.record) <= 0:
            await self.store.delete(session.record_id)
            return None
        await self.touch_if_due(session)
        return session

    async def touch_if_due(self, session: Session) -> None:
        """Note that a session is used, if that was not noted lately."""
        if self._runtime.clock() < session.record.last_seen_at + self._touch_every:
            return
        try:
            await self.touch(session)
        except StoreError as error:  # reads work, writes do not: the user need not notice
            log("touch_failed", session=session.reference, reason=error)

    async def touch(self, session: Session) -> None:
        """Note that a session is used, unless another request just did."""
        now = self._runtime.clock()
        due = now - self._touch_every
        await self.update(
            session, lambda record: record if record.last_seen_at > due else record.seen(now)
        )

    async def reseal(self, session: Session) -> None:
        """Seal a session with the newest secret key, unless another request just did."""
        key, cookie_key = session.record_id, session.cookie_key
        while True:
            old = await self.store.get(key)
            record = self._open(key, cookie_key, old)
            if old is None or record is None or self.sealer.is_current(old):
                return
            new = self.sealer.seal_session(key, cookie_key, record)
            if await self.store.replace(key, old, new, self.ttl(record)):
                self._keep_opened(key, cookie_key, new, record)
                return

    async def peek(self, key: str, cookie_key: bytes) -> Session | None:
        """Return the live session of a key without noting that it is used."""
        record = self._open(key, cookie_key, await self.store.get(key))
        if record is None or self.ttl(record) <= 0:
            return None
        return Session(key, cookie_key, record, self.sealer, self._runtime.clock())

    async def reload(self, session: Session) -> bool:
        """Bring a session up to date with the store; False if it is not there any more."""
        record = self._open(
            session.record_id, session.cookie_key, await self.store.get(session.record_id)
        )
        if record is None or self.ttl(record) <= 0:
            return False
        session.record = record
        session.checked_at = self._runtime.clock()
        return True

    async def create(self, ticket: Ticket, record: Record) -> Session:
        """Store a new session of this application."""
        record = record.owned_by(*self._owner)
        sealed = self.sealer.seal_session(ticket.record_id, ticket.cookie_key, record)
        await self.store.put(ticket.record_id, sealed, self.ttl(record))
        now = self._runtime.clock()
        return Session(ticket.record_id, ticket.cookie_key, record, self.sealer, now)

    async def update(self, session: Session, change: Callable[[Record], Record]) -> bool:
        """Apply `change` to the stored record; False if the session is not there any more.

        A logout, or another change, may come in between: nothing is written but over the very
        value that was read.
        """
        key, cookie_key = session.record_id, session.cookie_key
        while True:
            old = await self.store.get(key)
            record = self._open(key, cookie_key, old)
            if old is None or record is None:
                return False
            changed = change(record)
            if changed != record:
                new = self.sealer.seal_session(key, cookie_key, changed)
                if not await self.store.replace(key, old, new, self.ttl(changed)):
                    continue
                self._keep_opened(key, cookie_key, new, changed)
            session.record = changed
            session.checked_at = self._runtime.clock()
            return True

    async def save(self, session: Session) -> None:
        """Write back what a handler changed in ``session.data``; nothing if nothing changed."""
        changes = session.changes()
        if changes is not None:
            await self.update(session, lambda record: record.with_changes(changes))
            session.saved()

    async def remove(self, session: Session) -> Record:
        """Take the session out of the store; return its newest record."""
        sealed = await self.store.delete(session.record_id)
        self._opened.pop(session.record_id, None)
        session.ended = True
        if sealed is None:
            return session.record
        return self._open(session.record_id, session.cookie_key, sealed) or session.record

    def is_stale(self, session: Session) -> bool:
        """Return True if the store was not asked for a session lately."""
        return self._clock() - session.checked_at >= STALE

    async def mark_denied(self, session: Session) -> None:
        """Note that a session ends because the application no longer admits its user."""
        await self.store.put(f"denied.{session.record_id}", b"1", _DENIED_TTL)

    async def was_denied(self, ticket: Ticket) -> bool:
        """Return True if the session of a ticket ended in that way."""
        return await self.store.get(f"denied.{ticket.record_id}") is not None

    def ttl(self, record: Record) -> float:
        """Seconds that a record has left, of both timeouts."""
        return self._ends_at(record) - self._runtime.clock()

    # -- for an administrator --------------------------------------------------------------

    async def sessions_of(self, user_id: str) -> list[tuple[str, SessionInfo]]:
        """A user's sessions, by their keys, without opening any."""
        find = getattr(self.store, "find", None)
        if find is None:
            raise UnavailableError("this store cannot list sessions: it has no find()")
        found: dict[str, SessionInfo] = {}
        for prefix in self.sealer.user_prefixes(user_id):
            for key, sealed in await find(prefix):
                info = self.sealer.describe(key, sealed, user_id)
                if info is not None:
                    found[key] = info
        return sorted(found.items(), key=lambda entry: entry[1].last_seen_at, reverse=True)

    async def remove_all(self, user_id: str) -> int:
        """End a user's sessions; return how many there were."""
        ended = 0
        for key, _ in await self.sessions_of(user_id):
            await self.store.put(f"gone.{key}", b"1", _GONE_TTL)
            if await self.store.delete(key) is not None:
                ended += 1
        return ended

    async def was_ended(self, key: str) -> bool:
        """Whether an administrator ended a session a moment ago."""
        return await self.store.get(f"gone.{key}") is not None

    # -- inside ----------------------------------------------------------------------------

    def _ends_at(self, record: Record) -> float:
        return min(record.last_seen_at + self._idle, record.logged_in_at + self._absolute)

    def _keep_opened(self, key: str, cookie_key: bytes, sealed: bytes, record: Record) -> _Opened:
        due = min(self._ends_at(record), record.last_seen_at + self._touch_every)
        opened = self._opened[key] = (cookie_key, sealed, record, due)
        return opened
