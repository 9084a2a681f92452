"""The applications that are put behind a real server; each function makes one."""

from __future__ import annotations

import os
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from .ideal import Cookies, IdealMiddleware, new_record
from .world import SECRET_KEY_VARIABLE, USER

IDEAL_SESSION = "x" * 86
BEARER = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa:10003"


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


def proxied() -> Any:
    """Our proxy to the API behind our middleware, and another one that keeps snapshots."""
    from cm_auth_middleware import CMAuthMiddleware
    from cm_auth_middleware.proxy import CMProxy

    async def home(request: Request) -> Response:
        return PlainTextResponse("ok")

    allow, cache = ["GET /rest/*"], {"/rest/v2.4/cameras/*/snapshot": 3600}
    routes = [
        Route("/", home),
        Mount("/cm", CMProxy(allow=allow)),
        Mount("/kept", CMProxy(allow=allow, cache=cache)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(CMAuthMiddleware)])


def relay() -> Any:
    """The relay that one would write by hand, with a bearer token that never changes."""
    import httpx2

    client = httpx2.AsyncClient(
        base_url=os.environ["CM_AUTH_BASE_URL"],
        headers={"Authorization": f"Bearer {BEARER}"},
        limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=20),
    )
    kept = ("content-type", "content-length", "content-range", "accept-ranges", "etag")

    async def endpoint(request: Request) -> Response:
        asked = {name: request.headers[name] for name in ("range",) if name in request.headers}
        path = f"/{request.path_params['path']}"
        answer = await client.send(client.build_request("GET", path, headers=asked), stream=True)
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        return StreamingResponse(
            answer.aiter_raw(),
            answer.status_code,
            headers,
            background=BackgroundTask(answer.aclose),
        )

    return Starlette(routes=[Route("/cm/{path:path}", endpoint)])


def authlib_login() -> Any:
    """The login that one would write by hand with Authlib: PKCE, the user, a session in Redis.

    Its clients share their connections. Nothing is encrypted, refreshed or logged out, and a code
    that comes twice is sent twice.
    """
    import json
    import secrets
    import warnings

    import httpx2
    from redis.asyncio import Redis
    from starlette.responses import RedirectResponse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from authlib.integrations.httpx_client import AsyncOAuth2Client

    base_url = os.environ["CM_AUTH_BASE_URL"]
    sessions: Any = Redis.from_url(os.environ["CM_AUTH_STORE"])
    transport = httpx2.AsyncHTTPTransport()  # one for all: its TLS settings take 20 ms

    def client(request: Request) -> Any:
        return AsyncOAuth2Client(
            os.environ["CM_AUTH_CLIENT_ID"],
            os.environ["CM_AUTH_CLIENT_SECRET"],
            redirect_uri=str(request.url_for("callback")),
            scope="write",
            code_challenge_method="S256",
            transport=transport,
        )

    async def home(request: Request) -> Response:
        session = request.session.get("id")
        if session is not None and await sessions.get(f"session:{session}"):
            return PlainTextResponse("ok")
        verifier = secrets.token_urlsafe(48)
        url, state = client(request).create_authorization_url(
            f"{base_url}/oauth/authorize", code_verifier=verifier
        )
        request.session.update(state=state, verifier=verifier)
        return RedirectResponse(url, 302)

    async def callback(request: Request) -> Response:
        state, verifier = request.session.pop("state"), request.session.pop("verifier")
        oauth = client(request)
        token = await oauth.fetch_token(
            f"{base_url}/oauth/token",
            authorization_response=str(request.url),
            state=state,
            code_verifier=verifier,
        )
        user = (await oauth.get(f"{base_url}/rest/v2.3/users/self")).raise_for_status().json()
        session = secrets.token_urlsafe(32)
        record = json.dumps({"token": token, "user": user})
        await sessions.set(f"session:{session}", record, ex=7 * 86_400)
        request.session["id"] = session
        return RedirectResponse("/", 302)

    return Starlette(
        routes=[Route("/", home), Route("/callback", callback, name="callback")],
        middleware=[Middleware(SessionMiddleware, secret_key=os.environ[SECRET_KEY_VARIABLE])],
    )


def flask_proxied() -> Any:
    """Our WSGI proxy to the API behind our middleware, and another one that keeps snapshots."""
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    from cm_auth_middleware.flask import CMAuth
    from cm_auth_middleware.proxy import CMWSGIProxy

    from .wsgi_path import bare_app

    allow, cache = ["GET /rest/*"], {"/rest/v2.4/cameras/*/snapshot": 3600}
    proxies: dict[str, Any] = {"/cm": CMWSGIProxy(allow=allow)}
    proxies["/kept"] = CMWSGIProxy(allow=allow, cache=cache)
    app = bare_app()
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, proxies)  # type: ignore[method-assign]
    CMAuth(app)
    return app


def flask_relay() -> Any:
    """The relay that one would write by hand for Flask; see `relay`."""
    import flask
    import httpx2

    client = httpx2.Client(
        base_url=os.environ["CM_AUTH_BASE_URL"],
        headers={"Authorization": f"Bearer {BEARER}"},
    )
    kept = ("content-type", "content-length", "content-range", "accept-ranges", "etag")
    app = flask.Flask("relay")

    @app.get("/cm/<path:path>")
    def endpoint(path: str) -> flask.Response:
        sent = flask.request.headers
        asked = {name: sent[name] for name in ("range",) if name in sent}
        answer = client.send(client.build_request("GET", f"/{path}", headers=asked), stream=True)
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        response = flask.Response(answer.iter_raw(), answer.status_code, headers)
        response.call_on_close(answer.close)
        return response

    return app


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
    """Flask whose handler asks Redis for a record, by redis-py with the options of our store."""
    from flask import Flask
    from redis import Redis

    from cm_auth_middleware.stores.redis_target import Target

    app = Flask("get")
    client = Redis.from_pool(Target.parse(os.environ["CM_AUTH_STORE"]).pool("redis"))
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
