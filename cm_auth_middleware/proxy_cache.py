"""Answers of the API that a proxy keeps for some seconds, for all sessions of an account.

CameraManager makes a snapshot when it is asked for one, limits how many it makes at once, and says
that clients have to cache them. So one call serves all who ask while it is under way, and all who
ask in the seconds after it. Libraries that keep HTTP responses (hishel, CacheControl,
requests-cache, httpx-cache) join no calls under way, and know neither accounts nor logouts.

**Who may be given it.** Users of one account need not have the same rights, and only CameraManager
knows them. So a user is given what another user's call has brought only if CameraManager itself has
answered the same path and query to this user, by 200, in the last minute (`_MAY_READ`). Until then
the user's own token asks. A user who is refused gets this refusal, and is given nothing kept.

**What is shared.** Only pictures (``image/*``). Other answers, such as a list of cameras, may
differ from user to user although each of them may read it: they are kept for one user alone, and so
is what CameraManager calls ``private``, or says to depend on the token (``Vary: Authorization``).

Where an account may be at one of several hosts of the API, each host is an account here: what one
has answered is not given for another one, and an account that moves begins anew.

**How long.** For as many seconds as the application says, whatever Cache-Control says: Spring puts
``no-store`` on every answer. What has become too old is dropped within a second.

**Not past a logout.** `_Account.holders` are the sessions that have asked lately in this process.
When the last of them ends in this process, everything of the account is dropped, and a call under
way leaves nothing behind. Of a logout in another process this one hears nothing. But each request
is one of a living session; and a session that has not asked here before is given what is kept only
if the store still has one of the holders. So no answer reaches a session that began after all those
had ended which it was kept for.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from sys import getsizeof
from typing import TYPE_CHECKING, NamedTuple

import httpx2

from .errors import CMAuthError, UnavailableError
from .runtime.after_fork import after_fork
from .runtime.base import UnderWayError
from .runtime.bounded_cache import BoundedCache

if TYPE_CHECKING:
    from .runtime.base import Repetition, Runtime
    from .sessions.manager import SessionManager
    from .sessions.session import Session

MOST_KEPT = 4_000_000  # bytes of a body that is kept
_MAY_READ = 60.0  # seconds that a user is known to be allowed to read a path
_TOO_LARGE = 60.0  # seconds that a path is known to have answers that cannot be shared
_SWEEP_EVERY = 1.0  # seconds between two looks for answers that are too old
_IDLE = 60.0  # seconds, at least, without a request after which a session counts no longer


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """An answer of the API, whole.

    Attributes:
        headers: those that the browser gets.
        is_for_all: True if it may be given to other users of the account.
        may_be_kept: False if only those get it who wait for it.
        age: the seconds that it had been kept by a cache before this one.
        came_at: when it came (epoch seconds).
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_for_all: bool
    may_be_kept: bool
    age: int
    came_at: float
    etag: str = ""
    last_modified: str = ""


class Given(NamedTuple):
    """An answer as it is given to a request, with its age in seconds; None if it is new."""

    answer: Answer
    age: int | None


class _Kept(NamedTuple):
    answer: Answer
    seconds: float

    def is_fresh(self, now: float) -> bool:
        """Return True if it may still be given. A clock that was set back makes it too old."""
        return 0 <= now - self.answer.came_at < self.seconds


def _size(kept: _Kept) -> int:
    answer = kept.answer
    headers = sum(getsizeof(name) + getsizeof(value) for name, value in answer.headers)
    return getsizeof(answer.body) + headers + 500


@dataclass(slots=True, eq=False)
class _Account:
    """What this process knows of an account with answers that are kept, or under way.

    Attributes:
        number: stands for it in keys; another one when the account is begun anew.
        holders: by the record ids of the sessions that have asked lately, when they did last
            (monotonic).
    """

    name: str
    number: int
    holders: dict[str, float] = field(default_factory=dict)
    is_over: bool = False


class _Outcome(NamedTuple):
    """The outcome of a call that several requests may have waited for.

    Attributes:
        answer: None if it cannot be shared.
    """

    session: str
    user: str
    answer: Answer | None = None
    error: Exception | None = None

    def is_for(self, session: str, user: str) -> bool:
        """Return True if it answers a request of this session, too.

        Another user gets no refusal that was meant for the one whose token asked; but a server that
        cannot be reached, or is too busy, is so for all.
        """
        if self.session == session:
            return True
        if self.error is not None:
            return isinstance(self.error, httpx2.HTTPError)
        if self.user == user or self.answer is None:
            return True
        status = self.answer.status
        return self.answer.is_for_all if status == 200 else status == 429 or status >= 500


class ProxyCache:
    """Keeps the answers to one proxy, on one side of an engine.

    Args:
        longest: the most seconds that an answer is kept.
    """

    def __init__(self, runtime: Runtime, sessions: SessionManager, longest: float) -> None:
        self._runtime = runtime
        self._sessions = sessions
        self._idle = max(_IDLE, longest)
        self._numbers = itertools.count()
        memory = runtime.cache_memory
        self._answers: BoundedCache[str, _Kept] = BoundedCache(
            self._is_old, memory=memory, size=_size
        )
        # By user and path, and by path.
        self._may_read_until: BoundedCache[str, float] = BoundedCache(memory=memory)
        self._too_large_until: BoundedCache[str, float] = BoundedCache(memory=memory)
        sessions.on_end.append(self._forget)
        self.after_fork()
        after_fork(self)

    def after_fork(self) -> None:
        """Start anew: the parent does not tell this process which sessions end."""
        self._lock = threading.RLock()
        self._accounts: dict[str, _Account] = {}
        self._account_of: dict[str, _Account] = {}  # by record id
        self._watch: Repetition | None = None

    def _is_old(self, kept: _Kept) -> bool:
        return not kept.is_fresh(self._runtime.clock())

    # -- a request -------------------------------------------------------------------------

    async def ask(
        self,
        session: Session,
        target: str,
        seconds: float,
        fetch: Callable[[], Awaitable[Answer | None]],
    ) -> Given | None:
        """Return what is kept, or what `fetch` brings; None if that cannot be shared.

        Args:
            target: the path and query, and what else the answer depends on, on two lines.
            seconds: that the answer is kept.
            fetch: calls the API for this session. It returns None if the answer is too
                large, or is for this request alone.

        Raises:
            Exception: what `fetch` raises for this session.
            httpx2.HTTPError: the API cannot be reached.
            UnderWayError: between threads, the call of another request takes long.
        """
        record_id = session.record_id
        account, user = await self._join(session), self._user(session)
        is_mine = False

        async def call() -> _Outcome:
            nonlocal is_mine
            kept = self._find(account, user, target)  # it may have come a moment ago
            if kept is not None:
                return _Outcome("", user, kept)
            is_mine = True
            return await self._call(account, session, user, (target, seconds), fetch)

        # If the call that this request joins fails for a reason that is that user's own, another
        # one is joined, and then one that no other session shares.
        for attempt in range(3):
            kept = self._find(account, user, target)
            if kept is not None:
                return Given(kept, self._age(kept))
            if self._runtime.clock() < self._too_large_until.get(f"{target}\n{account.name}", 0):
                return None
            sharing = "all" if self._may_read(user, target) else user
            sharing = f"session {record_id}" if attempt == 2 else sharing
            key = f"answer {id(self)} {account.number} {target}\n{sharing}"
            try:
                outcome: _Outcome = await self._runtime.single_flight.do_impatiently(key, call)
            except UnderWayError as error:
                session.client_error = error  # as the client itself notes its errors
                raise
            if outcome.is_for(record_id, user):
                break
        if outcome.error is not None:
            if isinstance(outcome.error, CMAuthError):
                session.client_error = outcome.error
            raise outcome.error.with_traceback(None)
        answer = outcome.answer
        if answer is None:
            return None
        return Given(answer, None if is_mine else self._age(answer))

    async def _call(
        self,
        account: _Account,
        session: Session,
        user: str,
        what: tuple[str, float],
        fetch: Callable[[], Awaitable[Answer | None]],
    ) -> _Outcome:
        target, seconds = what
        try:
            answer = await fetch()
        except Exception as error:
            if not isinstance(error, httpx2.HTTPError | UnavailableError):
                self._may_read_until.pop(f"{target}\n{user}", None)
            return _Outcome(session.record_id, user, error=error)
        if answer is None:
            until = self._runtime.clock() + _TOO_LARGE
            self._too_large_until[f"{target}\n{account.name}"] = until
        elif answer.status == 200:
            self._keep(account, user, target, _Kept(answer, seconds))
        elif answer.status != 429 and answer.status < 500:
            self._may_read_until.pop(f"{target}\n{user}", None)
        return _Outcome(session.record_id, user, answer)

    def _age(self, answer: Answer) -> int:
        return answer.age + max(0, int(self._runtime.clock() - answer.came_at))

    # -- what is kept ----------------------------------------------------------------------

    def _find(self, account: _Account, user: str, target: str) -> Answer | None:
        """Return the answer that is kept for a user, if there is one."""
        now = self._runtime.clock()
        kept = self._answers.get(_key(account, target, user))
        if kept is not None and kept.is_fresh(now):
            return kept.answer
        kept = self._answers.get(_key(account, target))
        if kept is not None and kept.is_fresh(now) and self._may_read(user, target):
            return kept.answer
        return None

    def _may_read(self, user: str, target: str) -> bool:
        until = self._may_read_until.get(f"{target}\n{user}", 0.0)
        return 0 <= until - self._runtime.clock() <= _MAY_READ

    def _keep(self, account: _Account, user: str, target: str, kept: _Kept) -> None:
        with self._lock:
            if account.is_over:
                return  # its last session has ended meanwhile
            if kept.answer.is_for_all:
                self._may_read_until[f"{target}\n{user}"] = self._runtime.clock() + _MAY_READ
            if kept.answer.may_be_kept:
                owner = "" if kept.answer.is_for_all else user
                self._answers[_key(account, target, owner)] = kept

    def sweep(self) -> bool:
        """Drop what is too old; return False once nothing is left."""
        with self._lock:
            for key, kept in list(self._answers.items()):
                if self._is_old(kept):
                    self._answers.pop(key, None)
            idle = self._runtime.monotonic() - self._idle
            for account in list(self._accounts.values()):
                for record_id, asked_at in list(account.holders.items()):
                    if asked_at < idle:
                        self._forget(record_id)
            if not self._accounts:
                self._watch = None  # the next request starts another one
            return bool(self._accounts)

    # -- sessions --------------------------------------------------------------------------

    async def _join(self, session: Session) -> _Account:
        """Return the account of a session, which becomes one of its holders."""
        record_id, name = session.record_id, self._account_name(session)
        known = self._accounts.get(name)
        is_new = known is not None and record_id not in known.holders
        if known is not None and is_new and not await self._is_held(known):
            self._drop(known)
        with self._lock:
            account = self._accounts.get(name)
            if account is None:
                account = self._accounts[name] = _Account(name, next(self._numbers))
            if self._account_of.get(record_id) is not account:
                self._forget(record_id)  # the user was in another one
                self._account_of[record_id] = account
            account.holders[record_id] = self._runtime.monotonic()
            if self._watch is None or self._watch.is_over:
                work = partial(_sweep_if_alive, weakref.ref(self))
                self._watch = self._runtime.repeat(_SWEEP_EVERY, work)
        return account

    async def _is_held(self, account: _Account) -> bool:
        """Return True if the store still has a session that has asked here."""
        try:
            for record_id in list(account.holders)[::-1]:
                if await self._sessions.store.get(record_id) is not None:
                    return True
                self._forget(record_id)
        except UnavailableError:
            return False
        return False

    def _forget(self, record_id: str) -> None:
        """Note that a session has ended."""
        with self._lock:
            account = self._account_of.pop(record_id, None)
            if account is not None:
                account.holders.pop(record_id, None)
                if not account.holders:
                    self._drop(account)

    def _drop(self, account: _Account) -> None:
        """Drop everything of an account."""
        with self._lock:
            account.is_over = True
            if self._accounts.get(account.name) is account:
                del self._accounts[account.name]
            for record_id in account.holders:
                if self._account_of.get(record_id) is account:
                    del self._account_of[record_id]
            for key in list(self._answers):
                if key.startswith(f"{account.number}\n"):
                    self._answers.pop(key, None)

    def _account_name(self, session: Session) -> str:
        account = session.user.get("accountId")
        if isinstance(account, int | str) and not isinstance(account, bool) and account != "":
            return f"account {account} {session.record.tokens.api_base}"
        return self._user(session)

    def _user(self, session: Session) -> str:
        user = self._sessions.sealer.user_id(session.record)
        if user in ("", "None"):
            return f"session {session.record_id}"
        return f"user {user} {session.record.tokens.api_base}"


def _key(account: _Account, target: str, user: str = "") -> str:
    """Return the key of an answer: for one user, or for all of the account.

    A line break is in no path and in no header, so no request can name the key of another one.
    """
    return f"{account.number}\n{target}\n{user}"


async def _sweep_if_alive(reference: weakref.ref[ProxyCache]) -> bool:
    """Sweep, unless the proxy is gone: a watch that sleeps must not keep it alive."""
    cache = reference()
    return cache is not None and cache.sweep()
