"""Who may come in: what the options list, and the application's own rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..events import log
from ..runtime.bounded_cache import remember

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..runtime.event_loops import Runtime
    from ..sessions.session import Session


class AllowRule:
    """Says whether a CameraManager user may use this application.

    The options ``allow_emails``, ``allow_accounts`` and ``allow`` all have to agree; an option that
    is not given agrees with everybody.
    """

    def __init__(self, config: CMAuthConfig, runtime: Runtime) -> None:
        self._runtime = runtime
        self._function = config.allow
        listed = [str(address).lower() for address in config.allow_emails or ()]
        self._addresses = frozenset(listed)
        self._domains = frozenset(item[2:] for item in listed if item.startswith("*@"))
        self._accounts = frozenset(map(str, config.allow_accounts or ()))
        self.admits_everybody = not (listed or self._accounts or self._function)
        # What the rule said of each session's user, as that was known then (by a hash of it).
        self._said: dict[str, tuple[int, bool]] = {}

    async def allows(self, user: dict[str, Any]) -> bool:
        """Return True if the user may come in.

        Raises: what the application's ``allow`` raises.
        """
        if self._addresses and not self._is_listed(user.get("email")):
            return False
        if self._accounts and str(user.get("accountId")) not in self._accounts:
            return False
        return self._function is None or bool(
            await self._runtime.call_user_function(self._function, user)
        )

    async def admits(self, session: Session) -> bool:
        """Return True if the user of a session may come in.

        Another process, with another rule, may have opened the session. The rule is asked once for
        a session and its user, and of an application that restarts with a stricter one again.
        """
        if self.admits_everybody:
            return True
        user = hash(session.record.user)
        said = self._said.get(session.record_id)
        if said is None or said[0] != user:
            try:
                is_allowed = await self.allows(dict(session.user))
            except Exception:
                log("allow_failed", exc_info=True)
                return False  # for now: an exception is no answer
            said = remember(self._said, session.record_id, (user, is_allowed))
        return said[1]

    def note(self, session: Session, *, is_allowed: bool) -> None:
        """Remember what the rule said of a session's user."""
        remember(self._said, session.record_id, (hash(session.record.user), is_allowed))

    def _is_listed(self, email: Any) -> bool:
        if not isinstance(email, str):
            return False
        # Only ASCII has letters that are the same in two cases and nothing else: the Kelvin sign
        # in lower case is a "k".
        address = email.lower() if email.isascii() else email
        return address in self._addresses or address.rpartition("@")[2] in self._domains
