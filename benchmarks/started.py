"""The applications whose start is measured: nothing of the benchmarks is imported beside them."""

from __future__ import annotations

import sys
from typing import Any

# An environment for tests has these, and httpx2, httpcore2 and our telemetry load what is there.
_EXTRAS = ("trio", "opentelemetry", "h2", "socksio", "sniffio", "brotli", "brotlicffi", "backports")
sys.modules.update(dict.fromkeys(_EXTRAS))  # type: ignore[arg-type]


def starlette_bare() -> Any:
    """Starlette that asks nobody who they are."""
    return _starlette()


def starlette_ours() -> Any:
    """The same behind our middleware, configured by the environment."""
    from starlette.middleware import Middleware

    from cm_auth_middleware import CMAuthMiddleware

    return _starlette(Middleware(CMAuthMiddleware))


def flask_bare() -> Any:
    """Flask that asks nobody who they are."""
    return _flask()


def flask_ours() -> Any:
    """The same behind our middleware, configured by the environment."""
    from cm_auth_middleware.flask import CMAuth

    app = _flask()
    CMAuth(app)
    return app


def start_lifespan(application: str) -> None:
    """Print the seconds from `lifespan.startup` to `lifespan.startup.complete` of an application.

    Starlette makes its middlewares in that time.
    """
    import asyncio
    import time

    app = globals()[application]()
    came: list[float] = []
    messages = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, str]:
        return {"type": next(messages)}

    async def send(message: dict[str, str]) -> None:
        if message["type"] == "lifespan.startup.complete":
            came.append(time.perf_counter())

    async def run() -> float:
        began = time.perf_counter()
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        return came[0] - began

    print(asyncio.run(run()))


def _starlette(*middleware: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def home(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[Route("/", home)], middleware=list(middleware))


def _flask() -> Any:
    from flask import Flask

    app = Flask("start")
    app.add_url_rule("/", view_func=lambda: "ok")
    return app
