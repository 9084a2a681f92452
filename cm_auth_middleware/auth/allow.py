"""The rule that says which users may come in: lists in the options, and a function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..events import log
from ..runtime.bounded_cache import BoundedCache

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..runtime.base import Runtime
    from ..sessions.session import Session


class AllowRule:
    """Says if a CameraManager user may use this application.

    The options ``allow_emails``, ``allow_accounts`` and ``allow`` all have to agree; an option that
    is not given admits every user.
    """

    def __init__(self, config: CMAuthConfig, runtime: Runtime) -> None:
        self._runtime = runtime
        self._function = config.allow
        listed = [str(address).lower() for address in config.allow_emails or ()]
        self._addresses = frozenset(listed)
        self._domains = frozenset(item[2:] for item in listed if item.startswith("*@"))
        self._accounts = frozenset(map(str, config.allow_accounts or ()))
        self.admits_everybody = not (listed or self._accounts or self._function)
        # For each session, a hash of its user and the rule's decision about that user.
        self._decisions: BoundedCache[str, tuple[int, bool]] = BoundedCache(
            memory=runtime.cache_memory
        )

    async def allows(self, user: dict[str, Any]) -> bool | None:
        """Return True if the user may come in; None if the application's ``allow`` failed."""
        if self._addresses and not self._is_listed(user.get("email")):
            return False
        if self._accounts and str(user.get("accountId")) not in self._accounts:
            return False
        if self._function is None:
            return True
        try:
            return bool(await self._runtime.call_user_function(self._function, user))
        except Exception:
            log("allow_failed", exc_info=True)
            return None

    async def admits(self, session: Session) -> bool:
        """Return True if the user of a session may come in.

        Another process, with another rule, may have opened the session. Each process asks its rule
        once for a session, and again when the user has changed.
        """
        if self.admits_everybody:
            return True
        user = hash(session.record.user)
        decision = self._decisions.get(session.record_id)
        if decision is None or decision[0] != user:
            is_allowed = await self.allows(dict(session.user))
            if is_allowed is None:
                return False  # for this request only: the rule did not say no
            decision = self._decisions[session.record_id] = (user, is_allowed)
        return decision[1]

    def note(self, session: Session, *, is_allowed: bool) -> None:
        """Remember the rule's decision about a session's user."""
        self._decisions[session.record_id] = (hash(session.record.user), is_allowed)

    def _is_listed(self, email: Any) -> bool:
        if not isinstance(email, str):
            return False
        # Only ASCII has letters that are the same in two cases and nothing else: the Kelvin sign
        # in lower case is a "k".
        address = email.lower() if email.isascii() else email
        return address in self._addresses or address.rpartition("@")[2] in self._domains
