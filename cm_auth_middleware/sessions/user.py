"""The user of a request, as frameworks and servers want to be told of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .session import Session


class CMUser:
    """The user of a request, and what they may do: ``request.user`` and ``request.auth``.

    Starlette, FastAPI and Litestar find both in the scope; Starlette's ``@requires`` asks for the
    scopes. A visitor on an exempt path has one, too, who is not authenticated.

    Args:
        session: None for a visitor.
        included_scopes: pairs of scopes of which the first includes the second.
    """

    __slots__ = ("_included_scopes", "_session")

    def __init__(
        self, session: Session | None, included_scopes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        self._session = session
        self._included_scopes = included_scopes

    @property
    def is_authenticated(self) -> bool:
        """True for a user whose session has not ended."""
        return self._session is not None and not self._session.ended

    @property
    def identity(self) -> str:
        """CameraManager's ``userId``; empty for a visitor."""
        return "" if self._session is None else self._session.user_id

    @property
    def display_name(self) -> str:
        """First and last name, or else the e-mail address; empty for a visitor."""
        if self._session is None:
            return ""
        user = self._session.user
        names = [user.get("firstName"), user.get("lastName")]
        return " ".join(name for name in names if isinstance(name, str) and name) or str(
            user.get("email") or self.identity
        )

    @property
    def scopes(self) -> list[str]:
        """``authenticated``, and the granted scopes with those that they include.

        They are ``read`` and ``write``, or ``read`` alone. The list is a new one each time.
        """
        if self._session is None or self._session.ended:
            return []
        granted = self._session.scope.split()
        included = [less for more, less in self._included_scopes if more in granted]
        return ["authenticated", *dict.fromkeys([*granted, *included])]

    def __repr__(self) -> str:
        return "<CMUser>" if self._session is None else f"<CMUser {self._session.log_id}>"
