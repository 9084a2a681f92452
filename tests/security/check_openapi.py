"""schemathesis against an application's OpenAPI: no operation is reachable without a session.

Not part of the test run, for what it needs is large: ``pip install -e '.[fuzz]'``, then
``pytest tests/security/check_openapi.py``. CM_AUTH_FUZZ is how many cases each operation gets.
"""

from __future__ import annotations

import os
from typing import Any

import flask
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from pydantic import BaseModel

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.fastapi import CMClient, CMSession

from .routed import OPTIONS

EXAMPLES = int(os.environ.get("CM_AUTH_FUZZ", "50"))
PROFILE = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
reached: list[str] = []


class Zone(BaseModel):
    """A body with a few kinds of members."""

    name: str
    cameras: list[int] = []
    options: dict[str, str] = {}


def cameras_app() -> FastAPI:
    """An application like those that people will write."""
    app = FastAPI()

    @app.get("/cameras")
    async def cameras(cm: CMClient, limit: int = 10, after: str | None = None) -> dict[str, str]:
        reached.append("cameras")
        return {"text": "secret"}

    @app.get("/cameras/{camera}/snapshot")
    async def snapshot(camera: int, cm: CMClient) -> dict[str, str]:
        reached.append("snapshot")
        return {"text": "secret"}

    @app.put("/zones/{zone}")
    @app.post("/zones/{zone}")
    async def write(zone: str, body: Zone, session: CMSession) -> dict[str, str]:
        reached.append("write")
        return {"text": "secret"}

    @app.delete("/zones/{zone:path}")
    async def delete(zone: str, session: CMSession) -> dict[str, str]:
        reached.append("delete")
        return {"text": "secret"}

    @app.get("/files/{path:path}")
    async def files(path: str, session: CMSession) -> dict[str, str]:
        reached.append("files")
        return {"text": "secret"}

    @app.get("/public/{path:path}")
    async def public(path: str) -> dict[str, str]:
        return {"text": "open"}

    return app


def flask_app() -> flask.Flask:
    """Whatever is asked for: reached."""
    app = flask.Flask(__name__, static_folder=None)

    @app.route("/", defaults={"path": ""}, methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    @app.route("/<path:path>", methods=["GET", "POST", "PUT", "DELETE", "PATCH"])
    def everything(path: str) -> str:
        if not flask.request.path.startswith("/public/"):
            reached.append(path)
        return "secret"

    return app


_bare = cameras_app()
_options = {**OPTIONS, "exempt": ["/public/*"]}
_described = _bare.openapi()
_described["paths"]["/auth/health"] = {
    "get": {"responses": {"200": {"description": "the store can be used"}}}
}
asgi = schemathesis.openapi.from_dict(_described)
asgi.app = CMAuthMiddleware(cameras_app(), **_options)
wsgi = schemathesis.openapi.from_dict(_described)
wsgi.app = CMAuthWSGIMiddleware(flask_app(), **_options)


def check(case: Any) -> None:
    reached.clear()
    response = case.call()
    assert reached == []
    assert response.status_code < 500
    if case.path == "/auth/health" and response.status_code == 200:
        assert response.content == b'{"status":"ok"}'  # whatever the query, headers or body say
    elif not case.path.startswith("/public"):
        assert response.status_code in (301, 302, 308, 400, 401, 404, 405)
        assert b"secret" not in response.content


@asgi.parametrize()
@PROFILE
def test_nothing_is_reached_without_a_session_behind_asgi(case: Any) -> None:
    """No handler of FastAPI's runs."""
    check(case)


@wsgi.parametrize()
@PROFILE
def test_nothing_is_reached_without_a_session_behind_wsgi(case: Any) -> None:
    """Nor one of Flask's, asked for the same."""
    check(case)


def test_with_the_middleware_gone_it_would_be_noticed() -> None:
    """The check fails where something is reached."""
    client = flask_app().test_client()
    assert client.get("/cameras").data == b"secret"
    assert reached == ["cameras"]
    reached.clear()
