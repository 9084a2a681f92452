"""The site that the chaos tests run in processes of their own, and a clock that all of them share.

``uvicorn --factory tests.chaos.site:asgi`` or ``gunicorn 'tests.chaos.site:wsgi()'``, with the
variable CHAOS: ``{"clock": path, "skew": seconds, "lease_margin": seconds, "options": {…}}``.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, UnavailableError
from cm_auth_middleware.flask import CMAuth
from cm_auth_middleware.tokens import refresh
from tests.helpers.apps import make_app, make_wsgi_app

_OFFSET = struct.Struct("d")


class SharedClock:
    """The time of day plus an offset that lies in a file: whoever moves it moves everybody.

    Args:
        path: the file; it is made if it is not there.
        skew: seconds that this process's clock is ahead of the others'.
    """

    def __init__(self, path: str | os.PathLike[str], skew: float = 0.0) -> None:
        file = Path(path)
        if not file.exists():
            file.write_bytes(_OFFSET.pack(0.0))
        with file.open("r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), _OFFSET.size)
        self._skew = skew

    def __call__(self) -> float:
        return time.time() + _OFFSET.unpack_from(self._shared)[0] + self._skew

    def move(self, seconds: float) -> None:
        """Let time pass for everybody."""
        (offset,) = _OFFSET.unpack_from(self._shared)
        _OFFSET.pack_into(self._shared, 0, offset + seconds)


def make_engine() -> AuthEngine:
    setting = json.loads(os.environ["CHAOS"])
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("cm_auth_middleware").setLevel(logging.INFO)
    if setting["lease_margin"] is not None:
        refresh._LEASE_MARGIN = setting["lease_margin"]
    clock = SharedClock(setting["clock"], setting["skew"])
    return AuthEngine(clock=clock, exempt=("/health", "/admin/*"), **setting["options"])


def asgi() -> Any:
    engine = make_engine()

    async def sessions(request: Request) -> Response:
        try:
            found = await engine.sessions(request.path_params["user"])
        except UnavailableError:
            return JSONResponse("again in a moment", 503)
        return JSONResponse([[info.reference, info.address] for info in found])

    async def logout(request: Request) -> Response:
        try:
            ended = await engine.logout_user(request.path_params["user"])
        except UnavailableError:
            return JSONResponse("again in a moment", 503)
        return JSONResponse(ended)

    routes = [
        Route("/admin/sessions/{user}", sessions),
        Route("/admin/logout/{user}", logout, methods=["POST"]),
    ]
    app = CMAuthMiddleware(make_app(routes), engine=engine)

    async def signed(scope: Any, receive: Any, send: Any) -> None:
        async def sign(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-worker", b"%d" % os.getpid())]
            await send(message)

        await app(scope, receive, sign)

    return signed


def wsgi() -> Any:
    engine = make_engine()
    site = make_wsgi_app()

    @site.get("/admin/sessions/<user>")
    def sessions(user: str) -> Any:
        return [[info.reference, info.address] for info in engine.sessions(user)]

    @site.post("/admin/logout/<user>")
    def logout(user: str) -> Any:
        return str(engine.logout_user(user))

    CMAuth(site, engine=engine)

    def signed(environ: Any, start_response: Any) -> Any:
        def sign(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, [*headers, ("X-Worker", str(os.getpid()))], exc_info)

        return site(environ, sign)

    return signed
