"""The files of this folder: those that the pages contain, and ``session.js``."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from .request import Request
from .response import Response

SESSION_SCRIPT = "session.js"


@cache
def read(name: str) -> str:
    """Return the text of a file in the folder ``web``."""
    return (files(__package__) / name).read_text("utf-8")


@cache
def digest(name: str) -> str:
    """Return a file's hash, in the form of a Content-Security-Policy and of ``integrity``."""
    return "sha256-" + base64.b64encode(hashlib.sha256(read(name).encode()).digest()).decode()


async def session_script(_: Request) -> Response:
    """Serve ``session.js``, which the application's own pages load.

    A browser asks each time, so that a new version of this package brings its own.
    """
    headers = [
        ("Content-Type", "text/javascript; charset=utf-8"),
        ("Cache-Control", "no-cache"),
        ("ETag", f'"{digest(SESSION_SCRIPT)}"'),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Response(200, headers, read(SESSION_SCRIPT).encode())
