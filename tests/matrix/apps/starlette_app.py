"""Starlette: the client is ``request.state.cm``. Runs on asyncio and on trio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sniffio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from cm_auth_middleware import CMAuthMiddleware


async def home(request: Request) -> JSONResponse:
    return JSONResponse(
        {"user": request.state.cm_session.user["email"], "query": request.url.query}
    )


async def room(request: Request) -> JSONResponse:
    return JSONResponse({"room": request.path_params["name"], "query": request.url.query})


async def cameras(request: Request) -> JSONResponse:
    response = await request.state.cm.get("/rest/v2.4/cameras")
    return JSONResponse([camera["name"] for camera in response.json()])


async def data(request: Request) -> JSONResponse:
    session = request.state.cm_session
    if request.method == "POST":
        session.data.update(await request.json())
    return JSONResponse(session.data)


async def health(request: Request) -> PlainTextResponse:
    session = request.state.cm_session
    return PlainTextResponse(session.user["email"] if session else "nobody")


async def runtime(request: Request) -> JSONResponse:
    """Which async library runs this, and what the lifespan handed on, if the server ran it."""
    started = getattr(request.state, "started", None)
    return JSONResponse({"library": sniffio.current_async_library(), "started": started})


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.state.cm_session.user["email"])
    await socket.close()


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
    yield {"started": "by the lifespan"}


def make_app() -> Starlette:
    routes = [
        Route("/", home),
        Route("/rooms/{name}", room),
        Route("/cameras", cameras),
        Route("/data", data, methods=["GET", "POST"]),
        Route("/health", health),
        Route("/runtime", runtime),
        WebSocketRoute("/ws", websocket),
    ]
    mount = os.environ.get("MATRIX_MOUNT")
    protection = [Middleware(CMAuthMiddleware)]
    if mount:
        inner = Starlette(routes=routes, middleware=protection)
        return Starlette(routes=[Mount(mount, inner)], lifespan=lifespan)
    return Starlette(routes=routes, middleware=protection, lifespan=lifespan)


app = make_app()
