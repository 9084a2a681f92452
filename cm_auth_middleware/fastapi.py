"""The client and the session as FastAPI dependencies, with a security scheme in OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx2
from fastapi import Depends, Security
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from .errors import CMAuthError, ForbiddenError, SessionExpiredError
from .hooks import Allow
from .sessions.session import Session

__all__ = [
    "CMClient",
    "CMSession",
    "CMSyncClient",
    "get_client",
    "get_session",
    "get_sync_client",
    "require",
]


class _SessionCookie(SecurityBase):
    """Shows in OpenAPI that a route needs the login; the middleware checks it."""

    def __init__(self) -> None:
        self.scheme_name = "CameraManager"
        self.model = APIKey.model_validate(
            {
                "in": APIKeyIn.cookie,
                "name": "cm_auth",
                "description": "The cookie that a login sets (/auth/login).",
            }
        )

    async def __call__(self, connection: HTTPConnection) -> Any:
        return connection.scope.get("state", {})


_Login = Annotated[Any, Security(_SessionCookie())]


async def get_session(state: _Login) -> Session:
    """Return the session of this request.

    Raises:
        CMAuthError: the app is not behind `CMAuthMiddleware`.
        SessionExpiredError: no user is logged in, on an exempt path. The middleware answers as it
            answers any unauthenticated request.
    """
    if "cm_session" not in state:
        raise CMAuthError(
            "there is no session here: app.add_middleware(CMAuthMiddleware, …) is missing"
        )
    session: Session | None = state["cm_session"]
    if session is None:
        # The middleware finds it here even if the framework turns the error into a status 500.
        state["cm_error"] = SessionExpiredError("no user is logged in")
        raise state["cm_error"]
    return session


async def get_client(state: _Login) -> httpx2.AsyncClient:
    """Return the client of this request's user; raise as `get_session` does."""
    await get_session(state)
    client: httpx2.AsyncClient = state["cm"]
    return client


async def get_sync_client(state: _Login) -> httpx2.Client:
    """Return a client for a handler that is a plain ``def``; raise as `get_session` does.

    FastAPI runs such a handler in a thread, which this client may block. In an ``async def`` it
    would block the event loop, and every other request with it.
    """
    session = await get_session(state)
    client: httpx2.Client = state["cm_auth"].sync_client(session)
    return client


def require(rule: Allow) -> Callable[..., Awaitable[Session]]:
    """Return a dependency that admits only some of the users to a route, or to a router.

        admins = Depends(require(lambda user: user["accountId"] == 501))

        @app.get("/admin", dependencies=[admins])

    The dependency returns the session. It raises `ForbiddenError` for a user whom the rule does not
    admit, which the middleware answers with 403 and a page; and as `get_session` does.

    Args:
        rule: called with the user (the JSON of ``users/self``), sync or async; returns True if this
            user may use the route. What it raises is an error of the route.
    """

    async def permitted(state: _Login) -> Session:
        session = await get_session(state)
        runtime = state["cm_auth"].async_services.runtime
        if not await runtime.call_user_function(rule, session.user):
            state["cm_error"] = ForbiddenError()  # as in get_session
            raise state["cm_error"]
        return session

    return permitted


CMSession = Annotated[Session, Depends(get_session)]
CMClient = Annotated[httpx2.AsyncClient, Depends(get_client)]
CMSyncClient = Annotated[httpx2.Client, Depends(get_sync_client)]
