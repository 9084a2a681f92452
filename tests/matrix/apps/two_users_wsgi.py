"""WSGI's twin of the ASGI app; there is no lifespan and no state."""

from __future__ import annotations

import itertools
import time
from typing import Any

from flask import Flask, request

from cm_auth_middleware.flask import CMAuth, cm_session

_PAUSE = 0.2
_numbers = itertools.count()

app = Flask(__name__)
CMAuth(app)


@app.get("/who")
@app.get("/open")
def who() -> dict[str, Any]:
    request.environ["tests.number"] = number = next(_numbers)
    before = cm_session.user["email"] if cm_session else None
    time.sleep(_PAUSE)
    return {
        "user": request.environ["cm_auth.session"] and cm_session.user["email"],
        "before": before,
        "kept": request.environ["tests.number"] == number,
        "started": "by the lifespan",
        "version": request.environ["SERVER_PROTOCOL"].removeprefix("HTTP/").removesuffix(".0"),
        "port": int(request.environ.get("REMOTE_PORT", 0)) or None,  # not in the standard
        "number": number,
    }


@app.get("/health")
def health() -> str:
    return "well"
