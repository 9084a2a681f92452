"""Starlette: handlers that take their time, and what surrounds the middleware looks on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from cm_auth_middleware import CMAuthMiddleware

_PAUSE = 0.2  # seconds in which the other users' requests begin


class Outside:
    """What the server handed over, as it is after the middleware was there: at ``/outside``."""

    seen: frozenset[str] = frozenset()

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["path"] == "/outside":
            await JSONResponse(sorted(self.seen))(scope, receive, send)
        else:
            try:
                await self.app(scope, receive, send)
            finally:
                Outside.seen |= scope["state"].keys()


async def told(connection: HTTPConnection) -> dict[str, Any]:
    """Who asks, before and after a while; whence; and what the lifespan handed on."""
    state = connection.state
    state.number = number = next(state.numbers)
    before = state.cm_session and state.cm_session.user["email"]
    await anyio.sleep(_PAUSE)
    return {
        "user": state.cm_session and state.cm_session.user["email"],
        "before": before,
        "kept": state.number == number,
        "started": state.started,
        "version": connection.scope["http_version"],
        "port": connection.client and int(connection.client.port),  # granian's is a text
        "number": number,
    }


async def who(request: Request) -> JSONResponse:
    return JSONResponse(await told(request))


async def health(request: Request) -> PlainTextResponse:
    return PlainTextResponse("well")


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        await socket.send_json(await told(socket))


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
    yield {"started": "by the lifespan", "numbers": iter(range(1_000_000))}


app = Starlette(
    routes=[
        Route("/who", who),
        Route("/open", who),
        Route("/health", health),
        WebSocketRoute("/ws", websocket),
    ],
    middleware=[Middleware(Outside), Middleware(CMAuthMiddleware)],
    lifespan=lifespan,
)
