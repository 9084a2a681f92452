"""Litestar with the middleware in its own stack, made by `DefineMiddleware`."""

from __future__ import annotations

from typing import Any

from litestar import Litestar, Request, get
from litestar.middleware import DefineMiddleware

from cm_auth_middleware import AuthEngine, CMAuthMiddleware


@get("/cameras")
async def cameras(request: Request[Any, Any, Any]) -> list[str]:
    response = await request.state["cm"].get("/rest/v2.4/cameras")
    return [camera["name"] for camera in response.json()]


def make_app(engine: AuthEngine) -> Litestar:
    middleware = DefineMiddleware(CMAuthMiddleware, engine=engine)
    return Litestar([cameras], middleware=[middleware], openapi_config=None)
