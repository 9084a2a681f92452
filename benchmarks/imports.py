"""How much longer a program takes to start that uses this package."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from .measure import Spread
from .report import Figure

NAME = "import"
_STARLETTE = "import starlette"
_APPLICATION = "import starlette.applications, starlette.requests, starlette.responses"
_OURS = "import starlette, cm_auth_middleware"
_MIDDLEWARE = f"{_APPLICATION}; from cm_auth_middleware import CMAuthMiddleware"
_PROGRAMS = (_STARLETTE, _APPLICATION, _OURS, _MIDDLEWARE)
_LATER = {"httpx2", "authlib", "redis", "cryptography", "flask", "fastapi", "trio", "uvicorn"}
_THREADS = "from cm_auth_middleware import CMAuthWSGIMiddleware"
_LATER_IN_THREADS = _LATER | {"asyncio", "anyio", "starlette"}
_BLOCKS, _ROUNDS = 5, 6


def run() -> Iterator[Figure]:
    """Start interpreters in turns; the fastest of some starts counts, as everywhere here."""
    with tempfile.TemporaryDirectory() as folder:
        # Compiled once, as what pip installs is: some environments forbid to write it down.
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        blocks = [_block(environment) for _ in range(_BLOCKS)]
    plain = Spread.of([block[_STARLETTE] for block in blocks]).value
    yield Figure(NAME, _STARLETTE, plain * 1e3, "ms")
    for name, program, over, against, target in (
        ("the parts of starlette that an application uses", _APPLICATION, _STARLETTE, "", ""),
        ("import cm_auth_middleware", _OURS, _STARLETTE, "import starlette", "<= 60"),
        ("CMAuthMiddleware", _MIDDLEWARE, _APPLICATION, "an application's imports", "<= 60"),
    ):
        added = Spread.of([(block[program] - block[over]) * 1e3 for block in blocks])
        ratio = Spread.of([block[program] / block[over] for block in blocks])
        against = against or _STARLETTE
        yield Figure(NAME, name, added.value, "ms more", ratio, against, target, of_ratio=False)
    early = _loaded_early()
    title = f"that could wait{': ' + early if early else ''}"
    yield Figure(NAME, f"packages loaded {title}", len(early.split()), "", target="<= 0")


def _block(environment: dict[str, str]) -> dict[str, float]:
    best = dict.fromkeys(_PROGRAMS, float("inf"))
    for _ in range(_ROUNDS):
        for program in _PROGRAMS:
            before = _time_of_children()
            subprocess.run([sys.executable, "-c", program], check=True, env=environment)
            best[program] = min(best[program], _time_of_children() - before)
    return best


def _time_of_children() -> float:
    """Processor time, for importing waits for nothing; in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _loaded_early() -> str:
    """Which of the packages that can wait are imported at once."""
    found: set[str] = set()
    for imports, later in ((_MIDDLEWARE, _LATER), (_THREADS, _LATER_IN_THREADS)):
        program = f"{imports}; import sys; print(*({later!r} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
        found.update(done.stdout.decode().split())
    return " ".join(sorted(found))
