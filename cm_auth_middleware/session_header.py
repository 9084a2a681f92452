"""A request header with the session, for frameworks that show a callback nothing but headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .errors import CMAuthError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from .engine import AuthEngine
    from .sessions.session import Session


class CMSessionHeader:
    """Gives an ASGI app the session of each request in the header ``x-cm-session``.

    Streamlit, Panel, marimo and others hide the request, and with it ``request.state``. Put this
    class between `CMAuthMiddleware` and such an app:

        app = CMAuthMiddleware(CMSessionHeader(app), engine=engine)

    The value is a handle, as from `Session.export`: `AuthEngine.sync_client_for` and
    `AuthEngine.sync_session_for` open it, in a callback. Visitors cannot send the header, which is
    removed from their requests; nor can they make a handle, which ``secret_key`` encrypts. The
    session cookie is removed, too: some of these frameworks tell the page what a request brought,
    where any script could read the cookie.

    Args:
        app: the application.

    Attributes:
        name: the name of the header.
    """

    name: ClassVar[str] = "x-cm-session"

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection.

        Raises:
            CMAuthError: this class is not inside of `CMAuthMiddleware`.
        """
        if scope["type"] in ("http", "websocket"):
            scope = {**scope, "headers": [*self._headers(scope)]}
        await self.app(scope, receive, send)

    def _headers(self, scope: Scope) -> Iterator[tuple[bytes, bytes]]:
        state: dict[str, Any] = scope.get("state") or {}
        if "cm_session" not in state:
            raise CMAuthError(
                "there is no session here: CMSessionHeader has to be inside of CMAuthMiddleware"
            )
        engine: AuthEngine = state["cm_auth"]
        session: Session | None = state["cm_session"]
        ours = {name.encode() for name in engine.async_services.sessions.cookie.names}
        for name, value in scope["headers"]:
            # WSGI and CGI take "x_cm_session" for the same header.
            spelled = name.lower().replace(b"_", b"-")
            if spelled == b"cookie":
                others = _without(ours, value)
                if others:
                    yield name, others
            elif spelled != self.name.encode():
                yield name, value
        if session is not None:
            yield self.name.encode(), session.export().encode()


def _without(names: set[bytes], line: bytes) -> bytes:
    """Return a Cookie header without the cookies that have one of these names."""
    parts = (part.strip() for part in line.split(b";"))
    return b"; ".join(part for part in parts if part.partition(b"=")[0].strip() not in names)
