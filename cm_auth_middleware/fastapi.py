"""FastAPI glue: the client and the session as dependencies, and a security scheme in OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any

import httpx2
from fastapi import Depends, Security
from fastapi.openapi.models import APIKey, APIKeyIn
from fastapi.requests import HTTPConnection
from fastapi.security.base import SecurityBase

from .errors import CMAuthError, SessionExpiredError
from .sessions.session import Session

__all__ = ["CMClient", "CMSession", "get_client", "get_session"]


class _SessionCookie(SecurityBase):
    """Shows in OpenAPI that a route needs the login; the middleware does the work."""

    def __init__(self) -> None:
        self.scheme_name = "CameraManager"
        self.model = APIKey.model_validate(
            {
                "in": APIKeyIn.cookie,
                "name": "cm_auth",
                "description": "The cookie that a login at CameraManager sets (/auth/login).",
            }
        )

    async def __call__(self, connection: HTTPConnection) -> Any:
        return connection.scope.get("state", {})


_Login = Annotated[Any, Security(_SessionCookie())]


async def get_session(state: _Login) -> Session:
    """The session of this request.

    Raises:
        CMAuthError: the app is not behind `CMAuthMiddleware`.
        SessionExpiredError: nobody is logged in (on an exempt path); answered like any
            unauthenticated request.
    """
    if "cm_session" not in state:
        raise CMAuthError("no session here: app.add_middleware(CMAuthMiddleware, …) is missing")
    session: Session | None = state["cm_session"]
    if session is None:
        # The shell learns of it even where the framework makes a 500 of the error on its way.
        state["cm_error"] = SessionExpiredError("nobody is logged in")
        raise state["cm_error"]
    return session


async def get_client(state: _Login) -> httpx2.AsyncClient:
    """The ready client of this request's user; raises as `get_session` does."""
    await get_session(state)
    client: httpx2.AsyncClient = state["cm"]
    return client


CMSession = Annotated[Session, Depends(get_session)]
CMClient = Annotated[httpx2.AsyncClient, Depends(get_client)]
