"""Access ends with the session, and a session is one application's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from cm_auth_middleware import SessionExpiredError
from cm_auth_middleware.auth import connections
from cm_auth_middleware.cli.sessions import sessions as command
from tests.helpers.apps import make_app
from tests.helpers.world import SECRET_KEY, World, both_providers

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def looking_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_EVERY", 0.05)


def endless(world: World) -> None:
    """Let the application stream the cameras of its user, and keep the client, for ever."""

    async def asgi(request: Request) -> StreamingResponse:
        async def parts() -> Any:
            while True:
                await request.state.cm.get(f"{world.root}/cameras")
                yield b"cameras"
                await anyio.sleep(0.01)

        return StreamingResponse(parts(), media_type="text/event-stream")

    def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            environ["cm_auth.client"].get(f"{world.root}/cameras")
            yield b"cameras"
            time.sleep(0.01)

    world.app.app = make_app([Route("/stream", asgi)]) if world.side == "asgi" else wsgi


async def end(world: World, how: str, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "logout_user":
        await world.on_its_side(lambda: world.engine.logout_user(world.user_id()))
    elif how == "timeout":
        world.clock.tick(31 * 86_400)
    else:
        monkeypatch.setenv("CM_AUTH_SECRET_KEY", SECRET_KEY)
        revoke = ["revoke", "--user", str(world.user_id()), "--store", store]
        await anyio.to_thread.run_sync(lambda: command.main(revoke, standalone_mode=False))


@both_providers
@pytest.mark.slow
@pytest.mark.parametrize("how", ["logout_user", "the command", "timeout"])
async def test_nothing_of_a_user_s_runs_on_after_the_end(
    make_world, tmp_path, how: str, monkeypatch
) -> None:
    """53: a stream ends and asks CameraManager no more; a client that was kept raises."""
    store = f"sqlite:///{tmp_path}/sessions.db"
    world = make_world(store=store)
    if how == "the command":
        world.clock.now = time.time()  # which another process goes by
    browser = await world.login()
    handle = (await browser.get("/export")).text
    job = await world.client_for(handle)
    inner = world.app.app
    endless(world)
    cookie = f"cm_auth={browser.named('cm_auth')[0]}"
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                if world.side == "asgi":
                    await read_asgi(world, cookie)
                else:
                    await anyio.to_thread.run_sync(read_wsgi, world, cookie)

            group.start_soon(watch)
            await anyio.sleep(0.1)
            await end(world, how, store, monkeypatch)
    asked = len(world.sim.calls(f"{world.api}/cameras"))
    assert asked > 1
    with pytest.raises(SessionExpiredError):
        await world.on_its_side(lambda: job.get(f"{world.root}/cameras"))
    assert len(world.sim.calls(f"{world.api}/cameras")) == asked
    world.app.app = inner
    assert (await browser.get("/")).status_code == 302


async def read_asgi(world: World, cookie: str) -> None:
    sent: list[dict[str, Any]] = []
    end = {"type": "http.response.body", "body": b"", "more_body": False}
    said = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, Any]:
        while not said:
            await anyio.sleep(1)
        return said.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "method": "GET",
        "path": "/stream",
        "query_string": b"",
        "headers": [(b"host", b"localhost:8000"), (b"cookie", cookie.encode())],
    }
    try:
        await world.app(scope, receive, send)
    except* SessionExpiredError:  # of the client, if it looks first
        sent.append(end)
    assert sent[-1] == end


def read_wsgi(world: World, cookie: str) -> None:
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/stream",
        "HTTP_HOST": "localhost:8000",
        "HTTP_COOKIE": cookie,
        "wsgi.url_scheme": "http",
    }
    body = world.app(environ, lambda *_: None)
    with contextlib.suppress(SessionExpiredError):  # of the client, if it looks first
        for part in body:
            assert part == b"cameras"
    body.close()


@pytest.mark.parametrize("options", [{"client_id": "another"}, {"scope": "read"}])
@pytest.mark.parametrize("name", ["first", "second"])
async def test_a_session_of_another_application_is_nobody(make_world, options, name: str) -> None:
    """54: with the same key and store, and also under a renamed cookie."""
    first = make_world(cookie_name="first")
    browser = await first.login()
    value = browser.named("first")[0]
    other = make_world(beside=first, cookie_name=name, **options)
    for path in ("/", "/cameras"):
        answer = await other.browser(Cookie=f"{name}={value}").get(path)
        assert answer.status_code == 302
    assert (await other.browser(Cookie=f"{name}={value}").post("/auth/logout")).is_redirect
    assert (await browser.get("/")).status_code == 200


@both_providers
@pytest.mark.parametrize(
    "rule",
    [
        {"allow": lambda _: False},
        {"allow_emails": ["bob@example.com"]},
        {"allow_accounts": ["7"]},
    ],
)
async def test_another_application_s_rule_is_asked_of_a_session(make_world, rule) -> None:
    """54: a login at one application opens no other that would not have let the user in."""
    first = make_world()
    browser = await first.login()
    cookie = f"cm_auth={browser.named('cm_auth')[0]}"
    other = make_world(beside=first, **rule)
    assert (await other.browser(Cookie=cookie).get("/")).status_code == 403
    assert (await other.browser(Cookie=cookie).post("/data", json={})).status_code == 403
    assert (await browser.get("/")).status_code == 200
