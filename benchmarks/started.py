"""The applications whose start is measured: nothing of the benchmarks is imported beside them."""

from __future__ import annotations

import sys
from typing import Any

# An environment for tests has these, and httpcore2 and our telemetry load what is there.
sys.modules.update(dict.fromkeys(("trio", "opentelemetry")))  # type: ignore[arg-type]


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
