"""How much longer a program takes to start that imports this package."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

from .measure import Spread
from .report import Figure

NAME = "import"
_PROGRAMS = {
    "import starlette": "import starlette",
    "import starlette.applications": "import starlette.applications, starlette.requests",
    "import httpx2": "import httpx2",
    "ours": "import cm_auth_middleware",
    "both": "import starlette.applications, starlette.requests, cm_auth_middleware",
}
_LATER = ("authlib", "redis", "cryptography", "flask", "fastapi", "trio", "uvicorn")
_BLOCKS, _ROUNDS = 5, 4


def run() -> Iterator[Figure]:
    """Start interpreters in turns; the fastest of some starts counts, as everywhere here."""
    blocks = [_block() for _ in range(_BLOCKS)]
    plain = "import starlette"
    yield Figure(NAME, plain, Spread.of([b[plain] for b in blocks]).value * 1e3, "ms")
    for name, over, target in (
        ("import starlette.applications", plain, ""),
        ("import httpx2", plain, ""),
        ("ours", plain, "<= 60"),
        ("both", "import starlette.applications", ""),
    ):
        added = Spread.of([(block[name] - block[over]) * 1e3 for block in blocks])
        ratio = Spread.of([block[name] / block[over] for block in blocks])
        title = {
            "ours": "import cm_auth_middleware",
            "both": "import cm_auth_middleware, after starlette.applications",
        }.get(name, name)
        yield Figure(NAME, title, added.value, "ms more", ratio, over, target, of_ratio=False)
    early = _loaded_early()
    yield Figure(
        NAME,
        "heavy modules loaded with it" + (f" ({early})" if early else ""),
        len(early.split()),
        "",
        target="<= 0",
    )


def _block() -> dict[str, float]:
    best = dict.fromkeys(_PROGRAMS, float("inf"))
    for _ in range(_ROUNDS):
        for name, program in _PROGRAMS.items():
            before = _time_of_children()
            subprocess.run([sys.executable, "-c", program], check=True)
            best[name] = min(best[name], _time_of_children() - before)
    return best


def _time_of_children() -> float:
    """Processor time, for importing waits for nothing; in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _loaded_early() -> str:
    """Which of the modules that can wait are imported at once."""
    program = f"import sys, cm_auth_middleware; print(*({set(_LATER)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return done.stdout.decode().strip()
