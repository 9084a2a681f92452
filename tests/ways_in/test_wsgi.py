"""What is WSGI's own: when a response starts, who closes what, and threads."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import traceback
from typing import Any
from wsgiref.validate import validator

import anyio.lowlevel
import anyio.to_thread
import pytest

from cm_auth_middleware import (
    CMAuthWSGIMiddleware,
    ConfigError,
    MemoryStore,
    SessionExpiredError,
    UnavailableError,
)
from tests.helpers.world import APP, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def side() -> str:
    return "wsgi"


def put_behind(world: World, app: Any) -> None:
    world.app.app = app


def start(start_response: Any, status: str = "200 OK", *headers: tuple[str, str]) -> Any:
    return start_response(status, [("Content-Type", "text/plain"), *headers])


async def test_the_middleware_keeps_to_the_specification(world: World) -> None:
    def app(environ, start_response):
        start(start_response)
        return [environ["cm_auth.session"].user["email"].encode()]

    put_behind(world, validator(app))
    checked = validator(world.app)

    def without_doubts(environ, start_response):
        environ.setdefault("REMOTE_ADDR", "127.0.0.1")
        return checked(environ, start_response)

    world.net.add_wsgi(APP, without_doubts)
    browser = await world.login()
    assert (await browser.get("/")).text == "anna@example.com"


async def test_a_generator_that_starts_late_is_answered_when_its_session_is_over(world) -> None:
    def app(environ, start_response):
        environ["cm_auth.client"].get("/rest/v2.4/cameras")
        start(start_response)
        yield b"never"

    browser = await world.login()
    put_behind(world, app)
    world.sim.revoke_user("anna@example.com")
    response = await browser.get("/")
    assert response.status_code == 302
    assert "/oauth/authorize" in response.headers["location"]


async def test_a_generator_that_starts_late_is_decorated_like_any_other(world: World) -> None:
    def app(environ, start_response):
        start(start_response)
        yield b"one "
        yield b"two"

    browser = await world.login()
    put_behind(world, app)
    response = await browser.get("/")
    assert response.text == "one two"
    assert response.headers["cache-control"] == "no-store"


async def test_a_late_response_without_a_body_is_complete(world: World) -> None:
    def app(environ, start_response):
        start(start_response, "204 No Content")
        return
        yield b""

    browser = await world.login()
    put_behind(world, app)
    assert (await browser.get("/")).status_code == 204


async def test_a_failure_of_the_applications_own_passes_through(world: World) -> None:
    def at_once(environ, start_response):
        raise KeyError("mine")

    def late(environ, start_response):
        raise KeyError("mine")
        yield b""

    browser = await world.login()
    for app in (at_once, late):
        put_behind(world, app)
        with pytest.raises(KeyError, match="mine"):
            await browser.get("/")


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([SessionExpiredError(), UnavailableError("down")], 302),
        ([UnavailableError("down"), ExceptionGroup("inner", [UnavailableError("down")])], 503),
    ],
)
async def test_a_group_of_our_errors_is_answered_as_one(world: World, errors, status) -> None:
    def app(environ, start_response):
        raise ExceptionGroup("calls in several threads", errors)

    browser = await world.login()
    put_behind(world, app)
    assert (await browser.get("/")).status_code == status


async def test_an_error_after_the_start_is_the_servers_to_handle(world: World) -> None:
    def app(environ, start_response):
        start(start_response)
        raise SessionExpiredError

    browser = await world.login()
    put_behind(world, app)
    with pytest.raises(SessionExpiredError):
        await browser.get("/")


async def test_a_500_that_the_framework_made_of_our_error_becomes_our_answer(world: World) -> None:
    closed = []

    class Body:
        def __iter__(self):
            return iter([b"a stack trace"])

        def close(self):
            closed.append(True)

    def app(environ, start_response):
        try:
            environ["cm_auth.client"].get("/rest/v2.4/cameras")
        except SessionExpiredError:
            write = start(start_response, "500 Internal Server Error")
            write(b"written")
        return Body()

    browser = await world.login()
    put_behind(world, app)
    world.sim.revoke_user("anna@example.com")
    response = await browser.get("/", headers={"Accept": "application/json"})
    assert response.status_code == 401
    assert response.json()["login_url"] == "/auth/login"
    assert closed == [True]


async def test_the_same_happens_when_the_framework_starts_late(world: World) -> None:
    def app(environ, start_response):
        try:
            environ["cm_auth.client"].get("/rest/v2.4/cameras")
        except SessionExpiredError:
            start(start_response, "500 Internal Server Error")
        yield b"a stack trace"

    browser = await world.login()
    put_behind(world, app)
    world.sim.revoke_user("anna@example.com")
    response = await browser.get("/", headers={"Accept": "application/json"})
    assert response.status_code == 401
    assert "stack trace" not in response.text


async def test_vary_is_extended_and_the_apps_own_cache_control_stays(world: World) -> None:
    def app(environ, start_response):
        headers = [("Vary", "Accept"), ("Cache-Control", "max-age=5")]
        start(start_response, "200 OK", *headers)
        return [b""]

    browser = await world.login()
    put_behind(world, app)
    response = await browser.get("/")
    assert response.headers["vary"] == "Accept, Cookie"
    assert response.headers["cache-control"] == "max-age=5"


async def test_data_that_cannot_be_saved_is_503_before_the_response(world: World) -> None:
    def app(environ, start_response):
        environ["cm_auth.session"].data["key"] = "value"
        start(start_response)
        return [b"saved"]

    browser = await world.login()
    put_behind(world, app)

    async def broken(*args: Any) -> bool:
        raise UnavailableError("disk full")

    world.engine.thread_services.sessions.update = (
        broken  # the store's own failures are tested there
    )
    response = await browser.get("/")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"


async def test_the_bodys_own_close_is_called(world: World) -> None:
    closed = []

    class Body:
        def __iter__(self):
            yield b"x"

        def close(self):
            closed.append(True)

    def app(environ, start_response):
        class Late(Body):
            def __iter__(self):
                start(start_response)
                yield b"x"

        return Late()

    browser = await world.login()
    put_behind(world, app)
    assert (await browser.get("/")).text == "x"
    assert closed == [True]


@pytest.mark.slow
async def test_the_threads_of_one_request_share_the_client(world: World) -> None:
    def app(environ, start_response):
        client = environ["cm_auth.client"]
        seen: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: seen.append(client.get("/rest/v2.4/cameras").status_code)
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        start(start_response)
        return [repr(seen).encode()]

    browser = await world.login()
    put_behind(world, app)
    world.sim.expire_access_tokens()
    assert (await browser.get("/")).text == repr([200] * 8)
    assert len(world.sim.token_calls("refresh_token")) == 1


@pytest.mark.parametrize("path", ["/\xff\xfe", "/Caf\u20ac", ""])
async def test_a_path_that_keeps_to_no_rule_and_a_bare_environ_are_handled(world, path) -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
    }
    seen = []
    middleware = CMAuthWSGIMiddleware(world.app.app, engine=world.engine)
    body = middleware(environ, lambda status, *_: seen.append(status))
    assert seen == ["401 Unauthorized"]
    assert b"Login required" in b"".join(body)


async def test_a_header_list_that_an_app_uses_again_holds_nobodys_cookie(make_world) -> None:
    headers = [("Content-Type", "text/plain")]

    def app(environ, start_response):
        start_response("200 OK", headers)
        return [b""]

    world = make_world(app=app, exempt=["/health"])
    browser = await world.login()
    await browser.get("/")
    assert headers == [("Content-Type", "text/plain")]
    assert "set-cookie" not in (await world.browser().get("/health")).headers


class Lazily:
    """What may be awaited, and is no coroutine: a query of an ORM, say."""

    def __await__(self):
        return False
        yield


async def test_an_allow_rule_that_is_awaited_lazily_is_asked(make_world) -> None:
    world = make_world(allow=lambda _: Lazily())
    assert (await world.browser().login()).status_code == 403


@pytest.mark.parametrize("late", [False, True])
async def test_an_answer_to_head_has_no_body(world: World, late: bool) -> None:
    def at_once(environ, start_response):
        try:
            environ["cm_auth.client"].get("/rest/v2.4/cameras")
        except SessionExpiredError:
            start(start_response, "500 Internal Server Error")
        return [b"trace"]

    def later(environ, start_response):
        yield from at_once(environ, start_response)

    browser = await world.login()
    put_behind(world, later if late else at_once)
    world.sim.revoke_user("anna@example.com")
    (*_, (status, _)), body = await call(world, "HEAD", browser)
    assert (status, body) == ("401 Unauthorized", b"")


async def call(world: World, method: str, browser: Any) -> tuple[list[tuple[str, Any]], bytes]:
    """Call the middleware as a server does; return every start of a response, and the body."""
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": "/",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "localhost:8000",
        "HTTP_COOKIE": f"cm_auth={browser.named('cm_auth')[0]}",
    }
    started: list[tuple[str, Any]] = []
    body = await anyio.to_thread.run_sync(
        lambda: b"".join(world.app(environ, lambda *head: started.append(head[:2])))
    )
    return started, body


async def test_a_response_that_starts_again_is_decorated_again(world: World) -> None:
    def app(environ, start_response):
        start(start_response)
        try:
            raise KeyError("mine")
        except KeyError:
            exc_info = sys.exc_info()
            start_response("500 Oh", [("Content-Type", "text/plain")], exc_info)
        return [b"sorry"]

    browser = await world.login()
    put_behind(world, app)
    started, _ = await call(world, "GET", browser)
    assert [status for status, _ in started] == ["200 OK", "500 Oh"]
    assert all(("Cache-Control", "no-store") in headers for _, headers in started)


async def test_no_variable_of_a_traceback_holds_a_token_in_threads_either(make_world) -> None:
    """R56: a refresh that fails under a handler, whose error it lets pass."""
    recorded: list[str] = []
    held: list[str] = []
    contexts: list[BaseException | None] = []

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/calling":
            try:
                environ["cm_auth.client"].get("/rest/v2.4/cameras")
            except UnavailableError as error:
                for frame, _ in traceback.walk_tb(error.__traceback__):
                    recorded.extend(repr(value) for value in frame.f_locals.values())
                tokens = environ["cm_auth.session"].record.tokens
                held.extend([tokens.access_token, tokens.refresh_token])
                contexts.append(error.__context__)
                raise
        start(start_response)
        return [b""]

    world = make_world(app=app, exempt=["/calling"])
    browser = await world.login()
    world.clock.tick(43_200)
    world.sim.fail_token(503)
    assert (await browser.get("/calling")).status_code == 503
    assert len(recorded) > 5
    assert contexts == [None]
    assert len(held) == 2
    assert not any(token in text for token in held for text in recorded)


def test_a_store_for_event_loops_alone_is_refused_at_construction() -> None:
    class Suspending(MemoryStore):
        blocking = None

        async def ping(self) -> None:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(ConfigError, match="blocking"):
        World(side="wsgi", store=Suspending())


def test_a_fork_while_threads_hold_locks_leaves_none_held() -> None:
    code = """
import os, threading
from cm_auth_middleware.runtime.bounded_cache import BoundedCache
from cm_auth_middleware.runtime.threads import ThreadRuntime
cache, runtime = BoundedCache(), ThreadRuntime(10.0, "http://localhost")
held, go = threading.Event(), threading.Event()
def hold():
    with cache._memory.lock, runtime._lock, runtime.single_flight._lock:
        held.set(); go.wait()
threading.Thread(target=hold, daemon=True).start()
held.wait()
pid = os.fork()
if pid == 0:
    with cache._memory.lock, runtime._lock, runtime.single_flight._lock:
        os._exit(7)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
go.set()
print(status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == "7"
