"""What is checked of each input, for hypothesis and atheris alike."""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote
from wsgiref.util import setup_testing_defaults

import ada_url
import httpx2

from cm_auth_middleware import AuthEngine
from cm_auth_middleware.auth.exempt import ExemptPaths
from cm_auth_middleware.auth.login_state import StateSealer
from cm_auth_middleware.errors import CMAuthError
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.sessions.encryption import Sealer
from cm_auth_middleware.sessions.record import Tokens
from cm_auth_middleware.web.local_target import safe_target
from tests.helpers.world import APP, CM, SECRET_KEY, World

from .visits import call_asgi, call_wsgi, send_asgi, send_wsgi, session_of

EXEMPT = ("/health", "/public/*")
_exempt = ExemptPaths(EXEMPT)
_sealer = Sealer([SECRET_KEY], "userId")
_states = StateSealer([SECRET_KEY])


def check_target(target: str, mount: str, judge: Callable[[str, str], str] = safe_target) -> None:
    """Where a browser ends up is below the mount of this app, by every reading of the target."""
    safe = judge(target, mount)
    assert safe.isascii()
    for form in (safe, unquote(safe), unquote(unquote(safe))):
        for base in (f"{APP}/auth/callback", "https://localhost:8000/x/y/"):
            where = ada_url.URL(form, base=base)
            assert where.origin == ada_url.URL(base).origin
            assert where.username == ""
        assert posixpath.normpath(form.split("?")[0].split("#")[0] or "/").startswith(mount or "/")
        assert not form.startswith(("//", "/\\"))
    assert not re.search(r"[\x00-\x20\x7f]", safe)
    assert "\\" not in re.split("[?#]", safe)[0]  # in a query it is no slash to any browser


def check_exempt(path: str, judge: Callable[[str], bool] = _exempt.cover) -> None:
    """An exempt path is still exempt when a server or framework cleans it up."""
    if not judge(path) or path in EXEMPT:
        return
    for form in (path, unquote(path), unquote(unquote(path)), path.replace("\\", "/")):
        for clean in (form, form.split(";")[0], form.split("\0")[0], re.sub("//+", "/", form)):
            where = posixpath.normpath(clean)
            assert where == "/public" or where.startswith("/public/"), (path, clean)


def check_handle(handle: str) -> None:
    """No text is a handle but those that we made."""
    assert _sealer.open_handle(handle) is None
    assert _sealer.open_handle("cmauth1." + handle) is None


def check_state(text: str) -> None:
    """No text is a state but those that we made, and each of them has one form."""
    assert _states.open(text) is None
    ours = _states.seal(7, bytes(16), f"{APP}/auth/callback", "/cameras", 1_800_000_000)
    login = _states.open(ours)
    assert login is not None
    assert login.target == "/cameras"
    for at in (0, len(text) % len(ours), max(0, len(ours) - len(text))):
        altered = ours[:at] + text + ours[at + len(text) :]
        assert altered == ours or _states.open(altered) is None


class Sides:
    """Both sides with somebody logged in, asked from an event loop that stays open."""

    def __enter__(self) -> Sides:
        self._runner = asyncio.Runner()
        self._answers = _Answers()
        self._engine = AuthEngine(
            client_id="id",
            client_secret="secret",
            secret_key=SECRET_KEY,
            base_url=CM,
            transport=self._answers,
        )
        self.asgi, self.wsgi = (World(side=side, exempt=EXEMPT) for side in ("asgi", "wsgi"))
        self.wsgi.engine.store = self.asgi.engine.store
        self._give_store()
        self.cookie = session_of(self._runner.run(self.asgi.login()))
        self.token_calls_before = self.token_calls()
        assert self.statuses(f"cm_auth={self.cookie}".encode()) == [200, 200]
        return self

    def _give_store(self) -> None:
        old, store = self.wsgi, self.asgi.engine.store
        old.net.shut_down()
        self.wsgi = World(side="wsgi", exempt=EXEMPT, store=store)

    def __exit__(self, *exc_info: object) -> None:
        self._runner.run(self.asgi.close())
        self._runner.run(self.wsgi.close())
        self._runner.close()

    def token_calls(self) -> int:
        return len(self.asgi.sim.token_calls()) + len(self.wsgi.sim.token_calls())

    def statuses(self, cookie: bytes, path: str = "/") -> list[int]:
        """What both sides answer to a Cookie header."""
        asgi = self._runner.run(call_asgi(self.asgi.app, cookie, path))
        return [asgi[0], call_wsgi(self.wsgi.app, cookie, path)[0]]

    def check_visitor(self, method: str, path: str, query: str, headers: dict[str, str]) -> None:
        """Somebody without a session: nothing of the app, no error, no way elsewhere."""
        answers = [
            self._runner.run(send_asgi(self.asgi.app, _scope(method, path, query, headers))),
            send_wsgi(self.wsgi.app, _environ(method, path, query, headers)),
        ]
        for status, sent, body in answers:
            assert status < 500 or status == 503, (status, body)
            assert b"anna@example.com" not in body
            for name, value in sent:
                assert not re.search(r"[\r\n\0]", name + value)
                value.encode("latin-1")
                if name.lower() == "location":
                    where = ada_url.URL(value, base=f"{APP}/x")
                    assert where.origin in (CM, APP), value

    def check_token_answer(self, raw: bytes, status: int = 200) -> None:
        """The exchange gives tokens, or raises an error of ours."""
        self._answers.raw, self._answers.status = raw, status
        for side, run in ((self._engine.async_services, self._runner.run),
                          (self._engine.thread_services, run_sync)):  # fmt: skip
            try:
                tokens: Any = run(side.refresher.oauth.exchange("code", f"{APP}/cb", "v" * 43))
            except CMAuthError:
                continue
            assert isinstance(tokens, Tokens)
            assert re.fullmatch(r"[\x21-\x7e]+", tokens.access_token)
            assert 0 <= tokens.expires_at - tokens.refresh_at < 1e10


def check_cookie(sides: Sides, header: bytes) -> None:
    """A Cookie header that nobody signed is nobody."""
    for path in ("/", "/auth/callback", "/auth/login"):
        for status in sides.statuses(header, path):
            assert status in (302, 400), (status, header)


class _Answers(httpx2.AsyncBaseTransport, httpx2.BaseTransport):
    """CameraManager that answers what it is told to."""

    raw = b""
    status = 200

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {"Location": "http://evil/"}
        return httpx2.Response(self.status, content=self.raw, headers=headers)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.handle_request(request)


def _raw(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _scope(method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, Any]:
    lines = {"host": "localhost:8000", **headers}
    return {
        "type": "http", "method": method, "scheme": "http", "root_path": "", "asgi": {},
        "path": path.encode("utf-8", "replace").decode(), "raw_path": _raw(path).encode("latin-1"),
        "query_string": _raw(query).encode("latin-1"), "client": ("127.0.0.1", 1),
        "headers": [(k.encode(), _raw(v).encode("latin-1")) for k, v in lines.items()],
    }  # fmt: skip


def _environ(method: str, path: str, query: str, headers: dict[str, str]) -> dict[str, Any]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {
        "REQUEST_METHOD": method, "PATH_INFO": _raw(path), "QUERY_STRING": _raw(query),
        "REQUEST_URI": _raw(path), "HTTP_HOST": "localhost:8000",
    }  # fmt: skip
    return environ | {f"HTTP_{k.upper().replace('-', '_')}": _raw(v) for k, v in headers.items()}
