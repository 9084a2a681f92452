"""Litestar: the client is ``request.state["cm"]``, a view of ``scope["state"]``.

The middleware goes around the app, not into Litestar's ``middleware=``: that stack runs after
routing, so the middleware's own routes would be a 404 before it is asked.
"""

from __future__ import annotations

import os
from typing import Any

from litestar import Litestar, MediaType, Request, WebSocket, get, post, websocket
from starlette.applications import Starlette
from starlette.routing import Mount

from cm_auth_middleware import CMAuthMiddleware


@get("/")
async def home(request: Request[Any, Any, Any]) -> dict[str, str]:
    query = request.scope["query_string"].decode()
    return {"user": request.state["cm_session"].user["email"], "query": query}


@get("/rooms/{name:str}")
async def room(request: Request[Any, Any, Any]) -> dict[str, str]:
    return {"room": request.path_params["name"], "query": request.scope["query_string"].decode()}


@get("/cameras")
async def cameras(request: Request[Any, Any, Any]) -> list[str]:
    response = await request.state["cm"].get("/rest/v2.4/cameras")
    return [camera["name"] for camera in response.json()]


@get("/data")
async def data(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return request.state["cm_session"].data


@post("/data", status_code=200)
async def change_data(request: Request[Any, Any, Any]) -> dict[str, Any]:
    session = request.state["cm_session"]
    session.data.update(await request.json())
    return session.data


@get("/health", media_type=MediaType.TEXT)
async def health(request: Request[Any, Any, Any]) -> str:
    session = request.state["cm_session"]
    return session.user["email"] if session else "nobody"


@websocket("/ws")
async def socket(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    await socket.send_text(socket.state["cm_session"].user["email"])
    await socket.close()


app: Any = CMAuthMiddleware(
    Litestar([home, room, cameras, data, change_data, health, socket], openapi_config=None)
)
if os.environ.get("MATRIX_MOUNT"):
    # Litestar's own mount changes the path but not root_path, so another app does the mounting.
    app = Starlette(routes=[Mount(os.environ["MATRIX_MOUNT"], app)])
