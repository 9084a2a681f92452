"""What the tests share: an app behind the middleware, the simulator, and a browser on both."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cm_auth_middleware import AuthEngine, CMAuthMiddleware
from cm_auth_middleware.testing import Settings, Simulator

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


class Net(httpx2.AsyncBaseTransport):
    """A network of ASGI apps by origin, in process."""

    def __init__(self) -> None:
        self.apps: dict[str, httpx2.ASGITransport] = {}
        self.seen: list[httpx2.Request] = []

    def add(self, origin: str, app: Any) -> None:
        self.apps[origin] = httpx2.ASGITransport(app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        origin = f"{request.url.scheme}://{request.url.netloc.decode()}"
        if origin not in self.apps:
            raise httpx2.ConnectError(f"nobody listens at {origin}")
        return await self.apps[origin].handle_async_request(request)


class World:
    """One simulator, one app behind the middleware, one clock."""

    def __init__(
        self, *, app: Any = None, settings: Settings | None = None, **options: Any
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
        self.engine = AuthEngine(transport=self.net, clock=self.clock, **options)
        self.app = CMAuthMiddleware(app or make_app(), engine=self.engine)
        self.net.add(APP, self.app)

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


def make_app(routes: list[Any] | None = None) -> Starlette:
    return Starlette(
        routes=[
            Route("/", home, methods=["GET", "POST", "PUT", "DELETE"]),
            Route("/cameras", cameras),
            Route("/deep/{rest:path}", home),
            Route("/snapshot/{camera}", snapshot),
            Route("/upload", upload, methods=["POST"]),
            Route("/api/{path:path}", relay),
            Route("/data", data, methods=["GET", "POST"]),
            Route("/state", state),
            Route("/health", health),
            Route("/static/{rest:path}", health),
            WebSocketRoute("/ws", websocket),
            *(routes or []),
        ]
    )


async def home(request: Request) -> Response:
    user = request.state.cm_session.user
    return PlainTextResponse(f"{request.url.path}?{request.url.query} {user['email']}")


async def cameras(request: Request) -> Response:
    response = await request.state.cm.get("/rest/v2.4/cameras")
    return JSONResponse([camera["name"] for camera in response.json()], response.status_code)


async def snapshot(request: Request) -> Response:
    cm = request.state.cm
    path = f"/rest/v2.4/cameras/{request.path_params['camera']}/snapshot?resolution=320x180"
    answer = await cm.send(cm.build_request("GET", path), stream=True)
    return StreamingResponse(answer.aiter_bytes(), answer.status_code, media_type="image/jpeg")


async def upload(request: Request) -> Response:
    answer = await request.state.cm.post("/rest/v2.4/echo", content=request.stream())
    return JSONResponse(answer.json(), answer.status_code)


async def relay(request: Request) -> Response:
    """Ask CameraManager for whatever the test names."""
    query = request.query_params
    answer = await request.state.cm.get(
        query.get("url", "/rest/v2.4/cameras"), follow_redirects="follow" in query
    )
    return JSONResponse({"status": answer.status_code, "text": answer.text[:2000]})


async def data(request: Request) -> Response:
    session = request.state.cm_session
    if request.method == "POST":
        session.data.update(json.loads(await request.body()))
    return JSONResponse(session.data)


async def state(request: Request) -> Response:
    session = request.state.cm_session
    return JSONResponse(
        {
            "client": isinstance(request.state.cm, httpx2.AsyncClient),
            "same": request.state["cm"] is request.state.cm,
            "repr": repr([request.state.cm, session, request.state.cm_auth]),
            "scope": session.scope,
            "logged_in_at": session.logged_in_at,
            "expires_at": session.access_token_expires_at,
        }
    )


async def health(request: Request) -> Response:
    session = request.state.cm_session
    return PlainTextResponse(session.user["email"] if session else "nobody")


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(socket.state.cm_session.user["email"])
    await socket.close()


Handler = Callable[[Request], Any]
