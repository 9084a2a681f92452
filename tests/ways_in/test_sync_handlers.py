"""Handlers that are a plain ``def`` under ASGI: FastAPI's, Starlette's, and Litestar's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cm_auth_middleware import AuthEngine, CMAuthMiddleware, MemoryStore
from cm_auth_middleware.fastapi import CMClient, CMSyncClient
from cm_auth_middleware.testing import Simulator, settings_for
from tests.helpers.apps import api, names
from tests.helpers.browser import ANNA, BOB, CAMERAS, Visitor
from tests.helpers.servers import served
from tests.helpers.world import JSON, SECRET_KEY, MakeWorld, both_providers
from tests.matrix.server_processes import needs


def fastapi_app() -> Any:
    app = FastAPI()

    @app.get("/cameras")
    def cameras(cm: CMSyncClient) -> list[str]:
        assert isinstance(cm, httpx2.Client)
        return names(cm.get(f"{api(cm)}/cameras"))

    @app.get("/async/cameras")
    async def async_cameras(cm: CMClient) -> list[str]:
        return names(await cm.get(f"{api(cm)}/cameras"))

    return app


def starlette_app() -> Any:
    def cameras(request: Request) -> JSONResponse:
        cm = request.state.cm_auth.sync_client(request.state.cm_session)
        return JSONResponse(names(cm.get(f"{api(cm)}/cameras")))

    async def async_cameras(request: Request) -> JSONResponse:
        cm = request.state.cm
        return JSONResponse(names(await cm.get(f"{api(cm)}/cameras")))

    return Starlette(routes=[Route("/cameras", cameras), Route("/async/cameras", async_cameras)])


def litestar_app() -> Any:
    needs("litestar")
    import litestar

    def cameras(request):
        cm = request.state["cm_auth"].sync_client(request.state["cm_session"])
        return names(cm.get(f"{api(cm)}/cameras"))

    async def async_cameras(request):
        cm = request.state["cm"]
        return names(await cm.get(f"{api(cm)}/cameras"))

    for handler in (cameras, async_cameras):  # Litestar reads them, and is not everywhere
        handler.__annotations__ = {"request": litestar.Request[Any, Any, Any], "return": list[str]}
    handlers = [
        litestar.get("/cameras", sync_to_thread=True)(cameras),
        litestar.get("/async/cameras")(async_cameras),
    ]
    return litestar.Litestar(handlers, openapi_config=None)


APPS: dict[str, Callable[[], Any]] = {
    "fastapi": fastapi_app,
    "starlette": starlette_app,
    "litestar": litestar_app,
}


@pytest.fixture
def simulator(provider: str) -> Simulator:
    settings = settings_for(provider)
    settings.any_key = True
    return Simulator(settings)


@pytest.fixture(params=list(APPS))
def origin(request: pytest.FixtureRequest, simulator: Simulator, provider: str) -> Iterator[str]:
    with served("h11", simulator) as port:
        site = CMAuthMiddleware(
            APPS[request.param](), base_url=f"http://127.0.0.1:{port}", client_id="id",
            client_secret="secret", secret_key=SECRET_KEY, provider=provider,
        )  # fmt: skip
        with served("h11", site, lifespan="on") as own:
            yield f"http://127.0.0.1:{own}"


@pytest.mark.slow
@both_providers
def test_handlers_in_threads_have_the_client_of_their_own_user(origin: str) -> None:
    with Visitor(origin) as anna, Visitor(origin) as bob:
        anna.enter("/cameras", ANNA)
        bob.enter("/cameras", BOB)
        with ThreadPoolExecutor(8) as threads:
            asked = [
                (CAMERAS[email], threads.submit(visitor.fetch, path))
                for email, visitor in ((ANNA, anna), (BOB, bob))
                for path in ("/cameras", "/async/cameras") * 4
            ]
            for cameras, answer in asked:
                assert answer.result().json() == cameras


@pytest.mark.slow
def test_handlers_of_both_kinds_make_one_refresh(origin: str, simulator: Simulator) -> None:
    with Visitor(origin) as anna:
        anna.enter("/cameras")
        anna.fetch("/async/cameras")
        simulator.expire_access_tokens()
        with ThreadPoolExecutor(8) as threads:
            paths = ("/cameras", "/async/cameras") * 4
            for answer in threads.map(anna.fetch, paths):
                assert (answer.status_code, answer.json()) == (200, CAMERAS[ANNA])
    assert len(simulator.token_calls("refresh_token")) == 1


@pytest.mark.slow
def test_a_session_that_ends_under_such_a_handler_is_answered(
    origin: str, simulator: Simulator
) -> None:
    with Visitor(origin) as anna, Visitor(origin) as bob:
        anna.enter("/cameras", ANNA)
        bob.enter("/cameras", BOB)
        simulator.revoke_user(BOB)
        assert bob.fetch("/cameras").status_code == 401
        simulator.expire_access_tokens()
        simulator.fail_token(503)
        assert anna.fetch("/cameras").status_code == 503


@pytest.mark.anyio
@pytest.mark.parametrize("side", ["asgi"])
async def test_an_exempt_route_without_a_user_asks_for_a_login(make_world: MakeWorld) -> None:
    app = FastAPI()
    world = make_world(app=app, exempt=["/cameras"])

    @app.get("/cameras")
    def cameras(cm: CMSyncClient) -> None:
        raise AssertionError("there is no user")

    assert (await world.browser().get("/cameras")).status_code == 302
    assert (await world.browser(**JSON).get("/cameras")).status_code == 401


def test_threads_that_ask_at_once_share_one_side_of_the_engine() -> None:
    class Store(MemoryStore):
        twins = 0

        def blocking(self) -> MemoryStore:
            self.twins += 1
            time.sleep(0.05)  # so that every other thread has asked meanwhile
            return self

    store = Store()
    engine = AuthEngine(client_id="id", client_secret="secret", secret_key=SECRET_KEY, store=store)
    together = threading.Barrier(8)

    def ask() -> Any:
        together.wait(20)
        return engine.thread_services

    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(ask) for _ in range(8)]
    assert len({id(one.result()) for one in found}) == 1
    assert store.twins == 1
    engine.close()
