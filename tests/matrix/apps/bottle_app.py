"""Bottle: the client is ``request.environ["cm_auth.client"]``."""

from __future__ import annotations

import json
import os
from typing import Any

from bottle import Bottle, request, response

from cm_auth_middleware import CMAuthWSGIMiddleware

bottle = Bottle()


def session() -> Any:
    return request.environ["cm_auth.session"]


@bottle.get("/")
def home() -> dict[str, str]:
    return {"user": session().user["email"], "query": request.query_string}


@bottle.get("/rooms/<name>")
def room(name: str) -> dict[str, str]:
    return {"room": name, "query": request.query_string}


@bottle.get("/cameras")
def cameras() -> str:
    answer = request.environ["cm_auth.client"].get("/rest/v2.4/cameras")
    response.content_type = "application/json"
    return json.dumps([camera["name"] for camera in answer.json()])


@bottle.route("/data", method=["GET", "POST"])
def data() -> dict[str, Any]:
    if request.method == "POST":
        session().data.update(request.json)
    return session().data


@bottle.get("/health")
def health() -> str:
    return session().user["email"] if session() else "nobody"


app: Any = CMAuthWSGIMiddleware(bottle)
if os.environ.get("MATRIX_MOUNT"):
    protected, app = app, Bottle()
    app.mount(os.environ["MATRIX_MOUNT"], protected)
