"""The applications that are tried, and their processes.

``uvicorn tests.interop.sites:asgi --factory`` or ``gunicorn 'tests.interop.sites:wsgi()'``. Options
come from the environment; ``INTEROP_PROVIDER`` names the provider.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from cm_auth_middleware import EAGLEEYE, CMAuthMiddleware
from cm_auth_middleware.flask import CMAuth, cm, cm_session
from cm_auth_middleware.tokens.provider import Provider

from .processes import ROOT, SECRET_KEY, free_port, running
from .providers import PROVIDERS

SERVERS = {
    "asgi": ["uvicorn", "--factory", "--port", "{port}", "tests.interop.sites:asgi"],
    "wsgi": [
        "gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}", "-k", "gthread",
        "--threads", "60", "tests.interop.sites:wsgi()",
    ],
}  # fmt: skip


def asgi() -> Any:
    """An ASGI application."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    async def cameras(request: Request) -> Response:
        answer = await request.state.cm.get(_cameras_path())
        return JSONResponse(_names(answer.raise_for_status().json()))

    async def user(request: Request) -> Response:
        return PlainTextResponse(request.state.cm_session.user["email"])

    async def health(request: Request) -> Response:
        return PlainTextResponse("fine")

    routes = [Route("/cameras", cameras), Route("/user", user), Route("/health", health)]
    middleware = [Middleware(CMAuthMiddleware, provider=_provider())]
    return Starlette(routes=routes, middleware=middleware)


def wsgi() -> Any:
    """A WSGI application."""
    from flask import Flask, jsonify

    app = Flask(__name__)
    CMAuth(app, provider=_provider())

    @app.get("/cameras")
    def cameras() -> Any:
        answer = cm.get(_cameras_path()).raise_for_status()
        return jsonify(_names(answer.json()))

    @app.get("/user")
    def user() -> Any:
        return cm_session.user["email"]

    @app.get("/health")
    def health() -> Any:
        return "fine"

    return app


def _provider() -> Provider:
    return PROVIDERS[os.environ["INTEROP_PROVIDER"]]


def _cameras_path() -> str:
    return "/cameras" if _provider() is EAGLEEYE else "/rest/v2.4/cameras"


def _names(found: Any) -> list[str]:
    """Return the names of the cameras: of a list, or of a page of the API v3."""
    cameras = found["results"] if isinstance(found, dict) else found
    return [camera["name"] for camera in cameras]


@dataclass(frozen=True, slots=True)
class Site:
    """One application in two processes, which share a store in SQLite."""

    origin: str
    other: str
    logs: tuple[Path, Path]


@contextlib.contextmanager
def site(side: str, base_url: str, folder: Path, **variables: str) -> Iterator[Site]:
    """Run an application against a server until the block ends.

    Args:
        side: ``asgi`` or ``wsgi``.
        base_url: of the server.
        folder: an empty one, for the store and the logs.
        variables: more of the environment, or others.
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CM_AUTH_CLIENT_ID": "demo-key-id",
        "CM_AUTH_CLIENT_SECRET": "demo-key-secret",
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_BASE_URL": base_url,
        "CM_AUTH_STORE": f"sqlite:///{folder}/sessions.db",
        "CM_AUTH_EXEMPT": "/health",
        "INTEROP_PROVIDER": "cameramanager",
        **variables,
    }
    origins, logs = [], []
    with contextlib.ExitStack() as stack:
        for name in ("one", "two"):
            port = free_port()
            origin, log = f"http://127.0.0.1:{port}", folder / f"{name}.log"
            command = [part.format(port=port) for part in SERVERS[side]]

            def is_ready(client: httpx2.Client, origin: str = origin) -> bool:
                return client.get(f"{origin}/health").status_code == 200

            stack.enter_context(running(command, log, environment, is_ready, ROOT))
            origins.append(origin)
            logs.append(log)
        yield Site(origins[0], origins[1], (logs[0], logs[1]))
    for log in logs:
        text = log.read_text(errors="replace")
        assert "Traceback" not in text, text[-8000:]
