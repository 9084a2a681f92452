"""Starlette: handlers that last, each of which works differently."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import AsyncIterator

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.proxy import CMProxy

from .lasting import SIZE, TICK, is_released, noted


def user_of(connection: HTTPConnection) -> str:
    return str(connection.state.cm_session.user["email"])


async def released() -> None:
    """Do nothing with the connection, to the end of the test."""
    while not is_released():  # noqa: ASYNC110  # another process makes that file
        await anyio.sleep(TICK)


async def tick(request: Request) -> Response:
    """Server-sent events."""
    user = user_of(request)

    async def parts() -> AsyncIterator[str]:
        with noted(user, "tick"):
            while not is_released():
                yield "data: tick\n\n"
                await anyio.sleep(TICK)

    return StreamingResponse(parts(), media_type="text/event-stream")


async def silent(request: Request) -> Response:
    """One event, and no other ever."""
    user = user_of(request)

    async def parts() -> AsyncIterator[str]:
        with noted(user, "silent"):
            yield "data: hello\n\n"
            await released()

    return StreamingResponse(parts(), media_type="text/event-stream")


async def download(request: Request) -> Response:
    """A file that comes slowly."""
    user = user_of(request)

    async def parts() -> AsyncIterator[bytes]:
        with noted(user, "download"):
            while not is_released():
                yield b"x" * 1000
                await anyio.sleep(TICK)

    return StreamingResponse(parts(), headers={"Content-Length": str(SIZE)})


async def poll(request: Request) -> Response:
    """A long poll: no answer until there is news."""
    with noted(user_of(request), "poll"):
        await released()
    return PlainTextResponse("news")


async def listen(request: Request) -> Response:
    """A long poll that listens whether its client is still there."""
    with noted(user_of(request), "listen"):
        while (await request.receive())["type"] != "http.disconnect":
            pass
    return PlainTextResponse("news")


class Relay:
    """The proxy, with a note of its end."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with noted(scope["state"]["cm_session"].user["email"], "relay"):
            await self.app(scope, receive, send)


async def ws_send(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect), noted(user_of(socket), "ws-send"):
        while not is_released():
            await socket.send_text("tick")
            await anyio.sleep(TICK)


async def ws_receive(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect), noted(user_of(socket), "ws-receive"):
        while True:
            await socket.receive_text()


async def ws_wait(socket: WebSocket) -> None:
    """As `ws_receive`; its client says nothing."""
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect), noted(user_of(socket), "ws-wait"):
        await socket.receive_text()


async def ws_echo(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect), noted(user_of(socket), "ws-echo"):
        while True:
            await socket.send_text(await socket.receive_text())


async def ws_neither(socket: WebSocket) -> None:
    await socket.accept()
    with contextlib.suppress(WebSocketDisconnect), noted(user_of(socket), "ws-neither"):
        await released()


async def health(request: Request) -> PlainTextResponse:
    gc.collect()  # an asynchronous generator that is left in the middle is closed by it
    return PlainTextResponse("well")


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse(user_of(request))


app = Starlette(
    routes=[
        Route("/", home),
        Route("/health", health),
        Route("/tick", tick),
        Route("/silent", silent),
        Route("/download", download),
        Route("/poll", poll),
        Route("/listen", listen),
        Mount("/relay", Relay(CMProxy(allow="GET /rest/v2.4/live"))),
        WebSocketRoute("/ws-send", ws_send),
        WebSocketRoute("/ws-receive", ws_receive),
        WebSocketRoute("/ws-wait", ws_wait),
        WebSocketRoute("/ws-echo", ws_echo),
        WebSocketRoute("/ws-neither", ws_neither),
    ],
    middleware=[Middleware(CMAuthMiddleware)],
)
