"""FastAPI: the client comes by dependency injection, or as ``request.state.cm``."""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession, CMSyncClient

inner = FastAPI()
inner.add_middleware(CMAuthMiddleware)


@inner.get("/")
async def home(request: Request, session: CMSession) -> dict[str, str]:
    return {"user": session.user["email"], "query": request.url.query}


@inner.get("/rooms/{name}")
async def room(name: str, request: Request) -> dict[str, str]:
    return {"room": name, "query": request.url.query}


@inner.get("/cameras")
async def cameras(cm: CMClient) -> list[str]:
    response = await cm.get("/rest/v2.4/cameras")
    return [camera["name"] for camera in response.json()]


@inner.get("/sync/cameras")
def sync_cameras(cm: CMSyncClient) -> list[str]:
    return [camera["name"] for camera in cm.get("/rest/v2.4/cameras").json()]


@inner.get("/data")
async def data(session: CMSession) -> dict[str, Any]:
    return session.data


@inner.post("/data")
async def change_data(session: CMSession, changes: dict[str, Any]) -> dict[str, Any]:
    session.data.update(changes)
    return session.data


@inner.get("/health", response_class=PlainTextResponse)
async def health(request: Request) -> str:
    session = request.state.cm_session
    return session.user["email"] if session else "nobody"


@inner.websocket("/ws")
async def websocket(socket: WebSocket, session: CMSession) -> None:
    await socket.accept()
    await socket.send_text(session.user["email"])
    await socket.close()


def mounted(path: str) -> FastAPI:
    outer = FastAPI()
    outer.mount(path, inner)
    return outer


app = mounted(os.environ["MATRIX_MOUNT"]) if os.environ.get("MATRIX_MOUNT") else inner
