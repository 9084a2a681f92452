"""The imports inside the package run one way, from the ways in down to the errors, in no circle.

Every import counts: those in functions and those for type checkers, too.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import cm_auth_middleware

NAME = "cm_auth_middleware"
PACKAGE = Path(cm_auth_middleware.__file__).parent

# From the top to the bottom, as in the design. A module may import from its own layer and from
# those below. Nothing below auth/ knows the config: that is why it has a layer of its own.
LAYERS = (
    ("cli", "testing"),
    ("__init__", "asgi", "wsgi", "session_header", "fastapi", "flask", "proxy", "proxy_cache"),
    ("engine",),
    ("auth",),
    ("config",),
    ("environment",),
    ("client", "telemetry"),
    ("tokens",),
    ("sessions",),
    ("stores", "web"),
    ("runtime",),
    ("audit_log", "errors", "events", "hooks"),
    ("display",),
)
LEVELS = {part: -level for level, parts in enumerate(LAYERS) for part in parts}

# Imports that break the rules, each with the reason why it may.
KNOWN: dict[tuple[str, str], str] = {}


def modules() -> dict[str, Path]:
    """The modules by their names inside the package: ``web.request``; a package by its own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] != "_demo":  # an example, which only wheels have here
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"] = path
    return found


MODULES = modules()


def imports(name: str, source: str) -> Iterator[str]:
    """Yield each module of the package that a module imports."""
    is_package = MODULES.get(name, PACKAGE).name == "__init__.py"
    package = [] if name == "__init__" else name.split(".")[: None if is_package else -1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from inside(alias.name.split("."), [])
        elif isinstance(node, ast.ImportFrom):
            above = [NAME, *package][: len(package) + 2 - node.level] if node.level else []
            base = above + (node.module.split(".") if node.module else [])
            yield from inside(base, [alias.name for alias in node.names])


def inside(base: list[str], names: list[str]) -> Iterator[str]:
    if base[0] != NAME:
        return
    here = ".".join(base[1:])
    submodules = [f"{here}.{name}".lstrip(".") for name in names]
    yield from (module for module in submodules if module in MODULES)
    if not names or any(module not in MODULES for module in submodules):
        yield here or "__init__"


ARROWS = {
    name: {to for to in imports(name, path.read_text()) if to != name}
    for name, path in MODULES.items()
}


def level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


def test_every_module_has_a_layer() -> None:
    assert {module.split(".")[0] for module in MODULES} == set(LEVELS)


def test_no_import_runs_upwards() -> None:
    upwards = {(a, b) for a, found in ARROWS.items() for b in found if level(b) > level(a)}
    assert upwards <= set(KNOWN)


def test_no_imports_run_in_a_circle() -> None:
    graph = {a: {b for b in found if (a, b) not in KNOWN} for a, found in ARROWS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        pytest.fail(f"a circle of imports: {circle}")


@pytest.mark.parametrize(
    ("way_in", "later"),
    [
        ("CMAuthMiddleware", (f"{NAME}.wsgi", f"{NAME}.runtime.threads")),
        (
            "CMAuthWSGIMiddleware",
            ("asyncio", "anyio", "starlette", f"{NAME}.asgi", f"{NAME}.runtime.event_loops"),
        ),
    ],
)
def test_a_middleware_is_made_without_what_can_wait(way_in: str, later: tuple[str, ...]) -> None:
    options = {
        "client_id": "id",
        "client_secret": "secret",
        "secret_key": "kzJ2x-8Qw_1uYtR4mN7bV3cX6zL9pF0sA5dG2hJ8",
    }
    later = (*later, "httpx2", "authlib", "cryptography", "redis", "psycopg", "sqlite3", "difflib")
    later = (*later, f"{NAME}.web.messages", f"{NAME}.client")
    program = f"""
import sys
sys.modules.update(dict.fromkeys(("opentelemetry", "trio")))  # of the tests; they load asyncio
before = set(sys.modules)
from {NAME} import {way_in}
{way_in}(None, **{options!r})
print(*sorted(set({later!r}) & (sys.modules.keys() - before)))
"""
    # An unknown CM_AUTH_… makes it look for one that is alike.
    environment = {name: value for name, value in os.environ.items() if "CM_AUTH_" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, env=environment
    )
    assert done.stdout.split() == []


def test_every_exception_is_still_needed() -> None:
    assert [(a, b) for a, b in KNOWN if b not in ARROWS.get(a, ())] == []


def test_every_way_to_write_an_import_is_read() -> None:
    source = """
from __future__ import annotations
import httpx2
from . import record, cookie
from .. import config, CMAuthConfig
from ..web.request import Request
def later():
    import cm_auth_middleware.stores.memory
if TYPE_CHECKING:
    from cm_auth_middleware.cli import main
"""
    found = set(imports("sessions.encryption", source))
    assert found == {
        "sessions.record", "sessions.cookie", "config", "__init__", "web.request",
        "stores.memory", "cli",
    }  # fmt: skip
    assert set(imports("sessions", "from .record import Record")) == {"sessions.record"}
