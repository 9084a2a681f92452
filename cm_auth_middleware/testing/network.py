"""Connect HTTP clients to ASGI and WSGI apps in the same process, without sockets."""

from __future__ import annotations

import copy
import inspect
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Literal

import anyio
import anyio.to_thread
import httpx2

from cm_auth_middleware.testing.bridge import ASGIBridge
from cm_auth_middleware.testing.loop import LoopThread

Interface = Literal["asgi", "wsgi"]


class Network(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """A transport for `httpx2.AsyncClient` and `httpx2.Client` that needs no socket.

    An ASGI app runs in the event loop of its caller, or in the network's own if the caller has
    none. A WSGI app runs in the thread of its caller, or in a worker thread if the caller has an
    event loop.

    Attributes:
        apps: the apps by origin; when one is deleted, connections to its origin fail.
        seen: every request so far, as it was sent.
    """

    def __init__(self) -> None:
        self.apps: dict[str, Any] = {}
        self.seen: list[httpx2.Request] = []
        self._loop = LoopThread()

    def add(self, origin: str, app: Any, interface: Interface | None = None) -> None:
        """Add an app to the network.

        Args:
            origin: scheme, host and port, such as ``http://localhost:8000``.
            app: the application.
            interface: "asgi" or "wsgi"; if it is not given, the application is examined.
        """
        is_asgi = (interface or interface_of(app)) == "asgi"
        self.apps[origin] = _ASGIApp(app, self._loop) if is_asgi else _WSGIApp(app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request from an event loop."""
        response: httpx2.Response = await self._find(request).call_async(request)
        return response

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request from a thread."""
        response: httpx2.Response = self._find(request).call(request)
        return response

    def close(self) -> None:
        """Do nothing, because several clients share the network. See `shut_down`."""

    def shut_down(self) -> None:
        """End the network's own event loop."""
        self._loop.close()

    def _find(self, request: httpx2.Request) -> Any:
        # As it was sent: a client may change its request later.
        sent = copy.copy(request)
        sent.headers = request.headers.copy()
        self.seen.append(sent)
        origin = origin_of(request.url)
        if origin not in self.apps:
            raise httpx2.ConnectError(f"no application listens at {origin}")
        return self.apps[origin]


class Sockets(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """A transport that opens a real connection for each request; for http only.

    No connection stays open, because a test may never close the application's engine.
    """

    def __init__(self) -> None:
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._options: Any = {"limits": limits, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request from an event loop."""
        return await httpx2.AsyncHTTPTransport(**self._options).handle_async_request(request)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request from a thread."""
        return httpx2.HTTPTransport(**self._options).handle_request(request)


class _ASGIApp:
    def __init__(self, app: Any, loop: LoopThread) -> None:
        self._here = httpx2.ASGITransport(app)
        self._there = ASGIBridge(app, loop)

    async def call_async(self, request: httpx2.Request) -> httpx2.Response:
        with anyio.move_on_after(request.extensions.get("timeout", {}).get("read")):
            return await self._here.handle_async_request(request)
        raise httpx2.ReadTimeout("the application did not answer in time")

    def call(self, request: httpx2.Request) -> httpx2.Response:
        return self._there.handle_request(request)


class _WSGIApp:
    def __init__(self, app: Any) -> None:
        self._transport = wsgi_transport(app)

    async def call_async(self, request: httpx2.Request) -> httpx2.Response:
        headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"transfer-encoding"]
        body = await request.aread()
        whole = httpx2.Request(request.method, request.url, headers=headers, content=body)
        return await anyio.to_thread.run_sync(self._call_whole, whole)

    def call(self, request: httpx2.Request) -> httpx2.Response:
        return self._transport.handle_request(request)

    def _call_whole(self, request: httpx2.Request) -> httpx2.Response:
        answer = self._transport.handle_request(request)
        try:
            body = b"".join(answer.iter_raw())  # still compressed: the new response decodes it
        finally:
            answer.close()
        return httpx2.Response(answer.status_code, headers=answer.headers, content=body)


def wsgi_transport(app: Any, *, raise_app_exceptions: bool = True) -> httpx2.BaseTransport:
    """Make a transport for `httpx2.Client` that calls a WSGI app in the caller's thread."""

    def as_servers_do(
        environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        # PEP 3333 wants the bytes of the path, decoded as Latin-1; httpx2 passes the text.
        environ["PATH_INFO"] = environ["PATH_INFO"].encode().decode("latin-1")
        answer: Iterable[bytes] = app(environ, start_response)
        return answer

    return httpx2.WSGITransport(
        as_servers_do, raise_app_exceptions=raise_app_exceptions, remote_addr="127.0.0.1"
    )


def interface_of(app: Any) -> Interface:
    """Return "asgi" if calling the application gives a coroutine, else "wsgi", as uvicorn does."""
    called = app if inspect.isfunction(app) else getattr(app, "__call__", app)  # noqa: B004
    is_async = inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(called)
    return "asgi" if is_async else "wsgi"


def is_application(app: Any) -> bool:
    """Return False for what takes neither the arguments of WSGI nor those of ASGI: a factory."""
    for arguments in (("environ", "start_response"), ("scope", "receive", "send")):
        try:
            inspect.signature(app).bind(*arguments)
        except TypeError:
            continue
        except ValueError:  # it does not tell
            return True
        return True
    return False


def origin_of(url: httpx2.URL | str) -> str:
    """Return scheme, host and port of a URL."""
    url = httpx2.URL(url)
    return f"{url.scheme}://{url.netloc.decode()}"
