"""Flask, and Flask-Sock: handlers that last, each of which works differently."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from flask import Flask, Response
from flask_sock import Sock
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware.flask import CMAuth, cm_session
from cm_auth_middleware.proxy import CMWSGIProxy

from .lasting import SIZE, TICK, is_released, note, noted

app = Flask(__name__)
sock = Sock(app)


def released() -> None:
    while not is_released():
        time.sleep(TICK)


@app.get("/")
def home() -> str:
    return str(cm_session.user["email"])


@app.get("/health")
def health() -> str:
    return "well"


@app.get("/tick")
def tick() -> Response:
    user = cm_session.user["email"]

    def parts() -> Iterator[str]:
        with noted(user, "tick"):
            while not is_released():
                yield "data: tick\n\n"
                time.sleep(TICK)

    return Response(parts(), mimetype="text/event-stream")


@app.get("/silent")
def silent() -> Response:
    user = cm_session.user["email"]

    def parts() -> Iterator[str]:
        with noted(user, "silent"):
            yield "data: hello\n\n"
            released()

    return Response(parts(), mimetype="text/event-stream")


@app.get("/download")
def download() -> Response:
    user = cm_session.user["email"]

    def parts() -> Iterator[bytes]:
        with noted(user, "download"):
            while not is_released():
                yield b"x" * 1000
                time.sleep(TICK)

    return Response(parts(), headers={"Content-Length": str(SIZE)})


@app.get("/poll")
def poll() -> str:
    with noted(cm_session.user["email"], "poll"):
        released()
    return "news"


@sock.route("/ws-send")
def ws_send(socket: Any) -> None:
    with noted(cm_session.user["email"], "ws-send"):
        while not is_released():
            socket.send("tick")
            time.sleep(TICK)


@sock.route("/ws-receive")
def ws_receive(socket: Any) -> None:
    with noted(cm_session.user["email"], "ws-receive"):
        while True:
            socket.receive()


@sock.route("/ws-wait")
def ws_wait(socket: Any) -> None:
    with noted(cm_session.user["email"], "ws-wait"):
        socket.receive()


@sock.route("/ws-neither")
def ws_neither(socket: Any) -> None:
    with noted(cm_session.user["email"], "ws-neither"):
        released()


class Relay:
    """The proxy, with a note of its end: of its body's `close`, as PEP 3333 has it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        user = environ["cm_auth.session"].user["email"]
        note(user, "relay", "began")
        return _Noted(self._app(environ, start_response), user)


class _Noted:
    def __init__(self, body: Any, user: str) -> None:
        self._body, self._user = body, user

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        note(self._user, "relay", "closed")
        getattr(self._body, "close", lambda: None)()


app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, {"/relay": Relay(CMWSGIProxy(allow="GET /rest/v2.4/live"))}
)
CMAuth(app)
