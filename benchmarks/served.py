"""The applications that are put behind a real server; each function makes one."""

from __future__ import annotations

import os
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .ideal import Cookies, IdealMiddleware, new_record
from .world import SECRET_KEY_VARIABLE, USER

IDEAL_SESSION = "x" * 86


def bare() -> Any:
    """Starlette that asks nobody who they are."""
    return _app()


def ours() -> Any:
    """The same behind our middleware, configured by the environment."""
    from cm_auth_middleware import CMAuthMiddleware

    return _app(Middleware(CMAuthMiddleware))


def session_middleware() -> Any:
    """The same with Starlette's own sessions."""
    return _app(Middleware(SessionMiddleware, secret_key=os.environ[SECRET_KEY_VARIABLE]))


def ideal() -> Any:
    """The same behind the ideal."""
    cookies = Cookies(os.environ[SECRET_KEY_VARIABLE])
    sessions = {IDEAL_SESSION.encode(): new_record(USER)}
    return _app(Middleware(IdealMiddleware, cookies=cookies, find=sessions.get))


def _app(*middleware: Middleware) -> Starlette:
    """An application whose first route does not look who is logged in."""

    async def home(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def who(request: Request) -> Response:
        return PlainTextResponse("ok" if request.state.cm_session.user["email"] else "")

    async def session(request: Request) -> Response:
        return PlainTextResponse("ok" if request.session["user"]["email"] else "")

    async def log_in(request: Request) -> Response:
        request.session.update({"user": USER, "scope": "write", "csrf": "x" * 32})
        return PlainTextResponse("ok")

    handlers = {"/": home, "/who": who, "/session": session, "/log-in": log_in}
    routes = [Route(path, handler) for path, handler in handlers.items()]
    return Starlette(routes=routes, middleware=list(middleware))


def flask_bare() -> Any:
    """Flask that asks nobody who they are."""
    from .wsgi_path import bare_app

    return bare_app()


def redirecting() -> Any:
    """Starlette that sends everybody to the same place."""
    from starlette.responses import RedirectResponse

    async def elsewhere(request: Request) -> Response:
        return RedirectResponse("https://login.example/authorize?client_id=x", 302)

    return Starlette(routes=[Route("/", elsewhere)])


def flask_get() -> Any:
    """Flask whose handler asks Redis for a record, by a client like that of our store."""
    from flask import Flask

    from cm_auth_middleware.stores.redis_target import Target

    app, client = Flask("get"), Target.parse(os.environ["CM_AUTH_STORE"]).client("redis")
    client.set("benchmark", b"x" * 500)
    app.add_url_rule("/", view_func=lambda: "ok" if client.get("benchmark") else "")
    return app


def flask_ours() -> Any:
    """Flask behind our middleware, configured by the environment."""
    from .wsgi_path import our_app

    return our_app()


def flask_session() -> Any:
    """Flask with its own sessions."""
    from .wsgi_path import session_app

    return session_app()
