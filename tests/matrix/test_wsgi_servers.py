"""WSGI: each framework under each server, and mounted."""

from __future__ import annotations

from pathlib import Path

import pytest

from .server_processes import APPS, WSGI, Simulated, environment, needs, needs_server, serve
from .walk import walk

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

MODULES = {"flask": "flask_app", "django": "django_wsgi", "bottle": "bottle_app",
           "falcon": "falcon_app"}  # fmt: skip
CELLS = [
    *((framework, server, "") for server in WSGI for framework in MODULES),
    *((framework, "gunicorn-gthread", "/ui") for framework in MODULES),
]


@pytest.mark.parametrize(
    ("framework", "server", "mount"), CELLS, ids=[f"{f} under {s}{m}" for f, s, m in CELLS]
)
def test_wsgi(
    framework: str, server: str, mount: str, simulator: Simulated, tmp_path: Path
) -> None:
    needs(framework)
    needs_server(server)
    variables = environment(simulator, MATRIX_MOUNT=mount)
    app = f"{APPS}{MODULES[framework]}:app"
    with serve(server, WSGI[server], tmp_path / "log", variables, app=app, mount=mount) as site:
        # Bottle's own mount mangles a path beyond ASCII before the mounted app sees it.
        walk(site, simulator, room="Lobby" if framework == "bottle" and mount else "Café")
