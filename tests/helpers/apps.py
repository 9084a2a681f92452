"""The applications that the tests put behind the middleware: one for ASGI, its twin for WSGI."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import flask
import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cm_auth_middleware.flask import cm, cm_session


def api(cm: Any) -> str:
    """Return the path, below the client's ``base_url``, of the API that the simulator plays."""
    return "" if cm.base_url.path.startswith("/api/v3.0") else "/rest/v2.4"


def names(answer: httpx2.Response) -> list[str]:
    """Return the names of the cameras in an answer of either server."""
    found = answer.json()
    return [camera["name"] for camera in (found if isinstance(found, list) else found["results"])]


def picture(cm: Any, camera: str) -> str:
    """Return the path of a camera's picture at either server."""
    if api(cm):
        return f"/rest/v2.4/cameras/{camera}/snapshot?resolution=320x180"
    return f"/media/liveImage.jpeg?deviceId={int(camera):08x}&resolution=320x180"


def make_app(routes: list[Any] | None = None) -> Starlette:
    return Starlette(
        routes=[
            Route("/", home, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/cameras", cameras),
            Route("/deep/{rest:path}", home),
            Route("/snapshot/{camera}", snapshot),
            Route("/upload", upload, methods=["POST"]),
            Route("/api/{path:path}", relay),
            Route("/data", data, methods=["GET", "POST"]),
            Route("/state", state),
            Route("/export", export),
            Route("/health", health, methods=["GET", "POST"]),
            Route("/static/{rest:path}", health),
            WebSocketRoute("/ws", websocket),
            *(routes or []),
        ]
    )


async def home(request: Request) -> Response:
    user = request.state.cm_session.user
    return PlainTextResponse(f"{request.url.path}?{request.url.query} {user['email']}")


async def cameras(request: Request) -> Response:
    response = await request.state.cm.get(f"{api(request.state.cm)}/cameras")
    return JSONResponse(names(response), response.status_code)


async def snapshot(request: Request) -> Response:
    cm = request.state.cm
    path = picture(cm, request.path_params["camera"])
    answer = await cm.send(cm.build_request("GET", path), stream=True)
    return StreamingResponse(answer.aiter_bytes(), answer.status_code, media_type="image/jpeg")


async def upload(request: Request) -> Response:
    cm = request.state.cm
    answer = await cm.post(f"{api(cm)}/echo", content=request.stream())
    return JSONResponse(answer.json(), answer.status_code)


async def relay(request: Request) -> Response:
    """Ask CameraManager for whatever the test names."""
    query, cm = request.query_params, request.state.cm
    url = query.get("url", f"{api(cm)}/cameras")
    answer = await cm.get(url, follow_redirects="follow" in query)
    return JSONResponse({"status": answer.status_code, "text": answer.text[:2000]})


async def data(request: Request) -> Response:
    session = request.state.cm_session
    if request.method == "POST":
        session.data.update(json.loads(await request.body()))
    return JSONResponse(session.data)


async def state(request: Request) -> Response:
    session = request.state.cm_session
    return JSONResponse(
        {
            "client": isinstance(request.state.cm, httpx2.AsyncClient),
            "same": request.state["cm"] is request.state.cm,
            "repr": repr([request.state.cm, session, request.state.cm_auth]),
            "scope": session.scope,
            "logged_in_at": session.logged_in_at,
            "expires_at": session.access_token_expires_at,
        }
    )


async def export(request: Request) -> Response:
    return PlainTextResponse(request.state.cm_session.export())


async def health(request: Request) -> Response:
    session = request.state.cm_session
    return PlainTextResponse(session.user["email"] if session else "nobody")


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.state.cm_session.user["email"])
    await socket.close()


def make_wsgi_app() -> flask.Flask:
    """The same application in Flask; it reads the client and the session from the proxies."""
    app = copy.copy(_flask_app())
    app.extensions, app.config = {}, copy.copy(app.config)
    app.template_context_processors = copy.deepcopy(app.template_context_processors)
    return app


@functools.cache  # each world has an application of its own, and to compile the routes takes 7 ms
def _flask_app() -> flask.Flask:
    app = flask.Flask(__name__, static_folder=None)

    @app.route("/", methods=["GET", "POST", "PUT", "DELETE"])
    @app.route("/deep/<path:rest>")
    def home(rest: str = "") -> Any:
        query = flask.request.query_string.decode()
        return _text(f"{flask.request.path}?{query} {cm_session.user['email']}")

    @app.get("/cameras")
    def cameras() -> Any:
        response = cm.get(f"{api(cm)}/cameras")
        return names(response), response.status_code

    @app.get("/snapshot/<camera>")
    def snapshot(camera: str) -> Any:
        answer = cm.send(cm.build_request("GET", picture(cm, camera)), stream=True)
        return flask.Response(answer.iter_bytes(), answer.status_code, mimetype="image/jpeg")

    @app.post("/upload")
    def upload() -> Any:
        chunks = iter(lambda: flask.request.stream.read(65_536), b"")
        answer = cm.post(f"{api(cm)}/echo", content=chunks)
        return answer.json(), answer.status_code

    @app.get("/api/<path:path>")
    def relay(path: str) -> Any:
        query = flask.request.args
        url = query.get("url", f"{api(cm)}/cameras")
        answer = cm.get(url, follow_redirects="follow" in query)
        return {"status": answer.status_code, "text": answer.text[:2000]}

    @app.route("/data", methods=["GET", "POST"])
    def data() -> Any:
        if flask.request.method == "POST":
            cm_session.data.update(flask.request.get_json(force=True))
        return cm_session.data

    @app.get("/state")
    def state() -> Any:
        environ = flask.request.environ
        return {
            "client": isinstance(environ["cm_auth.client"], httpx2.Client),
            "same": environ["cm_auth.client"] is cm._get_current_object(),
            "repr": repr([cm, cm_session, environ["cm_auth.engine"]]),
            "scope": cm_session.scope,
            "logged_in_at": cm_session.logged_in_at,
            "expires_at": cm_session.access_token_expires_at,
        }

    @app.get("/export")
    def export() -> Any:
        return _text(cm_session.export())

    @app.route("/health", methods=["GET", "POST"])
    @app.get("/static/<path:rest>")
    def health(rest: str = "") -> Any:
        return _text(cm_session.user["email"] if cm_session else "nobody")

    return app


def _text(body: str) -> flask.Response:
    return flask.Response(body, mimetype="text/plain")
