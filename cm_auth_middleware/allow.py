"""Who may come in: what the options list, and the application's own rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import CMAuthConfig
    from .ports import Ports


class AllowRule:
    """Says whether a CameraManager user may use this application.

    The options ``allow_emails``, ``allow_accounts`` and ``allow`` all have to agree; an option that
    is not given agrees with everybody.
    """

    def __init__(self, config: CMAuthConfig, ports: Ports) -> None:
        self._ports = ports
        self._function = config.allow
        listed = [str(address).lower() for address in config.allow_emails or ()]
        self._addresses = frozenset(listed)
        self._domains = frozenset(item[2:] for item in listed if item.startswith("*@"))
        self._accounts = frozenset(map(str, config.allow_accounts or ()))
        self.admits_everybody = not (listed or self._accounts or self._function)

    async def allows(self, user: dict[str, Any]) -> bool:
        """Return True if the user may come in.

        Raises: what the application's ``allow`` raises.
        """
        if self._addresses and not self._is_listed(user.get("email")):
            return False
        if self._accounts and str(user.get("accountId")) not in self._accounts:
            return False
        return self._function is None or bool(await self._ports.ask(self._function, user))

    def _is_listed(self, email: Any) -> bool:
        if not isinstance(email, str):
            return False
        # Only ASCII has letters that are the same in two cases and nothing else: the Kelvin sign
        # in lower case is a "k".
        address = email.lower() if email.isascii() else email
        return address in self._addresses or address.rpartition("@")[2] in self._domains
