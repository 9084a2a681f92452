"""Flask: ``cm`` and ``cm_session`` are proxies for the request's own."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware.flask import CMAuth, cm, cm_session

app = Flask(__name__)
CMAuth(app)


@app.get("/")
def home() -> dict[str, Any]:
    return {
        "user": cm_session.user["email"],
        "query": request.query_string.decode(),
        "process": os.getpid(),
    }


@app.get("/rooms/<name>")
def room(name: str) -> dict[str, str]:
    return {"room": name, "query": request.query_string.decode()}


@app.get("/cameras")
def cameras() -> Response:
    return jsonify([camera["name"] for camera in cm.get("/rest/v2.4/cameras").json()])


@app.route("/data", methods=["GET", "POST"])
def data() -> dict[str, Any]:
    if request.method == "POST":
        cm_session.data.update(request.get_json())
    return cm_session.data


@app.get("/health")
def health() -> str:
    return cm_session.user["email"] if cm_session else "nobody"


if os.environ.get("MATRIX_MOUNT"):
    app.wsgi_app = DispatcherMiddleware(NotFound(), {os.environ["MATRIX_MOUNT"]: app.wsgi_app})
