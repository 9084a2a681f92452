"""What the tests share: an app behind the middleware, the simulator, and a browser on both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio.to_thread
import httpx2

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, CMAuthWSGIMiddleware
from cm_auth_middleware.testing import Settings, Simulator

from .apps import make_app, make_wsgi_app

APP = "http://localhost:8000"
CM = "http://127.0.0.1:9400"
SECRET_KEY = "kW9cK2mZ4vB7nQ1xT5yR8uE3oP6aS0dF-gHjL_zXc"
HTML = {"Accept": "text/html,application/xhtml+xml"}
JSON = {"Accept": "application/json"}


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds


class Net(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """A network of ASGI and WSGI apps by origin, in process, for callers of both kinds."""

    def __init__(self) -> None:
        self.apps: dict[str, Callable[[httpx2.Request], Any]] = {}
        self.seen: list[httpx2.Request] = []

    def add(self, origin: str, app: Any) -> None:
        """Put an ASGI app on the network."""
        self.apps[origin] = httpx2.ASGITransport(app).handle_async_request

    def add_wsgi(self, origin: str, app: Any) -> None:
        """Put a WSGI app on the network; each of its requests runs in a thread, as on a server."""

        def as_servers_do(environ: dict[str, Any], start_response: Any) -> Any:
            # The bytes of the path as Latin-1 (PEP 3333), which httpx2's transport forgets.
            environ["PATH_INFO"] = environ["PATH_INFO"].encode().decode("latin-1")
            return app(environ, start_response)

        transport = httpx2.WSGITransport(as_servers_do, remote_addr="127.0.0.1")

        def respond(request: httpx2.Request) -> httpx2.Response:
            answer = transport.handle_request(request)
            try:
                body = b"".join(answer.stream)
            finally:
                answer.stream.close()
            return httpx2.Response(answer.status_code, headers=answer.headers, content=body)

        async def handle(request: httpx2.Request) -> httpx2.Response:
            return await anyio.to_thread.run_sync(respond, _whole(request, await request.aread()))

        self.apps[origin] = handle

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
        if origin not in self.apps:
            raise httpx2.ConnectError(f"nobody listens at {origin}")
        return await self.apps[origin](request)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        async def handle() -> httpx2.Response:
            body = b"".join(request.stream)
            twin = httpx2.Request(
                request.method, request.url, headers=request.headers, content=body
            )
            answer = await self.handle_async_request(twin)
            return httpx2.Response(
                answer.status_code, headers=answer.headers, content=await answer.aread()
            )

        return asyncio.run(handle())


def _whole(request: httpx2.Request, body: bytes) -> httpx2.Request:
    """The request with its body in memory."""
    headers = [(k, v) for k, v in request.headers.raw if k.lower() != b"transfer-encoding"]
    return httpx2.Request(request.method, request.url, headers=headers, content=body)


class World:
    """One simulator, one app behind the middleware, one clock."""

    def __init__(
        self,
        *,
        shell: str = "asgi",
        app: Any = None,
        settings: Settings | None = None,
        **options: Any,
    ) -> None:
        self.clock = Clock()
        self.net = Net()
        self.sim = Simulator(settings or Settings(), clock=self.clock)
        self.net.add(CM, self.sim)
        options = {
            "client_id": self.sim.client_id,
            "client_secret": self.sim.client_secret,
            "secret_key": SECRET_KEY,
            "base_url": CM,
            **options,
        }
        self.shell = shell
        self.engine = AuthEngine(transport=self.net, clock=self.clock, **options)
        if shell == "asgi":
            self.app: Any = CMAuthMiddleware(app or make_app(), engine=self.engine)
            self.net.add(APP, self.app)
        else:
            self.app = CMAuthWSGIMiddleware(app or make_wsgi_app(), engine=self.engine)
            self.net.add_wsgi(APP, self.app)

    async def close(self) -> None:
        """Let refreshes that go on beside requests come home."""
        if self.shell == "asgi":
            await self.engine.close()
        else:
            await anyio.to_thread.run_sync(self.engine.close)

    def browser(self, **headers: str) -> Browser:
        return Browser(self, {**HTML, **headers})

    async def login(self, email: str = "anna@example.com", path: str = "/") -> Browser:
        browser = self.browser()
        response = await browser.login(path, email)
        assert response.status_code == 200, response.text
        return browser


class Browser(httpx2.AsyncClient):
    """Keeps cookies, follows redirects when asked, and can log in at the simulator."""

    def __init__(self, world: World, headers: dict[str, str]) -> None:
        super().__init__(transport=world.net, base_url=APP, headers=headers)
        self.world = world

    async def login(self, path: str = "/", email: str = "anna@example.com") -> httpx2.Response:
        """Ask for a page, walk through CameraManager's forms, and come back."""
        response = await self.get(path)
        assert response.status_code == 302, response.text
        return await self.finish(response.headers["location"], email)

    async def finish(self, authorize_url: str, email: str = "anna@example.com") -> httpx2.Response:
        return await self.get(self.callback_url(authorize_url, email), follow_redirects=True)

    def callback_url(self, authorize_url: str, email: str = "anna@example.com") -> str:
        """Where CameraManager would send the browser, consent given."""
        query = {k: v[0] for k, v in parse_qs(urlsplit(authorize_url).query).items()}
        code = self.world.sim.issue_code(email, query["redirect_uri"], query["code_challenge"])
        return f"{query['redirect_uri']}?code={code}&state={query['state']}"

    def named(self, name: str) -> list[str]:
        return [cookie.value or "" for cookie in self.cookies.jar if cookie.name == name]
