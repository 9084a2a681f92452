"""A site on a real server whose CameraManager keeps calls waiting for as long as a test likes."""

from __future__ import annotations

import dataclasses
import os
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import zip_longest
from typing import Any
from urllib.parse import parse_qs

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send
from werkzeug import Response
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.proxy import CMProxy, CMWSGIProxy
from cm_auth_middleware.runtime import http
from cm_auth_middleware.testing import AppServer, Simulator, settings_for
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.browser import ANNA, log_in
from tests.helpers.servers import served
from tests.helpers.world import HTML, SECRET_KEY

WSGI = ("gunicorn", "waitress")
THREADS = 4  # of the WSGI servers: waitress's default, and what many give gunicorn
TIMEOUT = 30  # seconds, of the middleware's: longer than any test waits
EXCHANGE, REFRESH = "authorization_code", "refresh_token"
SNAPSHOT = "/rest/v2.4/cameras/2001/snapshot"
SNAPSHOT_V3 = "/media/liveImage.jpeg"
PROXY: dict[str, Any] = {
    "allow": [f"GET {SNAPSHOT}", f"GET {SNAPSHOT_V3}"],
    "cache": {SNAPSHOT: 60, SNAPSHOT_V3: 60},
}
NEIGHBOUR = "another application"
_MOUNT = "TEST_MOUNT"  # the variable that tells a process of it
_TWIN = "TEST_TWIN"
_CONNECTIONS = "TEST_CONNECTIONS"


class HeldCalls:
    """The simulator, but for calls that are not answered while they are held.

    A call has a name: the grant type of a token call, or its method and path.

    Attributes:
        held: names of calls that wait.
        every_second: names of calls of which every second one waits.
        paused: names of calls that are answered 429, with the ``Retry-After`` of that.
        under_way: calls that have not been answered, by name.
        most: the most of these at one time.
    """

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.held: set[str] = set()
        self.every_second: set[str] = set()
        self.paused: dict[str, str] = {}
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._came: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.simulator(scope, receive, send)
            return
        name, messages = f"{scope['method']} {scope['path']}", []
        if scope["path"] in ("/oauth/token", "/oauth2/token"):
            messages = [await receive()]
            while messages[-1].get("more_body"):
                messages.append(await receive())
            form = parse_qs(b"".join(message["body"] for message in messages).decode())
            [name] = form["grant_type"]

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        self._came[name] += 1
        is_second = self._came[name] % 2 == 0
        self.under_way[name] += 1
        self.most[name] = max(self.most[name], self.under_way[name])
        try:
            while name in self.held or (is_second and name in self.every_second):
                await anyio.sleep(0.02)
            if name in self.paused:
                await _refuse(send, self.paused[name])
            else:
                await self.simulator(scope, again, send)
        finally:
            self.under_way[name] -= 1


async def _refuse(send: Send, retry_after: str) -> None:
    headers = [(b"retry-after", retry_after.encode())]
    await send({"type": "http.response.start", "status": 429, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


class HeldSite:
    """An application behind the middleware, on a server of its own.

    It has a proxy below ``/cm``, which keeps one camera's snapshot.

    Args:
        server: of `WSGI`, each with `THREADS`, or ``uvicorn``.
        mount: the path that it is at, if it is not the root; `NEIGHBOUR` answers beside it then.
        twin: the path of another mount, which shares the options and has an engine of its own.
        provider: of the server that it logs in at.
        is_apart: lets uvicorn or waitress run in a process of its own, as gunicorn does.
        connections: that each of the middleware's connection pools has at most.
        options: of the middleware, as strings.

    Attributes:
        api: the origin of the API.
        port: where the server listens, if it is not a uvicorn in this process.
    """

    def __init__(
        self,
        server: str,
        stack: ExitStack,
        *,
        mount: str = "",
        twin: str = "",
        provider: str = "cameramanager",
        is_apart: bool = False,
        connections: int | None = None,
        **options: str,
    ) -> None:
        self.simulator = Simulator(settings_for(provider))
        self.calls = HeldCalls(self.simulator)
        self._stack = stack
        cm = stack.enter_context(AppServer(self.calls, log_level="critical"))
        self.api = self.simulator.origins(cm.url)[-1]
        given = {
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
            "secret_key": SECRET_KEY,
            "provider": provider,
            "base_url": cm.url,
            "exempt": "/health",
            "timeout": str(TIMEOUT),
            **options,
        }
        if connections is not None:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(http, "LIMITS", httpx2.Limits(max_connections=connections))
            patch.setenv(_CONNECTIONS, str(connections))  # for a process
        if server == "uvicorn" and not is_apart:
            app: Any = _mounted(lambda: CMAuthMiddleware(_asgi_app(), **given), mount, twin)
            self.url = stack.enter_context(AppServer(app, log_level="critical")).url + mount
            return
        threads = {} if server == "uvicorn" else {"threads": THREADS}
        if server == "waitress" and not is_apart:
            app = _mounted_wsgi(lambda: CMAuthWSGIMiddleware(_wsgi_app(), **given), mount, twin)
            environment = {}
        else:
            app = f"{__name__}:{'asgi' if server == 'uvicorn' else 'wsgi'}_application"
            environment = {f"CM_AUTH_{name.upper()}": value for name, value in given.items()}
            environment |= {_MOUNT: mount, _TWIN: twin}
        self.port = stack.enter_context(served(server, app, **threads, **environment))
        self.url = f"http://127.0.0.1:{self.port}{mount}"
        stack.callback(self.calls.held.clear)  # before the server waits for its threads

    def visitor(self) -> httpx2.Client:
        """Return a client that has no session."""
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=1)
        client = httpx2.Client(base_url=self.url, timeout=60, headers=HTML, limits=limits)
        return self._stack.enter_context(client)

    def user(self, email: str = ANNA, *, expired: bool = False) -> httpx2.Client:
        """Return a client that is logged in, if need be with an access token that has expired."""
        [client] = self._users([email], expired=expired)
        return client

    def expired_users(self, count: int) -> list[httpx2.Client]:
        """Return the clients of so many users, whose access tokens have expired."""
        anna = self.simulator.users[0]
        more = [
            dataclasses.replace(anna, email=f"u{n}@example.com", user_id=20_000 + n)
            for n in range(count)
        ]
        self.simulator.users += more
        return self._users([user.email for user in more], expired=True)

    def _users(self, emails: list[str], *, expired: bool) -> list[httpx2.Client]:
        self.simulator.settings.access_token_lifetime = 0.5 if expired else 43_199
        clients = [self.visitor() for _ in emails]
        for client, email in zip(clients, emails, strict=True):
            log_in(client, self.simulator, email)
        self.simulator.settings.access_token_lifetime = 43_199
        if expired:
            time.sleep(0.6)
        return clients

    def callback_url(self, start: httpx2.Response) -> str:
        """Return where CameraManager sends a visitor whose login began so, consent given."""
        query = httpx2.URL(start.headers["location"]).params
        uri = query["redirect_uri"]
        code = self.simulator.issue_code(ANNA, uri, query["code_challenge"])
        return f"{uri}?code={code}&state={query['state']}"

    def junk(self) -> Callable[[], httpx2.Response]:
        """Begin a login as a visitor; return what sends its callback, with an invented code."""
        visitor = self.visitor()
        start = visitor.get("/auth/login")
        state = httpx2.URL(start.headers["location"]).params["state"]
        return lambda: visitor.get("/auth/callback", params={"code": "invent", "state": state})

    def seconds(self, client: httpx2.Client, path: str = "/") -> float:
        """Return the longest time that one of several requests takes."""
        longest = 0.0
        for _ in range(5):
            began = time.monotonic()
            response = client.get(path)
            longest = max(longest, time.monotonic() - began)
            assert response.status_code == 200, response.text
        return longest


@contextmanager
def at_once(*requests: Callable[[], httpx2.Response]) -> Iterator[list[Future[httpx2.Response]]]:
    """Send requests at one time, each from a thread of its own; wait for the answers at the end."""
    with ThreadPoolExecutor(len(requests)) as pool:
        ready = threading.Barrier(len(requests))

        def send(request: Callable[[], httpx2.Response]) -> httpx2.Response:
            ready.wait(30)
            return request()

        yield [pool.submit(send, request) for request in requests]


class Burst:
    """Requests that are sent at one time, each by a connection of its own.

    Args:
        client: whose site and cookies they have.
        paths: one for each request.
        cookies: the Cookie header of each, if it is not the client's.
    """

    def __init__(
        self, client: httpx2.Client, paths: Sequence[str], cookies: Sequence[str] = ()
    ) -> None:
        address = client.base_url.host, client.base_url.port
        own = client.build_request("GET", "/").headers.get("Cookie", "")
        sockets = [socket.create_connection(address, timeout=60) for _ in paths]
        for connection, path, cookie in zip_longest(sockets, paths, cookies, fillvalue=own):
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nAccept: text/html\r\n"
                f"Cookie: {cookie}\r\nConnection: close\r\n\r\n".encode()
            )
        self._found: list[tuple[int, str]] = []
        self._sockets = sockets
        self._has_left = False
        self._reader = threading.Thread(target=self._read, args=[sockets], daemon=True)
        self._reader.start()

    def answered(self) -> int:
        """Return how many have their answer."""
        return len(self._found)

    def answers(self) -> list[tuple[int, str]]:
        """Wait for the answers; return the status and the Retry-After of each, as they came."""
        self._reader.join(60)
        assert not self._reader.is_alive()
        return self._found

    def hang_up(self) -> None:
        """Leave without what is missing of the answers."""
        self._has_left = True
        for connection in self._sockets:
            with suppress(OSError):  # it has its answer, and is closed
                connection.shutdown(socket.SHUT_RDWR)

    def _read(self, sockets: list[socket.socket]) -> None:
        # A connection that stays open after its answer would hold gunicorn up, which waits for it.
        with selectors.DefaultSelector() as selector:
            for connection in sockets:
                selector.register(connection, selectors.EVENT_READ, bytearray())
            while selector.get_map():
                for key, _ in selector.select():
                    connection: Any = key.fileobj
                    try:
                        part = connection.recv(65_536)
                    except ConnectionResetError:
                        if not self._has_left:
                            raise
                        part = b""
                    key.data.extend(part)
                    if not part:
                        selector.unregister(connection)
                        connection.close()
                        self._found.append(_status(bytes(key.data)))


def _status(answer: bytes) -> tuple[int, str]:
    lines = answer.partition(b"\r\n\r\n")[0].decode("latin-1").lower().split("\r\n")
    again = [line for line in lines if line.startswith("retry-after: ")]
    return int(lines[0].split()[1]), "".join(again).removeprefix("retry-after: ")


def _asgi_app() -> Any:
    return make_app([Mount("/cm", CMProxy(**PROXY))])


def _wsgi_app() -> Any:
    return DispatcherMiddleware(make_wsgi_app(), {"/cm": CMWSGIProxy(**PROXY)})


def _mounted(make: Callable[[], Any], mount: str, twin: str) -> Any:
    if not mount:
        return make()
    mounts = [Mount(path, make()) for path in (mount, twin) if path]
    return Starlette(routes=[*mounts, Mount("", PlainTextResponse(NEIGHBOUR))])


def _mounted_wsgi(make: Callable[[], Any], mount: str, twin: str) -> Any:
    if not mount:
        return make()
    mounts = {path: make() for path in (mount, twin) if path}
    return DispatcherMiddleware(Response(NEIGHBOUR), mounts)


def __getattr__(name: str) -> Any:
    """What servers name by ``module:variable``: its options come from the environment."""
    if name in ("wsgi_application", "asgi_application") and _CONNECTIONS in os.environ:
        http.LIMITS = httpx2.Limits(max_connections=int(os.environ[_CONNECTIONS]))
    if name == "wsgi_application":
        mounts = os.environ[_MOUNT], os.environ[_TWIN]
        return _mounted_wsgi(lambda: CMAuthWSGIMiddleware(_wsgi_app()), *mounts)
    if name == "asgi_application":
        mounts = os.environ[_MOUNT], os.environ[_TWIN]
        return _mounted(lambda: CMAuthMiddleware(_asgi_app()), *mounts)
    raise AttributeError(name)
