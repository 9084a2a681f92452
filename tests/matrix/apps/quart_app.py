"""Quart: the client is ``request.scope["state"]["cm"]``; for a WebSocket, ``websocket.scope``."""

from __future__ import annotations

import os
from typing import Any

from quart import Quart, Response, jsonify, request, websocket
from starlette.applications import Starlette
from starlette.routing import Mount

from cm_auth_middleware import CMAuthMiddleware

quart = Quart(__name__)
quart.asgi_app = CMAuthMiddleware(quart.asgi_app)


def session() -> Any:
    return request.scope["state"]["cm_session"]


@quart.get("/")
async def home() -> dict[str, str]:
    return {"user": session().user["email"], "query": request.query_string.decode()}


@quart.get("/rooms/<name>")
async def room(name: str) -> dict[str, str]:
    return {"room": name, "query": request.query_string.decode()}


@quart.get("/cameras")
async def cameras() -> Response:
    response = await request.scope["state"]["cm"].get("/rest/v2.4/cameras")
    return jsonify([camera["name"] for camera in response.json()])


@quart.route("/data", methods=["GET", "POST"])
async def data() -> dict[str, Any]:
    if request.method == "POST":
        session().data.update(await request.get_json())
    return session().data


@quart.get("/health")
async def health() -> str:
    return session().user["email"] if session() else "nobody"


@quart.websocket("/ws")
async def socket() -> None:
    await websocket.send(websocket.scope["state"]["cm_session"].user["email"])


app: Any = quart
if os.environ.get("MATRIX_MOUNT"):
    app = Starlette(routes=[Mount(os.environ["MATRIX_MOUNT"], quart)])
