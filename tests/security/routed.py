"""Applications that say which of their routes a request came to, bare and behind the middleware."""

from __future__ import annotations

from typing import Any

import flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.proxy import CMWSGIProxy
from tests.helpers.world import SECRET_KEY

EXEMPT = ("/health", "/public/*")
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "EVIL"]
OPTIONS: dict[str, Any] = {
    "client_id": "id",
    "client_secret": "secret",
    "secret_key": SECRET_KEY,
    "base_url": "http://127.0.0.1:9",  # nobody listens: a visitor needs nothing from there
    "exempt": EXEMPT,
}


def asgi_app() -> Starlette:
    """Two public routes; everything else is secret."""
    return Starlette(
        routes=[
            Route("/health", _say("open"), methods=METHODS),
            Route("/public/{rest:path}", _say("open"), methods=METHODS),
            Route("/{rest:path}", _say("secret"), methods=METHODS),
        ]
    )


def _say(word: str) -> Any:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(word)

    return endpoint


def wsgi_app() -> flask.Flask:
    """The same in Flask."""
    app = flask.Flask(__name__, static_folder=None)
    for word, rule in (
        ("open", "/health"),
        ("open", "/public/"),
        ("open", "/public/<path:rest>"),
        ("secret", "/"),
        ("secret", "/<path:rest>"),
    ):
        app.add_url_rule(
            rule,
            f"{word} {rule}",
            view_func=lambda rest="", word=word: flask.Response(word, mimetype="text/plain"),
            methods=METHODS,
            provide_automatic_options=False,
        )
    return app


def guarded_asgi(mount: str = "") -> Any:
    guarded = CMAuthMiddleware(asgi_app(), **OPTIONS)
    return Starlette(routes=[Mount(mount, app=guarded)]) if mount else guarded


def guarded_wsgi() -> Any:
    return CMAuthWSGIMiddleware(wsgi_app(), **OPTIONS)


RELAYED = [f"{method} /rest/v2.4/echo" for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]


def relaying_wsgi(**options: Any) -> Any:
    """A site with the proxy to a part of the API."""
    site = DispatcherMiddleware(wsgi_app(), {"/cm": CMWSGIProxy(allow=RELAYED)})
    return CMAuthWSGIMiddleware(site, **options)


def __getattr__(name: str) -> Any:
    """What gunicorn names by ``module:variable``; made when it is asked for."""
    if name == "bare_application":
        return wsgi_app()
    if name == "application":
        return guarded_wsgi()
    if name == "relaying":
        return relaying_wsgi()  # its options come from the environment
    raise AttributeError(name)
