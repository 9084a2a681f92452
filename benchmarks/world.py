"""What a contestant lives in: a simulated CameraManager, one login, and requests to replay."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx2

from cm_auth_middleware.sessions import encryption
from cm_auth_middleware.sessions import session as handlers_view
from cm_auth_middleware.testing import Settings, Simulator, SimulatorServer

ORIGIN = "http://localhost:8000"
COOKIE = "cm_auth"
SECRET_KEY = secrets.token_urlsafe(48)
SECRET_KEY_VARIABLE = "BENCHMARK_SECRET_KEY"
EMAIL = "anna@example.com"
USER = {
    "userId": 10003,
    "accountId": 200,
    "email": EMAIL,
    "firstName": "Anna",
    "lastName": "Andersson",
    "language": "en",
}
"""What sessions of other middlewares hold; with their own wrapping it is the usual 300 bytes."""

BROWSER = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"connection", b"keep-alive"),
    (b"sec-fetch-dest", b"document"),
    (b"sec-fetch-mode", b"navigate"),
    (b"sec-fetch-site", b"same-origin"),
]
"""The headers of a browser that follows a link."""


class SimulatedWorld:
    """A CameraManager on a socket, for as long as a `with` lasts, and what an engine needs of it.

    Args:
        settings: the simulator's.
        simulator: one that is there already, instead.
    """

    def __init__(
        self, settings: Settings | None = None, *, simulator: Simulator | None = None
    ) -> None:
        self.simulator = simulator or Simulator(settings or Settings())
        self._server = SimulatorServer(self.simulator)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.stop()

    def options(self, **options: Any) -> dict[str, Any]:
        """The options of an engine that uses this CameraManager."""
        return {
            "client_id": self.simulator.client_id,
            "client_secret": self.simulator.client_secret,
            "secret_key": SECRET_KEY,
            "base_url": self._server.url,
            "provider": self.simulator.settings.provider,
            "cookie_name": COOKIE,
            **options,
        }

    async def log_in(self, app: Any) -> str:
        """Log in at an ASGI app; the value of the session cookie."""
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app), base_url=ORIGIN, headers={"Accept": "text/html"}
        ) as browser:
            answer = await browser.get("/")
            answer = await browser.get(self.callback_url(answer))
        return _session_cookie(answer)

    def log_in_wsgi(self, app: Any) -> str:
        """Log in at a WSGI app; the value of the session cookie."""
        with httpx2.Client(
            transport=httpx2.WSGITransport(app), base_url=ORIGIN, headers={"Accept": "text/html"}
        ) as browser:
            answer = browser.get("/")
            answer = browser.get(self.callback_url(answer))
        return _session_cookie(answer)

    def log_in_at(self, url: str) -> str:
        """Log in at an app that runs at an address; the value of the session cookie."""
        with httpx2.Client(base_url=url, headers={"Accept": "text/html"}) as browser:
            answer = browser.get("/")
            answer = browser.get(self.callback_url(answer))
        return _session_cookie(answer)

    def callback_url(self, login: httpx2.Response) -> str:
        """Where CameraManager would send a browser that logs in and agrees."""
        assert login.status_code == 302, f"no login but {login.status_code}: {login.text[:200]}"
        query = {k: v[0] for k, v in parse_qs(urlsplit(login.headers["location"]).query).items()}
        redirect_uri = query["redirect_uri"]
        code = self.simulator.issue_code(EMAIL, redirect_uri, query.get("code_challenge"))
        return f"{redirect_uri}?code={code}&state={query['state']}"


async def close(app: Any) -> None:
    """Close what the engine of an ASGI middleware has opened."""
    await app.engine.close()


def forget_sessions(sessions: Any) -> Callable[[], None]:
    """Return what empties the caches of a session: its cookie, its record and its user."""
    forgets = [known.clear for known in (*sessions.cookie._verified.values(), sessions._opened)]
    forgets += [handlers_view._flat_user.cache_clear, encryption._remembered_id.cache_clear]

    def forget() -> None:
        for clear in forgets:
            clear()

    return forget


def _session_cookie(answer: httpx2.Response) -> str:
    value = answer.cookies.get(COOKIE)
    assert value, f"the login gave no session but {answer.status_code}: {answer.text[:200]}"
    return value


class Requests:
    """Calls an ASGI app with the same GET again and again.

    Args:
        app: any ASGI app.
        cookie: the `Cookie` header; None for a visitor.
        path: the path.
        status: what has to come back; anything else is an error, for a refusal costs little.
    """

    def __init__(
        self, app: Any, cookie: str | None = None, path: str = "/", status: int = 200
    ) -> None:
        self.app = app
        self.path = path
        self.headers = list(BROWSER)
        if cookie is not None:
            self.headers.append((b"cookie", cookie.encode()))
        self._wanted = status
        self._status = 0

    async def __call__(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 54321),
            "scheme": "http",
            "root_path": "",
            "method": "GET",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": self.headers,
            "state": {},
        }
        await self.app(scope, _receive, self._send)
        if self._status != self._wanted:
            raise AssertionError(f"{self._status} came back instead of {self._wanted}")

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]


async def _receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class WSGIRequests:
    """Calls a WSGI app with the same GET again and again; see `Requests`."""

    def __init__(
        self, app: Any, cookie: str | None = None, path: str = "/", status: int = 200
    ) -> None:
        self.app = app
        self._wanted = str(status)
        self._environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            **{f"HTTP_{k.decode().upper().replace('-', '_')}": v.decode() for k, v in BROWSER},
        }
        if cookie is not None:
            self._environ["HTTP_COOKIE"] = cookie
        self._status = ""

    def __call__(self) -> None:
        answer = self.app(dict(self._environ), self._start_response)
        b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        if not self._status.startswith(self._wanted):
            raise AssertionError(f"{self._status} came back instead of {self._wanted}")

    def _start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        self._status = status


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def redis_server() -> Iterator[str | None]:
    """The URL of a Redis server of our own; None where Redis is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_for_port(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait(10)


def wait_for_port(port: int, process: subprocess.Popen[Any], seconds: float = 20) -> None:
    """Return when something listens at a port of this machine."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing came to listen at port {port}")


@contextlib.contextmanager
def sqlite_url() -> Iterator[str]:
    """The URL of a session database in a folder that goes away again."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{Path(folder) / 'sessions.db'}"
