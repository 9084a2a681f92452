"""ASGI: each framework under each server, mounted, with and without lifespan, on trio."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.browser import ANNA, CAMERAS, Visitor

from .server_processes import APPS, ASGI, Simulated, environment, needs, needs_server, serve
from .walk import walk

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

SOCKETS = frozenset({"starlette", "fastapi", "litestar", "quart"})
MODULES = {"starlette": "starlette_app", "fastapi": "fastapi_app", "litestar": "litestar_app",
           "quart": "quart_app", "django": "django_asgi"}  # fmt: skip
CELLS = [
    *((framework, server, "") for server in ("uvicorn", "hypercorn", "granian")
      for framework in MODULES),
    ("starlette", "gunicorn-asgi", ""),  # young; the one without the denial response extension
    # Quart and Django are written for asyncio alone.
    *((framework, "hypercorn-trio", "") for framework in ("starlette", "fastapi", "litestar")),
    *((framework, "uvicorn", "/ui") for framework in MODULES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("framework", "server", "mount"), CELLS, ids=[f"{f} under {s}{m}" for f, s, m in CELLS]
)
def test_asgi(
    framework: str, server: str, mount: str, simulator: Simulated, tmp_path: Path
) -> None:
    needs(framework)
    needs_server(server)
    variables = environment(simulator, MATRIX_MOUNT=mount)
    app = f"{APPS}{MODULES[framework]}:app"
    with serve(server, ASGI[server], tmp_path / "log", variables, app=app, mount=mount) as site:
        walk(site, simulator, websockets=framework in SOCKETS)


@pytest.mark.parametrize(
    ("server", "arguments", "library", "started"),
    [
        ("uvicorn", ["--lifespan", "on"], "asyncio", "by the lifespan"),
        ("uvicorn", ["--lifespan", "off"], "asyncio", None),
        ("hypercorn-trio", [], "trio", "by the lifespan"),
    ],
    ids=["uvicorn --lifespan on", "uvicorn --lifespan off", "hypercorn -k trio"],
)
def test_asgi_runtime(
    server: str,
    arguments: list[str],
    library: str,
    started: str | None,
    simulator: Simulated,
    tmp_path: Path,
) -> None:
    needs_server(server)
    command, app = [*ASGI[server], *arguments], f"{APPS}starlette_app:app"
    with serve(server, command, tmp_path / "log", environment(simulator), app=app) as site:
        walk(site, simulator, websockets=True)
        with Visitor(site.origin) as visitor:
            visitor.enter("/")
            told = visitor.fetch("/runtime").json()
    assert told == {"library": library, "started": started}
    if started:  # the lifespan's end closed the connections to CameraManager
        assert "ResourceWarning" not in site.log.read_text()


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "hypercorn-trio", "granian"])
def test_plain_def_handlers_have_a_client(
    server: str, simulator: Simulated, tmp_path: Path
) -> None:
    needs("fastapi")
    needs_server(server)
    app, variables = f"{APPS}fastapi_app:app", environment(simulator)
    with (
        serve(server, ASGI[server], tmp_path / "log", variables, app=app) as site,
        Visitor(site.origin) as visitor,
    ):
        assert visitor.enter("/sync/cameras").json() == CAMERAS[ANNA]
        simulator.expire()
        for path in ("/sync/cameras", "/cameras", "/sync/cameras"):
            assert visitor.fetch(path).json() == CAMERAS[ANNA]
        assert simulator.refreshes == 1
        assert visitor.submit("/auth/logout").status_code == 303
        assert visitor.fetch("/sync/cameras").status_code == 401
