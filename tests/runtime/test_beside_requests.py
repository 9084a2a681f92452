"""R30, R31, R59: hosts where nothing goes on once a response was sent.

New tokens that such a host cuts off are lost. Where the server rotates refresh tokens and punishes
the reuse of an old one, the session is lost with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from starlette.testclient import TestClient

from cm_auth_middleware import AuthEngine, CMAuthMiddleware
from cm_auth_middleware.runtime.base import Runtime
from cm_auth_middleware.runtime.event_loops import EventLoopRuntime
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.runtime.threads import ThreadRuntime
from cm_auth_middleware.testing import Settings, Simulator
from tests.helpers.apps import make_app
from tests.helpers.servers import redis_server, served, until
from tests.helpers.world import APP, CM, JSON, SECRET_KEY, World

pytestmark = pytest.mark.slow

STRICT = {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}
LEEWAY = 43_190  # seconds after a login, when the access token is about to expire
FREEZING = ("AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE", "FUNCTIONS_WORKER_RUNTIME", "VERCEL")

Drive = Callable[[Any], Any]


def asyncio_run(coroutine: Any) -> Any:
    """As Mangum does in its newer versions, and Django's ``async_to_sync``."""
    return asyncio.run(coroutine)


def closed(coroutine: Any) -> Any:
    """A loop that is closed with whatever is pending on it."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


class Standing:
    """One loop that stands still between requests, as Mangum's does."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __call__(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)


def trio_run(coroutine: Any) -> Any:
    async def awaited() -> Any:
        return await coroutine

    return anyio.run(awaited, backend="trio")


@pytest.fixture(params=["asyncio.run", "closed", "standing", "trio"])
def drive(request: pytest.FixtureRequest) -> Iterator[Drive]:
    """Runs the loop for one request."""
    standing = Standing()
    yield {"asyncio.run": asyncio_run, "closed": closed, "standing": standing}.get(
        request.param, trio_run
    )
    standing.loop.close()


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """Fails if asyncio complains of tasks that were left on a loop, or Python of what was open."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield []
        gc.collect()
    said = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    assert [*said, *(str(warning.message) for warning in caught)] == []


class Slow:
    """CameraManager as it is over a network: it has exchanged the tokens before its answer comes.

    A call that is cancelled meanwhile has used the refresh token up.
    """

    def __init__(self, world: World) -> None:
        self.simulator = world.sim
        self.seconds = 0.0
        self.under_way = 0
        self.is_held = False
        world.net.add(CM, self)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        messages: list[Any] = []

        async def keep(message: Any) -> None:
            messages.append(message)

        await self.simulator(scope, receive, keep)
        if not scope["path"].endswith("/cameras"):  # else a handler waits as long
            self.under_way += 1
            await anyio.sleep(self.seconds)
            while self.is_held:  # noqa: ASYNC110 - a test in another thread lets it go on
                await anyio.sleep(0.01)
            self.under_way -= 1
        for message in messages:
            await send(message)


def strict_world(**options: Any) -> World:
    return World(settings=Settings(**STRICT), **{"background": None, **options})


class Visitor:
    """A browser of which each request has a loop of its own."""

    def __init__(self, world: World, drive: Drive) -> None:
        self.world = world
        self.browser = world.browser()
        self.drive = drive

    def get(self, path: str, **options: Any) -> httpx2.Response:
        answer: httpx2.Response = self.drive(self.browser.get(path, **options))
        return answer

    def log_in(self) -> None:
        start = self.get("/")
        callback = self.browser.callback_url(start.headers["location"])
        assert self.get(callback).headers["location"] == "/"


def test_a_refresh_is_not_cut_off_with_the_event_loop_of_its_request(
    drive: Drive, complaints: list[str]
) -> None:
    """R30: 200, and logged in at the next request, too."""
    world = strict_world()
    slow = Slow(world)
    visitor = Visitor(world, drive)
    visitor.log_in()
    for _ in range(3):
        world.clock.tick(LEEWAY)
        slow.seconds = 0.05
        assert visitor.get("/cameras", headers=JSON).status_code == 200
        world.clock.tick(60)  # the old access token has expired
        assert visitor.get("/cameras", headers=JSON).status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 3


def test_a_page_that_calls_nothing_keeps_its_session_too(
    drive: Drive, complaints: list[str]
) -> None:
    """The user is read anew, and the token refreshed, before the handler is called."""
    world = strict_world(revalidate=900)
    slow = Slow(world)
    visitor = Visitor(world, drive)
    visitor.log_in()
    slow.seconds = 0.05
    for seconds in (1000, LEEWAY - 1000, 60):
        world.clock.tick(seconds)
        assert visitor.get("/").status_code == 200
    assert len(world.sim.token_calls("refresh_token")) == 1
    world.sim.users[0].first_name = "Anne"
    world.clock.tick(1000)
    visitor.get("/")
    assert visitor.get("/auth/session").json()["user"]["firstName"] == "Anne"


def test_an_outage_in_the_leeway_costs_nobody_the_page(drive: Drive) -> None:
    world = strict_world()
    visitor = Visitor(world, drive)
    visitor.log_in()
    world.clock.tick(LEEWAY)
    world.sim.fail_token(503, 100)
    assert visitor.get("/cameras", headers=JSON).status_code == 200


def test_a_job_that_runs_a_loop_of_its_own_keeps_the_tokens(drive: Drive) -> None:
    """A client by a handle, in a task of Celery: the same without any request."""
    world = strict_world()
    slow = Slow(world)
    visitor = Visitor(world, drive)
    visitor.log_in()
    handle = visitor.get("/export").text

    async def job() -> int:
        client = await world.engine.client_for(handle)
        return (await client.get("/rest/v2.4/cameras")).status_code

    world.clock.tick(LEEWAY)
    slow.seconds = 0.05
    assert drive(job()) == 200
    world.clock.tick(60)
    assert visitor.get("/cameras", headers=JSON).status_code == 200


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("is_entered", [False, True])
def test_starlettes_test_client_keeps_its_session_with_a_lifespan_and_without(
    backend: Any, is_entered: bool, complaints: list[str]
) -> None:
    """R59: without its ``with`` each request runs in a loop of its own."""
    world = strict_world()
    slow = Slow(world)
    client = TestClient(world.app, base_url=APP, backend=backend, follow_redirects=False)
    if is_entered:
        client.__enter__()
    start = client.get("/", headers={"Accept": "text/html"})
    client.get(world.browser().callback_url(start.headers["location"]))
    for _ in range(2):
        world.clock.tick(LEEWAY)
        slow.seconds = 0.05
        assert client.get("/cameras").status_code == 200
        world.clock.tick(60)
        assert client.get("/cameras").status_code == 200
    if is_entered:
        client.__exit__()


def test_with_a_lifespan_a_refresh_goes_on_beside_the_request() -> None:
    """On a server nobody waits for it, and the shutdown does."""
    world = strict_world()
    slow = Slow(world)
    with TestClient(world.app, base_url=APP, follow_redirects=False) as client:
        start = client.get("/", headers={"Accept": "text/html"})
        client.get(world.browser().callback_url(start.headers["location"]))
        world.clock.tick(LEEWAY)
        slow.seconds = 0.01
        slow.is_held = True
        assert client.get("/").status_code == 200
        until(lambda: slow.under_way > 0)
        slow.is_held = False
    assert slow.under_way == 0
    assert len(world.sim.token_calls("refresh_token")) == 1


@pytest.mark.parametrize("variable", FREEZING)
def test_a_host_that_freezes_its_processes_is_known_by_its_environment(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R30: a web server in AWS Lambda has a lifespan, and stands still between requests."""
    monkeypatch.setenv(variable, "cameras")
    assert not is_beside(ThreadRuntime)
    assert not is_beside(EventLoopRuntime)
    assert is_beside(ThreadRuntime, background=True)
    assert is_beside(EventLoopRuntime, background=True)


def test_the_option_decides_where_nothing_is_known() -> None:
    assert is_beside(ThreadRuntime)
    assert is_beside(EventLoopRuntime)
    assert not is_beside(ThreadRuntime, background=False)
    assert not is_beside(EventLoopRuntime, background=False)


def is_beside(kind: type[Runtime], **options: Any) -> bool:
    """Say if a runtime, of a server with a lifespan, lets work go on beside a request."""
    runtime, steps = kind(5.0, CM, **options), []

    async def work() -> None:
        await runtime.sleep(0.05)
        steps.append("work")

    async def request() -> bool:
        if isinstance(runtime, EventLoopRuntime):
            runtime.note_lifespan(is_open=True)
        await runtime.run_beside("key", work)
        steps.append("response")
        await runtime.single_flight.wait_all()
        return steps == ["response", "work"]

    if kind is ThreadRuntime:
        return run_sync(request())
    return asyncio.run(request())


@pytest.mark.slow
@pytest.mark.parametrize("store", ["memory", "sqlite", "redis"])
@pytest.mark.parametrize("run", [asyncio_run, closed])
def test_no_connection_stays_open_when_the_event_loop_of_its_request_has_ended(
    store: str, run: Drive, tmp_path: Path
) -> None:
    """R30: with sockets, and more requests than a process may have connections to a store."""
    simulator = Simulator(Settings(any_key=True, **STRICT))
    with contextlib.ExitStack() as stack:
        urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/sessions.db"}
        if store == "redis":
            urls["redis"] = stack.enter_context(redis_server()).url
        # asyncio closes those of "closed", and redis-py its own, when they are collected.
        is_clean = run is asyncio_run and store != "redis"
        caught = stack.enter_context(warnings.catch_warnings(record=is_clean))
        warnings.simplefilter("always" if is_clean else "ignore", ResourceWarning)
        port = stack.enter_context(served("h11", simulator))
        before = len(list(Path("/dev/fd").iterdir()))
        engine = visited(simulator, f"http://127.0.0.1:{port}", urls[store], run)
        gc.collect()
        assert len(list(Path("/dev/fd").iterdir())) <= before + 20
        assert [str(warning.message) for warning in caught or ()] == []
        run(closing(engine))
        del engine
        gc.collect()


def visited(simulator: Simulator, url: str, store: str, run: Drive) -> AuthEngine:
    """Log in and ask for a page many times, each request in a loop of its own."""
    engine = AuthEngine(
        base_url=url, client_id="id", client_secret="secret", secret_key=SECRET_KEY, store=store
    )
    app = CMAuthMiddleware(make_app(), engine=engine)
    cookies = httpx2.Cookies()

    def get(path: str) -> httpx2.Response:
        async def once() -> httpx2.Response:
            transport = httpx2.ASGITransport(app)
            client = httpx2.AsyncClient(transport=transport, base_url=APP, cookies=cookies)
            answer = await client.get(path, headers={"Accept": "text/html"})
            cookies.update(client.cookies)
            return answer

        answer: httpx2.Response = run(once())
        return answer

    query = httpx2.URL(get("/").headers["location"]).params
    code = simulator.issue_code("anna@example.com", query["redirect_uri"], query["code_challenge"])
    get(f"/auth/callback?code={code}&state={query['state']}")
    for _ in range(60):
        assert get("/cameras").status_code == 200
    return engine


async def closing(engine: AuthEngine) -> None:
    await engine.close()
