"""A new process: what it loads before its first answer, what beside, and when."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

from cm_auth_middleware.runtime.loading import Loading, wait_until_loaded

pytestmark = pytest.mark.slow

UNINSTALLED = ("opentelemetry", "trio")
LATER = ("httpx2", "httpcore2", "authlib", "cryptography", "tomllib", "redis", "psycopg")

# A program that knows how to ask an ASGI or a WSGI application, without any client.
PROGRAM = """
import sys, time

OPTIONS = dict(client_id="id", client_secret="secret", exempt=["/open"],
               allowed_hosts=["testserver"],
               secret_key="kzJ2x-8Qw_1uYtR4mN7bV3cX6zL9pF0sA5dG2hJ8")

def loaded(*names):
    return sorted(set(names) & sys.modules.keys())

def wait_for(*names):
    deadline = time.monotonic() + 60
    while loaded(*names) != sorted(names):
        if time.monotonic() > deadline:
            raise SystemExit(f"only {loaded(*names)} of {names} were loaded")
        time.sleep(0.01)

class ASGI:
    def __init__(self):
        from cm_auth_middleware import CMAuthMiddleware
        self.app = CMAuthMiddleware(self.answer, **OPTIONS)

    async def answer(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def start(self):
        import asyncio
        async def receive():
            return {"type": "lifespan.startup"}
        async def send(message):
            assert message["type"] == "lifespan.startup.complete"
        asyncio.run(self.app({"type": "lifespan", "state": {}}, receive, send))

    def get(self, path):
        import asyncio
        found = []
        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}
        async def send(message):
            found.append(message.get("status"))
        headers = [(b"host", b"testserver"), (b"accept", b"text/html")]
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"",
                 "headers": headers, "scheme": "http", "client": ("127.0.0.1", 1)}
        asyncio.run(self.app(scope, receive, send))
        return found[0]

class WSGI:
    def __init__(self):
        from cm_auth_middleware import CMAuthWSGIMiddleware
        self.app = CMAuthWSGIMiddleware(self.answer, **OPTIONS)

    def answer(self, environ, start_response):
        start_response("200 OK", [])
        return [b""]

    def start(self):
        assert self.get("/open") == 200

    def get(self, path):
        found = []
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "",
                   "HTTP_HOST": "testserver", "HTTP_ACCEPT": "text/html",
                   "wsgi.url_scheme": "http", "REMOTE_ADDR": "127.0.0.1"}
        list(self.app(environ, lambda status, headers, exc_info=None: found.append(status)))
        return int(found[0][:3])

"""


@pytest.fixture(params=["ASGI", "WSGI"])
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(side: str, program: str, before: str = "") -> str:
    """Run a program in a process of its own, and return what it prints.

    Args:
        before: is done before the middleware is made.
    """
    source = f"{PROGRAM}\n{before}\nside = {side}()\n{textwrap.dedent(program)}"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_first_answer_waits_for_nothing_that_only_a_login_needs(side: str) -> None:
    # What is loaded beside is held up: it would be there by chance.
    program = f"""
        from cm_auth_middleware.runtime.loading import Loading
        Loading.begin = lambda self, *steps: None
        side.start()
        assert side.get("/open") == 200
        print(*loaded(*{LATER!r}))
    """
    assert run(side, program) == ""


def test_what_the_first_login_needs_is_loaded_beside(side: str) -> None:
    program = """
        side.start()
        wait_for("httpx2", "httpcore2", "authlib.oauth2.auth", "cm_auth_middleware.client")
        print(*loaded("cryptography", "tomllib", "anyio._core._sockets"))
    """
    assert run(side, program) == "", "10 MB that a process without a login does not need"


def test_a_process_loads_nothing_that_only_the_other_side_needs(side: str) -> None:
    program = """
        side.start()
        wait_for("httpx2", "httpcore2", "authlib.oauth2.auth", "cm_auth_middleware.client")
        others = {
            "ASGI": ("cm_auth_middleware.wsgi", "cm_auth_middleware.runtime.threads"),
            "WSGI": ("asyncio", "starlette", "cm_auth_middleware.asgi",
                     "cm_auth_middleware.runtime.event_loops"),
        }
        print(*loaded(*others[type(side).__name__]))
    """
    # These load asyncio themselves where they are installed, as they are for the tests.
    alone = f"sys.modules.update(dict.fromkeys({UNINSTALLED!r}))"
    assert run(side, program, alone) == ""


def test_what_the_first_callback_needs_is_loaded_while_the_person_logs_in(side: str) -> None:
    program = """
        assert side.get("/") == 302
        wait_for("cryptography.hazmat.primitives.ciphers.aead", "httpx2")
        if type(side) is ASGI:
            wait_for("anyio._backends._asyncio", "anyio._core._sockets")
        print("loaded")
    """
    assert run(side, program) == "loaded"


def test_a_process_that_is_forked_while_it_loads_can_load(side: str) -> None:
    program = """
        import os
        assert side.get("/") == 302
        child = os.fork()
        if child == 0:
            import httpx2, authlib.oauth2.auth
            import cryptography.hazmat.primitives.ciphers.aead
            os._exit(7)
        deadline = time.monotonic() + 60
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
            if time.monotonic() > deadline:
                os.kill(child, 9)
                raise SystemExit("the child waits for a module that nobody loads")
            time.sleep(0.01)
        print(os.waitstatus_to_exitcode(ended[1]))
    """
    if hasattr(os, "fork"):
        assert run(side, program) == "7"


def test_each_step_is_taken_once_and_its_error_disturbs_nobody() -> None:
    taken: list[str] = []

    def fails() -> None:
        taken.append("fails")
        raise ValueError("no such module")

    def works() -> None:
        taken.append("works")

    loading = Loading()
    for steps in ((fails, works), (works,), (fails,)):
        loading.begin(*steps)
        wait_until_loaded()
    assert taken == ["fails", "works"]


def test_a_fork_waits_for_what_is_being_loaded() -> None:
    ended: list[bool] = []
    slow: Callable[[], None] = lambda: (time.sleep(0.3), ended.append(True))[0]  # noqa: E731
    Loading().begin(slow)
    wait_until_loaded()
    assert ended == [True]
