"""A login end to end: the redirect, the callback and the page behind them, at real servers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import httpx2

from . import apache
from .end_to_end import GUNICORN, UVICORN, _processor_time, _serve
from .measure import Spread, one_processor
from .report import Figure
from .world import SECRET_KEY, SECRET_KEY_VARIABLE, SimulatedWorld, redis_server

NAME = "login"
_BLOCKS = 5
_LOGINS = 100  # of a turn: the kernel tells processor time in hundredths of a second
_WARM = 10
_APACHE, _BY_HAND = "Apache, mod_auth_openidc", "uvicorn, Authlib by hand"
_OURS = {
    "uvicorn, ours": (UVICORN, "benchmarks.served:ours"),
    "gunicorn, ours": ((*GUNICORN, "--threads", "4"), "benchmarks.served:flask_ours()"),
}


@dataclass(frozen=True, slots=True)
class _Turn:
    """What a turn came to, in seconds a login: processor time, and time until the page is there."""

    busy: float
    wall: float


def run() -> Iterator[Figure]:
    """Log in again and again, in turns, with the sessions of all in one Redis."""
    with one_processor(), ExitStack() as stack:
        world = stack.enter_context(apache.OpenIDWorld())
        redis = stack.enter_context(redis_server())
        if redis is None:
            return
        servers = _start(stack, world, redis)
        for name, server in servers.items():
            _log_in(name, world, *server, _WARM)
        blocks: list[dict[str, _Turn]] = []
        names = list(servers)
        for shift in range(_BLOCKS):
            turn = shift % len(names)
            order = [*names[turn:], *names[:turn]]
            blocks.append({name: _log_in(name, world, *servers[name], _LOGINS) for name in order})
    yield from _figures(names, blocks)


def _start(stack: ExitStack, world: apache.OpenIDWorld, redis: str) -> dict[str, tuple[str, int]]:
    """Start the contestants, the one that the others are compared with first."""
    environment = {
        **os.environ,
        SECRET_KEY_VARIABLE: SECRET_KEY,
        **{f"CM_AUTH_{key.upper()}": str(value) for key, value in world.options().items()},
        "CM_AUTH_STORE": redis,
    }
    servers: dict[str, tuple[str, int]] = {}
    if apache.is_installed():
        servers[_APACHE] = apache.serve_apache(stack, world.apache_options(redis))
    servers[_BY_HAND] = _serve(stack, environment, UVICORN, "benchmarks.served:authlib_login")
    for name, (server, app) in _OURS.items():
        servers[name] = _serve(stack, environment, server, app)
    return servers


def _log_in(name: str, world: SimulatedWorld, url: str, process: int, times: int) -> _Turn:
    """Log in so many times, each time in a browser without cookies; it keeps its connection."""
    busy, wall = _processor_time(process), 0.0
    with httpx2.Client(base_url=url, headers={"Accept": "text/html"}) as browser:
        for _ in range(times):
            browser.cookies.clear()
            began = time.perf_counter()
            answer = browser.get("/")
            wall += time.perf_counter() - began
            callback = world.callback_url(answer)
            began = time.perf_counter()
            answer = browser.get(callback)
            page = browser.get(answer.headers.get("location", ""))
            wall += time.perf_counter() - began
            if answer.status_code not in (302, 303) or page.text != "ok":
                raise RuntimeError(f"{name}: {answer.status_code}, then {page.status_code}")
    return _Turn((_processor_time(process) - busy) / times, wall / times)


def _figures(names: list[str], blocks: list[dict[str, _Turn]]) -> Iterator[Figure]:
    reference = names[0]
    for name in names:
        busy = [block[name].busy for block in blocks]
        ratio = Spread.of([block[name].busy / block[reference].busy for block in blocks])
        wall = min(block[name].wall for block in blocks)
        # Beside a login by hand, which promises less, there is nothing to reach.
        target = "<= 1" if name in _OURS and reference == _APACHE else ""
        title = f"{name}: processor time of a login ({wall * 1e3:.1f} ms on the clock)"
        yield Figure(NAME, title, median(busy) * 1e3, "ms", ratio, reference, target)
