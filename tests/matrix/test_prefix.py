"""Under a path that the server itself was told: ``root_path`` and ``SCRIPT_NAME``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.browser import Visitor

from .server_processes import APPS, ASGI, WSGI, Simulated, environment, needs, needs_server, serve
from .walk import walk

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

# server, what tells it, by which variables, framework, module
CELLS = [
    (ASGI, "hypercorn", ["--root-path", "/ui"], {}, "starlette", "starlette_app"),
    (ASGI, "hypercorn", ["--root-path", "/ui"], {}, "quart", "quart_app"),
    (ASGI, "granian", ["--url-path-prefix", "/ui"], {}, "fastapi", "fastapi_app"),
    (ASGI, "granian", ["--url-path-prefix", "/ui"], {}, "litestar", "litestar_app"),
    (ASGI, "granian", ["--url-path-prefix", "/ui"], {}, "django", "django_asgi"),
    (WSGI, "gunicorn-gthread", [], {"SCRIPT_NAME": "/ui"}, "falcon", "falcon_app"),
    (WSGI, "waitress", ["--url-prefix=/ui"], {}, "django", "django_wsgi"),
    (WSGI, "granian", ["--url-path-prefix", "/ui"], {}, "flask", "flask_app"),
]


@pytest.mark.parametrize(
    ("kind", "server", "arguments", "variables", "framework", "module"),
    CELLS,
    ids=[f"{cell[4]} under {cell[1]} {' '.join(cell[2])}".strip() for cell in CELLS],
)
def test_prefix_of_the_server(
    kind: dict[str, list[str]],
    server: str,
    arguments: list[str],
    variables: dict[str, str],
    framework: str,
    module: str,
    simulator: Simulated,
    tmp_path: Path,
) -> None:
    needs(framework)
    needs_server(server)
    command = [*kind[server][:-1], *arguments, "{app}"]
    variables = environment(simulator, **variables)
    app = f"{APPS}{module}:app"
    with serve(server, command, tmp_path / "log", variables, app=app, mount="/ui") as site:
        walk(site, simulator)


@pytest.mark.parametrize("framework", ["starlette", "litestar", "quart", "django"])
def test_a_prefix_in_the_middle_of_a_path_opens_nothing(
    framework: str, simulator: Simulated, tmp_path: Path
) -> None:
    """Litestar routes ``/static/ui/cameras`` under ``/ui`` as ``/cameras``."""
    needs(framework, "hypercorn")
    command = [*ASGI["hypercorn"][:-1], "--root-path", "/ui", "{app}"]
    module = "django_asgi" if framework == "django" else f"{framework}_app"
    variables = environment(simulator, CM_AUTH_EXEMPT="/health,/static/*")
    with (
        serve("hypercorn", command, tmp_path / "log", variables,
              app=f"{APPS}{module}:app", mount="/ui") as site,
        Visitor(site.origin) as visitor,
    ):  # fmt: skip
        for path in ("/static/ui/data", "/static/ui/health/ui/data", "/static/x/ui/data"):
            assert visitor.fetch(path).status_code in (401, 404), path
            assert visitor.navigate(path).status_code in (302, 404), path
