"""How much later a new process gives its first answer, what it weighs, and its first login."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx2

from .end_to_end import GUNICORN, UVICORN
from .measure import Spread
from .report import Figure
from .world import SECRET_KEY, SECRET_KEY_VARIABLE, SimulatedWorld, free_port

NAME = "start"
_BLOCKS, _ROUNDS = 5, 3
_SETTLED = 1.0  # seconds after which what is loaded beside has been loaded
_LATER = "<= 70"  # ms on the clock: it is a person or a load balancer who waits
_SERVERS = {
    "uvicorn": (UVICORN, "--port", "benchmarks.started:{}", ("starlette_bare", "starlette_ours")),
    "gunicorn": (
        (*GUNICORN, "--threads", "4"),
        "--bind",
        "benchmarks.started:{}()",
        ("flask_bare", "flask_ours"),
    ),
}


@dataclass(frozen=True, slots=True)
class _Start:
    """One start of a server. Seconds, and MB.

    Attributes:
        first: from the start of the process until a request was answered with 200.
        busy: the processor time of its processes until then.
        light: its memory then.
        idle: the same a second later, when what is loaded beside has been loaded.
        redirect: how long the redirect to the first login took; 0 without our middleware.
        login: how long the callback took, a second later: people need more for their password.
        used: the memory then.
    """

    first: float
    busy: float
    light: float
    idle: float
    redirect: float = 0.0
    login: float = 0.0
    used: float = 0.0


def run() -> Iterator[Figure]:
    """Start servers in turns; of each block the best start counts, as everywhere here."""
    with SimulatedWorld() as world, tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            SECRET_KEY_VARIABLE: SECRET_KEY,
            **{f"CM_AUTH_{key.upper()}": str(value) for key, value in world.options().items()},
            "CM_AUTH_EXEMPT": "/",
            # Compiled once, as what pip installs is: some environments forbid to write it down.
            "PYTHONPYCACHEPREFIX": folder,
        }
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        yield from _lifespan(environment)
        for server in _SERVERS:
            yield from _compare(server, world, environment)


def _lifespan(environment: dict[str, str]) -> Iterator[Figure]:
    """How long a server waits for `lifespan.startup.complete`, in a process that has just begun."""

    def startup(application: str) -> float:
        program = f"from benchmarks import started; started.start_lifespan({application!r})"
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, check=True, capture_output=True)
        return float(done.stdout)

    applications = ("starlette_bare", "starlette_ours")
    for application in applications:
        startup(application)  # compiles
    blocks = []
    for _ in range(_BLOCKS):
        found = [[startup(application) for application in applications] for _ in range(_ROUNDS)]
        blocks.append([min(seconds) for seconds in zip(*found, strict=True)])
    least = Spread.of([bare for bare, _ in blocks]).value
    more = Spread.of([ours - bare for bare, ours in blocks]).value
    yield Figure(NAME, "lifespan.startup, bare", least * 1e3, "ms")
    yield Figure(NAME, "lifespan.startup, ours", more * 1e3, "ms more", target=_LATER)


def _compare(server: str, world: SimulatedWorld, environment: dict[str, str]) -> Iterator[Figure]:
    *_, applications = _SERVERS[server]
    for application in applications:
        _start(server, application, world, environment)  # compiles
    blocks = []
    for _ in range(_BLOCKS):
        starts: dict[str, list[_Start]] = {application: [] for application in applications}
        for _ in range(_ROUNDS):
            for application in applications:
                starts[application].append(_start(server, application, world, environment))
        blocks.append([starts[application] for application in applications])

    def added(part: str, scale: float = 1e3) -> tuple[float, Spread]:
        """What ours has more than the bare application, and relative to it."""
        pairs = [
            [min(getattr(start, part) for start in starts) for starts in block] for block in blocks
        ]
        more = Spread.of([(ours - bare) * scale for bare, ours in pairs]).value
        return more, Spread.of([ours / bare for bare, ours in pairs])

    bare = f"{server}, bare"
    for name, part in (("first 200", "first"), ("processor time until then", "busy")):
        least = Spread.of([min(getattr(start, part) for start in block[0]) for block in blocks])
        yield Figure(NAME, f"{bare}: {name}", least.value * 1e3, "ms")
        more, ratio = added(part)
        target = _LATER if part == "first" else ""
        yield Figure(NAME, f"{server}, ours: {name}", more, "ms more", ratio, bare, target, False)
    for name, part in (("memory then", "light"), ("memory a second later", "idle")):
        more, ratio = added(part, 1)
        target = "<= 10"
        yield Figure(NAME, f"{server}, ours: {name}", more, "MB more", ratio, bare, target, False)
    for name, part in (("first redirect", "redirect"), ("first callback", "login")):
        logins = [min(getattr(start, part) for start in block[1]) for block in blocks]
        yield Figure(NAME, f"{server}, ours: {name}", Spread.of(logins).value * 1e3, "ms")
    more = Spread.of([min(start.used for start in block[1]) for block in blocks]).value
    more -= Spread.of([min(start.idle for start in block[0]) for block in blocks]).value
    yield Figure(NAME, f"{server}, ours: memory after a login", more, "MB more")


def _start(
    server: str, application: str, world: SimulatedWorld, environment: dict[str, str]
) -> _Start:
    arguments, place, target, _ = _SERVERS[server]
    port = free_port()
    where = str(port) if place == "--port" else f"127.0.0.1:{port}"
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments, place, where, target.format(application)], env=environment
    )
    try:
        while not _answers(port):
            if process.poll() is not None or time.perf_counter() - began > 60:
                raise RuntimeError(f"{server} did not come to answer")
            time.sleep(0.001)
        first = time.perf_counter() - began
        busy, light = _processor_time(process.pid), _memory(process.pid)
        time.sleep(_SETTLED)
        start = _Start(first, busy, light, _memory(process.pid))
        if application.endswith("ours"):
            url = f"http://localhost:{port}/auth/login"
            with httpx2.Client(headers={"Accept": "text/html"}) as browser:
                answer, redirect = _timed(browser, url)
                time.sleep(_SETTLED)
                answer, login = _timed(browser, world.callback_url(answer))
            if answer.status_code != 302:
                raise RuntimeError(f"{server}: the login ended with {answer.status_code}")
            used = _memory(process.pid)
            start = replace(start, redirect=redirect, login=login, used=used)
        return start
    finally:
        process.terminate()
        process.wait(10)


def _timed(browser: httpx2.Client, url: str) -> tuple[httpx2.Response, float]:
    began = time.perf_counter()
    return browser.get(url), time.perf_counter() - began


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with suppress(OSError):
        connection.request("GET", "/", headers={"Host": "localhost"})
        status = connection.getresponse().status
        connection.close()
        if status != 200:
            raise RuntimeError(f"{status} came back instead of 200")
        return True
    return False


def _family(process: int) -> list[int]:
    children = (Path("/proc") / str(process) / "task" / str(process) / "children").read_text()
    return [process, *(pid for child in children.split() for pid in _family(int(child)))]


def _processor_time(process: int) -> float:
    """Seconds that a process and its children have been at work, to the nanosecond (proc(5))."""
    threads = [
        task for pid in _family(process) for task in (Path("/proc") / str(pid) / "task").iterdir()
    ]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9


def _memory(process: int) -> float:
    """MB of the process that serves: of gunicorn, its worker (resident)."""
    serving = _family(process)[-1]
    for line in (Path("/proc") / str(serving) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1e3
    raise RuntimeError("this system does not say how much memory a process has")
