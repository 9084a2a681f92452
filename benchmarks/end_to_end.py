"""Whole requests: a real server under wrk, with and without."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

import httpx2

from .ideal import Cookies
from .measure import Spread
from .report import Figure
from .served import IDEAL_SESSION
from .world import (
    BROWSER,
    COOKIE,
    SECRET_KEY,
    SECRET_KEY_VARIABLE,
    SimulatedWorld,
    free_port,
    wait_for_port,
)

NAME = "end-to-end"
_BLOCKS = 3
_ROUNDS = 4
_SECONDS = 1  # of a turn; wrk takes whole ones
_CONNECTIONS = 16
_TARGETS = {"Starlette, ours": ">= 0.72", "Flask, ours": ">= 0.9"}

_UVICORN = ("-m", "uvicorn", "--factory", "--no-access-log", "--log-level", "warning")
_GUNICORN = ("-m", "gunicorn", "--worker-class", "gthread", "--log-level", "warning")


@dataclass(frozen=True, slots=True)
class _Contestant:
    name: str
    url: str
    cookie: str


@dataclass(frozen=True, slots=True)
class _Load:
    """What wrk saw: requests per second, and seconds of the median and the slowest hundredth."""

    rate: float
    median: float
    p99: float


def run() -> Iterator[Figure]:
    """Put load on servers in turns, each a process with one worker."""
    if shutil.which("wrk") is None:
        raise SystemExit("end-to-end needs wrk: apt-get install wrk")
    with ExitStack() as stack:
        world = stack.enter_context(SimulatedWorld())
        environment = {
            **os.environ,
            SECRET_KEY_VARIABLE: SECRET_KEY,
            **{f"CM_AUTH_{key.upper()}": str(value) for key, value in world.options().items()},
        }
        bare_cookie = f"{COOKIE}={'x' * 130}"
        asgi = {
            name: _serve(stack, environment, _UVICORN, f"benchmarks.served:{app}")
            for name, app in (
                ("Starlette, bare", "bare"),
                ("Starlette, ideal", "ideal"),
                ("Starlette, SessionMiddleware", "session_middleware"),
                ("Starlette, ours", "ours"),
            )
        }
        wsgi = {
            name: _serve(stack, environment, _GUNICORN, f"benchmarks.served:{app}()")
            for name, app in (("Flask, bare", "flask_bare"), ("Flask, ours", "flask_ours"))
        }
        cookies = {
            "Starlette, ideal": f"{COOKIE}={Cookies(SECRET_KEY).sign(IDEAL_SESSION)}",
            "Starlette, SessionMiddleware": _session(asgi["Starlette, SessionMiddleware"]),
            "Starlette, ours": f"{COOKIE}={world.log_in_at(asgi['Starlette, ours'])}",
            "Flask, ours": f"{COOKIE}={world.log_in_at(wsgi['Flask, ours'])}",
        }
        for urls in (asgi, wsgi):
            contestants = [
                _Contestant(name, url, cookies.get(name, bare_cookie)) for name, url in urls.items()
            ]
            yield from _compare(contestants)


def _serve(stack: ExitStack, environment: dict[str, str], server: Sequence[str], app: str) -> str:
    port = free_port()
    where = ("--port", str(port)) if server is _UVICORN else ("--bind", f"127.0.0.1:{port}")
    process = subprocess.Popen([sys.executable, *server, *where, app], env=environment)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    wait_for_port(port, process)
    return f"http://127.0.0.1:{port}"


def _session(url: str) -> str:
    with httpx2.Client() as browser:
        return f"session={browser.get(f'{url}/log-in').cookies['session']}"


def _compare(contestants: Sequence[_Contestant]) -> Iterator[Figure]:
    """Let contestants take turns; the best turn of a block counts, and blocks are compared."""
    names = [contestant.name for contestant in contestants]
    for contestant in contestants:
        _wrk(contestant)  # warm
    blocks: list[dict[str, _Load]] = []
    for _ in range(_BLOCKS):
        best = dict.fromkeys(names, _Load(0.0, 0.0, 0.0))
        for shift in range(_ROUNDS):
            turn = shift % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                load = _wrk(contestant)
                best[contestant.name] = max(best[contestant.name], load, key=lambda one: one.rate)
        blocks.append(best)
    bare = names[0]
    for name in names:
        loads = [block[name] for block in blocks]
        rate = median(load.rate for load in loads)
        ratio = Spread.of([block[name].rate / block[bare].rate for block in blocks])
        p50, p99 = (median(getattr(load, part) for load in loads) for part in ("median", "p99"))
        title = f"{name} (p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms)"
        yield Figure(NAME, title, rate, "requests/s", ratio, bare, _TARGETS.get(name, ""))


def _wrk(contestant: _Contestant) -> _Load:
    headers = [f"{name.decode()}: {value.decode()}" for name, value in BROWSER[1:]]
    headers.append(f"cookie: {contestant.cookie}")
    options = [part for header in headers for part in ("-H", header)]
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{_CONNECTIONS}",
            f"-d{_SECONDS}s",
            "--latency",
            *options,
            contestant.url,
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=_SECONDS + 30,
    )
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"{contestant.name} did not answer well:\n{done.stdout}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert found, done.stdout
    return _Load(float(found[1]), _latency(done.stdout, 50), _latency(done.stdout, 99))


def _latency(output: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)\b", output, re.MULTILINE)
    assert found, output
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
