"""What the security tests share: what a browser holds, a browser's way to read a URL, stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.util import setup_testing_defaults

import ada_url
import anyio.to_thread
import httpx2

from tests.helpers.browser import Browser
from tests.helpers.world import APP, World

NAME = "cm_auth"


def query_of(response: httpx2.Response) -> dict[str, str]:
    """The parameters of a response's Location."""
    query = urlsplit(response.headers["location"]).query
    return {k: v[0] for k, v in parse_qs(query, strict_parsing=True).items()}


def cookies_of(browser: Browser) -> str:
    """Everything that the browser would send, as one Cookie header."""
    return "; ".join(f"{c.name}={c.value}" for c in browser.cookies.jar)


def session_of(browser: Browser) -> str:
    """The value of the browser's session cookie."""
    [value] = browser.named(NAME)
    return value


def lands_on(base: str, location: str) -> str:
    """Where a browser at `base` goes for a Location, as the URL standard (WHATWG) resolves it."""
    return ada_url.URL(location, base=base).href


def is_ours(location: str, base: str = f"{APP}/auth/callback") -> bool:
    """Whether a browser that follows `location` stays at this app."""
    try:
        target = ada_url.URL(location, base=base)
    except ValueError:
        return False
    return target.origin == ada_url.URL(base).origin and target.username == ""


async def started(browser: Browser, path: str = "/cameras") -> httpx2.Response:
    """Begin a login."""
    response = await browser.get(path)
    assert response.status_code == 302, response.text
    return response


async def is_logged_in(world: World, cookie: str, path: str = "/") -> bool:
    """Whether somebody with this Cookie header, and nothing else, is let in."""
    response = await world.browser(Cookie=cookie).get(path)
    assert response.status_code in (200, 302), response.text
    return response.status_code == 200


def stored(world: World) -> dict[str, bytes]:
    """What the world's memory store holds now, by key; what has expired too."""
    return dict(_entries(world.engine.store))


def sessions_in(world: World) -> dict[str, bytes]:
    """The same without the list of users."""
    return {key: value for key, value in stored(world).items() if not key.startswith("listed.")}


def _entries(store: Any) -> Iterator[tuple[str, bytes]]:
    for values, _ in store._shards:
        yield from values.items()


Response = tuple[int, list[tuple[str, str]], bytes]


async def visit(world: World, cookie: bytes, path: str = "/") -> Response:
    """Ask with a Cookie header of any bytes, as a server hands them on: status, headers, body."""
    if world.side == "asgi":
        return await call_asgi(world.app, cookie, path)
    return await anyio.to_thread.run_sync(call_wsgi, world.app, cookie, path)


async def call_asgi(app: Any, cookie: bytes, path: str) -> Response:
    """Ask an ASGI app; see `visit`."""
    path, _, query = path.partition("?")
    headers = [(b"host", b"localhost:8000"), (b"accept", b"text/html"), (b"cookie", cookie)]
    scope = {
        "type": "http", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode(),
        "root_path": "", "query_string": query.encode(), "headers": headers, "http_version": "1.1",
        "client": ("127.0.0.1", 1), "server": ("localhost", 8000), "asgi": {"version": "3.0"},
    }  # fmt: skip
    return await send_asgi(app, scope)


async def send_asgi(app: Any, scope: dict[str, Any]) -> Response:
    """Send a request with an empty body to an ASGI app."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in sent[0]["headers"]]
    return sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent)


def call_wsgi(app: Any, cookie: bytes, path: str) -> Response:
    """Ask a WSGI app in this thread; see `visit`."""
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {"QUERY_STRING": query}
    setup_testing_defaults(environ)
    environ |= {
        "HTTP_HOST": "localhost:8000", "HTTP_ACCEPT": "text/html", "PATH_INFO": path,
        "HTTP_COOKIE": cookie.decode("latin-1"), "REMOTE_ADDR": "127.0.0.1",
    }  # fmt: skip
    return send_wsgi(app, environ)


def send_wsgi(app: Any, environ: dict[str, Any]) -> Response:
    """Send a request to a WSGI app in this thread, and close what it returns, as PEP 3333 asks."""
    started: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append((status, headers))
        return lambda data: None

    parts = app(environ, start_response)
    try:
        body = b"".join(parts)
    finally:
        getattr(parts, "close", lambda: None)()
    status, headers = started[-1]
    return int(status[:3]), headers, body
