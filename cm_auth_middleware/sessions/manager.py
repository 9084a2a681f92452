"""The sessions of one application: loaded by a request's cookies, and changed in the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from ..audit_log import audit
from ..errors import SessionExpiredError, StoreError, UnavailableError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..stores import method_of
from .encryption import USERS, Sealer
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runtime.base import Runtime
    from ..stores import SessionStore
    from ..web.request import Request
    from .cookie import SessionCookie, Ticket
    from .record import Record, SessionInfo

STALE = 30.0  # seconds after which a session that is held is looked up before it is used again
_MOST_OPENED = 16_384  # bytes of a stored value whose record is kept decrypted
_PARTS = 1_200  # bytes of memory that the objects of a record take beside its text, about
_TOUCH = 60.0  # seconds between two writes of "last seen"
_IDLE = 120.0  # seconds without a request after which an opened record is forgotten
_DENIED_TTL = 86_400.0  # seconds that a browser is told why its session ended
_GONE_TTL = 600.0  # seconds that refreshes under way can learn that a session was ended


@dataclass(slots=True)
class _Opened:
    """A record and the stored value that it was decrypted from.

    Attributes:
        due: when the record has ended, or is to be marked as used (epoch seconds).
    """

    sealed: bytes
    cookie_key: bytes
    record: Record
    due: float


def user_order(user_id: str) -> tuple[int, str]:
    """Return what users are sorted by: numbers of the same length are sorted as text."""
    return len(user_id), user_id


def _size(opened: _Opened) -> int:
    """Return the bytes that a record takes in memory, about: once sealed, and once in parts."""
    return 2 * len(opened.sealed) + _PARTS


class SessionManager:
    """Loads, creates, changes and deletes sessions.

    Args:
        cookie: the session cookie, by which a request names its session.
        secret_keys: from oldest to newest: the newest seals, all open.
        user_id_field: the member of a user that identifies them.
        idle_timeout: seconds after which an unused session ends.
        absolute_timeout: seconds after its login when any session ends.
        owner: the application's ``client_id`` and ``scope``; sessions of others are not loaded.

    Attributes:
        on_end: called with the record id of each session that ends in this process, or is found to
            have ended.
    """

    def __init__(
        self,
        store: SessionStore,
        cookie: SessionCookie,
        secret_keys: Sequence[str],
        *,
        user_id_field: str,
        idle_timeout: float,
        absolute_timeout: float,
        owner: tuple[str, str],
        runtime: Runtime,
    ) -> None:
        self.store = store
        self.is_at_hand = getattr(store, "is_at_hand", False)  # True for a store that never waits
        self.cookie = cookie
        self.sealer = Sealer(secret_keys, user_id_field)
        self._clock = runtime.clock
        self._idle = idle_timeout
        self._absolute = absolute_timeout
        self._owner = owner
        self._touch_every = min(_TOUCH, idle_timeout / 10)
        # Decrypted records, for as long as the store still holds the very same bytes. The store is
        # asked every time, so no change and no logout is missed.
        self._opened: BoundedCache[str, _Opened] = BoundedCache(
            lambda opened: opened.due < self._clock() - _IDLE,
            memory=runtime.cache_memory,
            size=_size,
        )
        self.on_end: list[Callable[[str], None]] = []
        # By record id, a hash of the stored value that was logged.
        self._unreadable: BoundedCache[str, int] = BoundedCache(memory=runtime.cache_memory)

    # -- which session is this? ------------------------------------------------------------

    async def load(self, request: Request) -> Session | None:
        """Return the live session that a request's cookies open; None if there is none.

        Once a minute it is stored that the session is used. Where an older secret key signed the
        cookie, record and cookie are renewed: the cookie by the request's ``set_cookies``.

        Raises:
            UnavailableError: the store cannot be asked.
        """
        now = self._clock()
        for ticket, is_old in self.cookie.read(request):
            record_id, cookie_key = ticket.record_id, ticket.cookie_key
            sealed = await self.store.get(record_id)
            opened = self._opened.get(record_id)
            if opened is None or opened.sealed != sealed or opened.cookie_key != cookie_key:
                opened = await self._open(record_id, cookie_key, sealed)
                if opened is None:
                    continue
            session = Session(record_id, cookie_key, opened.record, self.sealer, now)
            if now >= opened.due and not await self._expire_or_touch(session):
                continue
            if is_old:
                await self.update(session, lambda record: record)  # seals it by the newest key
                request.set_cookies.append(self.cookie.set(request, ticket, session.logged_in_at))
            return session
        return None

    async def load_untouched(self, request: Request) -> Session | None:
        """Return the live session of a request, without counting the request as a use of it."""
        for ticket, _ in self.cookie.read(request):
            session = await self.load_record(ticket.record_id, ticket.cookie_key)
            if session is not None:
                return session
        return None

    async def load_all(self, request: Request) -> list[Session]:
        """Return each live session of a request, without counting it as a use.

        There may be several on http, where a neighbouring host can set a cookie of our name.
        """
        tickets = {ticket.record_id: ticket.cookie_key for ticket, _ in self.cookie.read(request)}
        loaded = [await self.load_record(*ticket) for ticket in tickets.items()]
        return [session for session in loaded if session is not None]

    async def load_record(self, record_id: str, cookie_key: bytes) -> Session | None:
        """Return the live session of a record, without storing that it is used; else None."""
        _, record = await self._load(record_id, cookie_key)
        if record is None or self.ttl(record) <= 0:
            return None
        return Session(record_id, cookie_key, record, self.sealer, self._clock())

    async def open_handle(self, handle: str) -> Session:
        """Return the live session of a handle that `Session.export` made.

        Raises:
            SessionExpiredError: it is over, or another application made the handle.
            UnavailableError: the store cannot be asked.
        """
        opened = self.sealer.open_handle(handle)
        session = None if opened is None else await self.load_record(*opened)
        if session is None:
            raise SessionExpiredError("the session of this handle is over; the user has to log in")
        session.is_detached = True
        return session

    async def reload(self, session: Session) -> bool:
        """Bring a session up to date with the store; return False if it is over."""
        stored = await self.load_record(session.record_id, session.cookie_key)
        if stored is None:
            return False
        session.record, session.checked_at = stored.record, stored.checked_at
        return True

    def is_stale(self, session: Session) -> bool:
        """Return True if the store was not asked for a session in the last 30 seconds."""
        return self._clock() - session.checked_at >= STALE

    def ttl(self, record: Record) -> float:
        """Return the seconds until a record ends, by the timeout that comes first."""
        return self._ends_at(record) - self._clock()

    # -- changes ---------------------------------------------------------------------------

    async def create(self, ticket: Ticket, record: Record) -> Session:
        """Store a new session of this application, and its user's entry in the list of users."""
        record = self._owned(record)
        sealed = self.sealer.seal_session(ticket.record_id, ticket.cookie_key, record)
        # The entry first: a session without one would be in no list.
        await self._put_all(
            [*self._user_entry(record), (ticket.record_id, sealed, self.ttl(record))]
        )
        return Session(ticket.record_id, ticket.cookie_key, record, self.sealer, self._clock())

    async def update(self, session: Session, change: Callable[[Record], Record]) -> bool:
        """Apply `change` to the stored record; return False if the session is not there any more.

        The record is replaced only if it is still the one that was read, so a logout or another
        change in between is never undone. A record that an older secret key sealed is sealed anew
        even if nothing changes.
        """
        record_id, cookie_key = session.record_id, session.cookie_key
        known = self._opened.get(record_id)
        if known is not None and known.record is not session.record:
            known = None  # else read a moment ago: the store says if it still has it
        while True:
            old, record = (
                (known.sealed, known.record) if known else await self._load(record_id, cookie_key)
            )
            if old is None or record is None:
                return False
            changed = change(record)
            is_known, known = known is not None, None
            if changed != record or not self.sealer.is_current(old):
                new = self.sealer.seal_session(record_id, cookie_key, changed)
                if not await self.store.replace(record_id, old, new, self.ttl(changed)):
                    continue
                self._keep_opened(record_id, cookie_key, new, changed)
            elif is_known:
                continue
            session.record = changed
            session.checked_at = self._clock()
            return True

    async def save(self, session: Session) -> None:
        """Store the changes that a handler made in ``session.data``, if there are any."""
        changes = session.changes()
        if changes is not None:
            await self.update(session, lambda record: record.with_changes(changes))
            session.mark_saved()

    async def touch_if_due(self, session: Session) -> None:
        """Store that a session is used, if that was not done in the last minute."""
        now = self._clock()
        due = now - self._touch_every
        if session.record.last_seen_at > due:
            return

        def seen(record: Record) -> Record:
            # Another request may have stored it since this one read the record.
            return record if record.last_seen_at > due else replace(record, last_seen_at=now)

        try:
            await self.update(session, seen)
        except StoreError as error:  # it can be read but not written: the user need not notice
            log("touch_failed", session=session.log_id, reason=error)

    async def delete(self, session: Session) -> tuple[Record, bool]:
        """Delete a session's record; return its newest version, and True if it was there."""
        sealed = await self.store.delete(session.record_id)
        self._forget(session.record_id)
        session.ended = True
        record = self._record(session.record_id, session.cookie_key, sealed)
        return record or session.record, sealed is not None

    # -- sessions of users who may no longer come in ---------------------------------------

    async def mark_denied(self, session: Session) -> None:
        """Note that a session ends because the application no longer admits its user."""
        await self.store.put(f"denied.{session.record_id}", b"1", _DENIED_TTL)

    async def was_denied(self, request: Request) -> bool:
        """Return True if the session of a request ended in that way."""
        for ticket, _ in self.cookie.read(request):
            if await self.store.get(f"denied.{ticket.record_id}") is not None:
                return True
        return False

    # -- for an administrator --------------------------------------------------------------

    def audit(self, event: str, session: Session, address: str = "", **fields: str) -> None:
        """Write an event of a session into the audit log.

        Args:
            address: of the request that caused it; that of the login if there was none.
        """
        record = session.record
        audit(
            event,
            self.sealer.user_id(record),
            address=address or record.address,
            session=session.log_id,
            **fields,
        )

    async def list_user(self, record: Record) -> None:
        """Enter the user of a session into the list of users, for as long as it may live."""
        await self._put_all(self._user_entry(record))

    async def users(self, email: str | None) -> list[str]:
        """Return the ids of the users in the list: of all, or of those with an e-mail address.

        They are sorted as numbers are. Some may have no session any more.

        Raises:
            UnavailableError: the store fails, or is of a kind that cannot list.
        """
        prefixes = [USERS] if email is None else self.sealer.email_prefixes(email)
        entries = [entry for prefix in prefixes for entry in await self._find(prefix)]
        ids = {self.sealer.open_user(*entry) for entry in entries} - {None}
        return sorted(cast("set[str]", ids), key=user_order)

    async def sessions_of(self, user_id: str) -> list[tuple[str, SessionInfo]]:
        """Return a user's sessions by their record ids, without opening any.

        Raises:
            UnavailableError: the store fails, or is of a kind that cannot list.
        """
        found: dict[str, SessionInfo] = {}
        for prefix in self.sealer.user_prefixes(user_id):
            for record_id, sealed in await self._find(prefix):
                info = self.sealer.describe(record_id, sealed, user_id)
                if info is not None:
                    found[record_id] = info
        return sorted(found.items(), key=lambda entry: entry[1].last_seen_at, reverse=True)

    async def delete_all(self, user_id: str) -> int:
        """Delete a user's sessions; return how many there were."""
        deleted = 0
        for record_id, _ in await self.sessions_of(user_id):
            await self.store.put(f"gone.{record_id}", b"1", _GONE_TTL)
            if await self.store.delete(record_id) is not None:
                deleted += 1
            self._forget(record_id)
        if deleted:
            audit("logout_everywhere", user_id, sessions=deleted)
        return deleted

    async def was_ended(self, record_id: str) -> bool:
        """Return True if an administrator ended a session in the last ten minutes."""
        return await self.store.get(f"gone.{record_id}") is not None

    # -- inside ----------------------------------------------------------------------------

    def _user_entry(self, record: Record) -> list[tuple[str, bytes, float]]:
        """Return what to store of a session's user; nothing in a store that cannot list users."""
        if not hasattr(self.store, "find"):
            return []
        return [(*self.sealer.seal_user(record), self._absolute)]

    async def _put_all(self, records: list[tuple[str, bytes, float]]) -> None:
        """Store records, in one step if the store can do that."""
        put_all = method_of(self.store, "put_all")
        if put_all is not None and len(records) > 1:
            await put_all(records)
            return
        for record in records:
            await self.store.put(*record)

    async def _find(self, prefix: bytes) -> list[tuple[str, bytes]]:
        find = getattr(self.store, "find", None)
        if find is None:
            raise UnavailableError("this store cannot list sessions: it has no find()")
        found: list[tuple[str, bytes]] = await find(prefix)
        return found

    async def _load(self, record_id: str, cookie_key: bytes) -> tuple[bytes | None, Record | None]:
        """Return the stored value, and its record if it is a session of this application."""
        sealed = await self.store.get(record_id)
        known = self._opened.get(record_id)
        if known is not None and known.sealed == sealed and known.cookie_key == cookie_key:
            return sealed, known.record
        return sealed, self._record(record_id, cookie_key, sealed)

    def _record(self, record_id: str, cookie_key: bytes, sealed: bytes | None) -> Record | None:
        record = self.sealer.open_session(record_id, cookie_key, sealed) if sealed else None
        return record if record is not None and self._is_own(record) else None

    def _is_own(self, record: Record) -> bool:
        """Return True for a session that this application opened, or one that shares its login.

        A session from before version 0.2 names no application; the first that reads it keeps it.
        """
        return not record.client_id or (record.client_id, record.scope) == self._owner

    def _owned(self, record: Record) -> Record:
        """Return the same session as one of this application."""
        client_id, scope = self._owner
        return replace(record, client_id=client_id, scope=scope)

    async def _open(
        self, record_id: str, cookie_key: bytes, sealed: bytes | None
    ) -> _Opened | None:
        """Decrypt a stored value and remember its record; return None if it cannot be used."""
        if sealed is None:
            self._forget(record_id)
            return None
        record = self.sealer.open_session(record_id, cookie_key, sealed)
        if record is None:
            await self._discard_unreadable(record_id, sealed)
            return None
        if not self._is_own(record):
            return None
        if not record.client_id:
            session = Session(record_id, cookie_key, record, self.sealer)
            if not await self.update(session, self._owned):
                return None
            record = session.record
        return self._keep_opened(record_id, cookie_key, sealed, record)

    async def _discard_unreadable(self, record_id: str, sealed: bytes) -> None:
        """Delete a damaged record, but keep one sealed with a key that this process lacks."""
        if self._unreadable.get(record_id) != hash(sealed):
            self._unreadable[record_id] = hash(sealed)
            log("session_unreadable", session=record_id[:8])
        if not self.sealer.is_from_unknown_key(sealed):
            await self.store.delete(record_id)

    async def _expire_or_touch(self, session: Session) -> bool:
        """Delete a session that has ended and return False; store that another one is used."""
        if self.ttl(session.record) <= 0:
            await self.store.delete(session.record_id)
            self._forget(session.record_id)
            return False
        await self.touch_if_due(session)
        return True

    def _forget(self, record_id: str) -> None:
        """Drop what is kept of a session that has ended."""
        self._opened.pop(record_id, None)
        for note in self.on_end:
            note(record_id)

    def _ends_at(self, record: Record) -> float:
        return min(record.last_seen_at + self._idle, record.logged_in_at + self._absolute)

    def _keep_opened(
        self, record_id: str, cookie_key: bytes, sealed: bytes, record: Record
    ) -> _Opened:
        due = min(self._ends_at(record), record.last_seen_at + self._touch_every)
        opened = _Opened(sealed, cookie_key, record, due)
        if len(sealed) <= _MOST_OPENED:
            self._opened[record_id] = opened
        else:
            self._opened.pop(record_id, None)
        return opened
