"""Log in to an ASGI and a WSGI app with nothing but the core installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import cm_auth_middleware
from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import CMLogin, CMServer, Simulator

OPTIONAL = (
    "click",
    "fastapi",
    "flask",
    "jinja2",
    "mkdocs",
    "opentelemetry",
    "PIL",
    "psycopg",
    "pytest",
    "redis",
    "uvicorn",
)


async def asgi(scope, receive, send):
    answer = await scope["state"]["cm"].get("/rest/v2.4/cameras")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer.content})


def wsgi(environ, start_response):
    start_response("200 OK", [])
    return [environ["cm_auth.client"].get("/rest/v2.4/cameras").content]


def main():
    assert not [name for name in OPTIONAL if importlib.util.find_spec(name)]
    for name in cm_auth_middleware.__all__:
        assert getattr(cm_auth_middleware, name)
    assert cm_auth_middleware.__version__ == importlib.metadata.version("cm_auth_middleware")
    server = CMServer(Simulator())
    server.open()
    login = CMLogin(server)
    options = {"base_url": server.url, "client_id": server.client_id}
    options |= {"client_secret": server.client_secret, "secret_key": server.secret_key}
    for app in (CMAuthMiddleware(asgi, **options), CMAuthWSGIMiddleware(wsgi, **options)):
        assert login(app).get("/cameras").json()[0]["name"] == "Front gate"
    login.close()
    server.close()


if __name__ == "__main__":
    main()
