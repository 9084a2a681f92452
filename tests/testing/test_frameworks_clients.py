"""R44, R45, R61: what users' tests and frameworks do without thinking of us."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from cm_auth_middleware import CMAuthMiddleware, CMAuthWSGIMiddleware
from tests.helpers.apps import make_app, make_wsgi_app
from tests.helpers.world import APP, HTML, World
from tests.matrix.server_processes import ROOT, needs


@pytest.mark.parametrize("host", ["testserver", "testserver.local"])
def test_a_frameworks_test_client_is_led_to_the_login_and_logged_in(host: str) -> None:
    """R44: Starlette's and FastAPI's call the host testserver, Litestar's testserver.local."""
    world = World()
    client = TestClient(world.app, f"http://{host}", follow_redirects=False)
    start = client.get("/cameras", headers=HTML)
    assert start.status_code == 302
    query = httpx2.URL(start.headers["location"]).params
    assert query["redirect_uri"] == f"http://{host}/auth/callback"
    back = client.get(world.browser().callback_url(start.headers["location"]))
    assert (back.status_code, back.headers["location"]) == (302, "/cameras")
    assert "Front gate" in client.get("/cameras").json()


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["testserver", "testserver.local"])
async def test_who_comes_over_a_network_cannot_use_that_name(host: str, world: World) -> None:
    answer = await world.browser(Host=host).get("/")
    assert answer.status_code == 400
    assert "not configured" in answer.text


def test_a_test_client_with_another_host_is_told_of_the_option(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = TestClient(World().app, "http://test", follow_redirects=False)
    assert client.get("/", headers=HTML).status_code == 400
    assert "allowed_hosts" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "base_url", "statuses"),
    [
        ({}, "http://testserver", [400]),
        ({"allowed_hosts": ["testserver"]}, "http://testserver", [302, 302, 200]),
        ({}, "http://localhost", [302, 302, 200]),
        # Cookies are Secure, and do not come back over http.
        (
            {"redirect_uri": "https://testserver/auth/callback"},
            "http://testserver",
            [302, 302, 401],
        ),
        (
            {"redirect_uri": "https://testserver/auth/callback"},
            "https://testserver",
            [302, 302, 200],
        ),
        ({"allowed_hosts": ["testserver"], "cookie_secure": True}, "http://testserver", [302, 400]),
    ],
)
async def test_an_httpx_client_is_a_visitor_like_any_other(options, base_url, statuses) -> None:
    """R44: as docs/testing.md says: it does not tell that it is a test client."""
    world = World(**options)
    got = []
    transport = httpx2.ASGITransport(world.app)
    async with httpx2.AsyncClient(transport=transport, base_url=base_url) as client:
        answer = await client.get("/cameras", headers=HTML)
        got.append(answer.status_code)
        if answer.status_code == 302:
            callback = world.browser().callback_url(answer.headers["location"])
            got.append((await client.get(callback)).status_code)
        if got[-1] == 302:
            got.append((await client.get("/cameras")).status_code)
    assert got == statuses


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("given", "base_url", "status"),
    [
        ({}, "http://testserver", 200),
        ({}, "https://testserver", 401),  # the cookie has another name there
        ({"base_url": "https://localhost"}, "https://testserver", 200),
    ],
)
async def test_an_httpx_client_that_cm_login_has_logged_in_may_use_any_host(
    cm_login: Any, given: dict[str, str], base_url: str, status: int
) -> None:
    """R44: cm_login logs in at a URL of its own, and hands on the cookie."""
    app = CMAuthMiddleware(make_app())
    transport = httpx2.ASGITransport(app)
    client = cm_login(
        app, client=httpx2.AsyncClient(transport=transport, base_url=base_url), **given
    )
    async with client:
        assert (await client.get("/cameras")).status_code == status


@pytest.mark.parametrize("by", ["keyword", "position", "partial"])
def test_a_middleware_takes_the_application_as_frameworks_give_it(by: str) -> None:
    """R45: Litestar's DefineMiddleware gives it by keyword, Starlette by position."""
    engine = World().engine
    app = make_app()
    if by == "keyword":
        made: Any = CMAuthMiddleware(app=app, engine=engine)
    elif by == "position":
        made = CMAuthMiddleware(app, engine=engine)
    else:
        made = Starlette(
            routes=app.routes, middleware=[Middleware(CMAuthMiddleware, engine=engine)]
        )
    client = TestClient(made, APP, follow_redirects=False)
    assert client.get("/", headers=HTML).status_code == 302


@pytest.mark.matrix
@pytest.mark.anyio
async def test_litestar_itself_makes_it() -> None:
    """R45: it runs after Litestar's routing there, so another app of the engine has the login."""
    needs("litestar")
    from tests.matrix.apps.litestar_stack import make_app as make_litestar

    world = World()
    browser = await world.login()
    world.net.add(APP, make_litestar(world.engine))
    assert "Front gate" in (await browser.get("/cameras")).json()
    assert (await world.browser().get("/cameras")).status_code == 302
    await world.close()


def test_so_does_the_middleware_for_wsgi() -> None:
    """R45: by keyword, too."""
    app = make_wsgi_app()
    assert CMAuthWSGIMiddleware(app=app, engine=World(side="wsgi").engine).app is app


MAIN = """
from fastapi import FastAPI
from flask import Flask

from cm_auth_middleware import CMAuthMiddleware
from cm_auth_middleware.fastapi import CMClient
from cm_auth_middleware.flask import CMAuth, cm


def make_fastapi():
    app = FastAPI()
    app.add_middleware(CMAuthMiddleware)

    @app.get("/cameras")
    async def cameras(cm: CMClient):
        return [camera["name"] for camera in (await cm.get("/rest/v2.4/cameras")).json()]

    return app


def make_flask():
    app = Flask(__name__)
    CMAuth(app)
    app.get("/cameras")(lambda: cm.get("/rest/v2.4/cameras").json())
    return app
"""
WITHOUT_SOCKETS = """
import socket

import pytest
from main import make_fastapi, make_flask


@pytest.mark.parametrize("make", [make_fastapi, make_flask])
def test_cameras(make, cm_login, cm_time):
    browser = cm_login(make())
    assert len(browser.get("/cameras").json()) == 4
    cm_time.expire_access_token()
    assert len(browser.get("/cameras").json()) == 4


def test_sockets_are_forbidden():
    with pytest.raises((RuntimeError, UserWarning)):  # a warning first, since pytest-socket 0.8
        socket.socket()
"""
FROZEN = """
import pytest
from freezegun import freeze_time
from main import make_fastapi, make_flask


@pytest.mark.parametrize("make", [make_fastapi, make_flask])
def test_cameras(make, cm_login, cm_simulator):
    with freeze_time("2030-01-01") as clock:
        cm_simulator.slow(0.2)
        browser = cm_login(make())
        assert len(browser.get("/cameras").json()) == 4
        clock.tick(13 * 3600)
        assert len(browser.get("/cameras").json()) == 4
        assert len(cm_simulator.simulator.token_calls("refresh_token")) == 1


@pytest.mark.parametrize("make", [make_fastapi, make_flask])
def test_a_real_port(make, cm_login, cm_server):
    with freeze_time("2030-01-01", real_asyncio=True) as clock:
        cm_server.slow(0.2)
        browser = cm_login(make())
        assert len(browser.get("/cameras").json()) == 4
        clock.tick(13 * 3600)
        assert len(browser.get("/cameras").json()) == 4
"""


def run_pytest(folder: Path, test: str, *options: str) -> str:
    """Run a user's test in a process of its own; return what pytest prints."""
    (folder / "main.py").write_text(MAIN)
    (folder / "test_it.py").write_text(test)
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.matrix
def test_the_fixtures_need_no_socket_where_none_may_be_made(tmp_path: Path) -> None:
    """R61: pytest-socket."""
    needs("pytest_socket", "fastapi")
    assert "3 passed" in (said := run_pytest(tmp_path, WITHOUT_SOCKETS, "--disable-socket")), said


@pytest.mark.slow
@pytest.mark.matrix
def test_the_fixtures_work_while_the_time_is_frozen(tmp_path: Path) -> None:
    """R63: freezegun stops the clock of event loops, too."""
    needs("freezegun", "fastapi")
    assert "4 passed" in (said := run_pytest(tmp_path, FROZEN)), said
