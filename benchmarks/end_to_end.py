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
from pathlib import Path
from statistics import median

import httpx2

from . import apache
from .ideal import Cookies
from .measure import Spread, one_processor
from .report import Figure
from .served import IDEAL_SESSION
from .world import (
    BROWSER,
    COOKIE,
    SECRET_KEY,
    SECRET_KEY_VARIABLE,
    SimulatedWorld,
    free_port,
    redis_server,
    wait_for_port,
)

NAME = "end-to-end"
_BLOCKS = 3
_ROUNDS = 4
_SECONDS = 1  # of a turn; wrk takes whole ones
_CONNECTIONS = 16
_APACHE = "Apache, mod_auth_openidc, redirect to the login"
_TARGETS = {  # of a contestant, against another one
    ("Starlette, ours", "Starlette, bare"): ">= 0.72",
    ("Flask, ours", "Flask, bare"): ">= 0.9",
    ("Starlette, ours, redirect to the login", _APACHE): ">= 1",
}

# Routes whose handler looks who is logged in; that of "/" does not, here as in the bare app.
_ASKING = {
    "Starlette, ideal": "/who",
    "Starlette, SessionMiddleware": "/session",
    "Starlette, ours": "/who",
    "Flask, its session": "/who",
    "Flask, ours": "/who",
}

UVICORN = ("-m", "uvicorn", "--factory", "--no-access-log", "--log-level", "warning")
GUNICORN = ("-m", "gunicorn", "--worker-class", "gthread", "--log-level", "warning")
THREADS = (*GUNICORN, "--threads", "4")


@dataclass(frozen=True, slots=True)
class _Contestant:
    name: str
    url: str
    process: int
    cookie: str


@dataclass(frozen=True, slots=True)
class _Load:
    """What a turn of wrk came to; times in seconds, `busy` is the server's processor time.

    Attributes:
        rate: requests in a second of the clock, of which wrk itself takes a part.
    """

    requests: int
    busy: float
    median: float
    p99: float
    rate: float


def run() -> Iterator[Figure]:
    """Put load on servers in turns, each a process with one worker."""
    if shutil.which("wrk") is None:
        raise SystemExit("end-to-end needs wrk: apt-get install wrk")
    with one_processor(), ExitStack() as stack:
        world = stack.enter_context(SimulatedWorld())
        environment = {
            **os.environ,
            SECRET_KEY_VARIABLE: SECRET_KEY,
            **{f"CM_AUTH_{key.upper()}": str(value) for key, value in world.options().items()},
        }
        bare_cookie = f"{COOKIE}={'x' * 130}"
        asgi = {
            name: _serve(stack, environment, UVICORN, f"benchmarks.served:{app}")
            for name, app in (
                ("Starlette, bare", "bare"),
                ("Starlette, ideal", "ideal"),
                ("Starlette, SessionMiddleware", "session_middleware"),
                ("Starlette, ours", "ours"),
            )
        }
        wsgi = {
            name: _serve(stack, environment, GUNICORN, f"benchmarks.served:{app}()")
            for name, app in (
                ("Flask, bare", "flask_bare"),
                ("Flask, its session", "flask_session"),
                ("Flask, ours", "flask_ours"),
            )
        }
        cookies = {
            "Starlette, ideal": f"{COOKIE}={Cookies(SECRET_KEY).sign(IDEAL_SESSION)}",
            "Starlette, SessionMiddleware": _session(asgi["Starlette, SessionMiddleware"][0]),
            "Flask, its session": _session(wsgi["Flask, its session"][0]),
            "Starlette, ours": f"{COOKIE}={world.log_in_at(asgi['Starlette, ours'][0])}",
            "Flask, ours": f"{COOKIE}={world.log_in_at(wsgi['Flask, ours'][0])}",
        }
        for servers in (asgi, wsgi):
            contestants = []
            for name, (url, process) in servers.items():
                cookie = cookies.get(name, bare_cookie)
                contestants.append(_Contestant(name, url, process, cookie))
                if name in _ASKING:
                    asking = (f"{name}, asked who it is", f"{url}{_ASKING[name]}", process, cookie)
                    contestants.append(_Contestant(*asking))
            yield from _compare(contestants)
        yield from _redirects(stack, environment, asgi["Starlette, ours"])
        yield from _threads_on_redis(stack, environment, world)


def _redirects(
    stack: ExitStack, environment: dict[str, str], ours: tuple[str, int]
) -> Iterator[Figure]:
    """Compare the redirect of a visitor to the login with others.

    One is always the same; the other is that of mod_auth_openidc, where it is installed.
    """
    fixed = _serve(stack, environment, UVICORN, "benchmarks.served:redirecting")
    others = {"Starlette, a redirect that never changes": fixed}
    if apache.is_installed():
        others[_APACHE] = apache.serve_apache(stack, apache.never_asked())
    yield from _compare(
        [
            _Contestant(name, *server, "theme=dark")
            for name, server in {**others, "Starlette, ours, redirect to the login": ours}.items()
        ],
        against=_APACHE if _APACHE in others else None,
    )


_GET = "Flask, 4 threads, a blocking GET"


def _threads_on_redis(
    stack: ExitStack, environment: dict[str, str], world: SimulatedWorld
) -> Iterator[Figure]:
    """Compare what Redis costs under threads with one GET by the same client in a handler."""
    url = stack.enter_context(redis_server())
    if url is None:
        return
    environment = {**environment, "CM_AUTH_STORE": url}
    servers = {
        name: _serve(stack, environment, THREADS, f"benchmarks.served:{app}()")
        for name, app in (
            ("Flask, 4 threads, bare", "flask_bare"),
            (_GET, "flask_get"),
            ("Flask, 4 threads, ours on Redis", "flask_ours"),
        )
    }
    bare, get, ours = servers
    cookies = dict.fromkeys(servers, f"{COOKIE}={'x' * 130}")
    cookies[ours] = f"{COOKIE}={world.log_in_at(servers[ours][0])}"
    blocks = _take_turns(
        [_Contestant(name, *server, cookies[name]) for name, server in servers.items()]
    )
    costs = {name: [1 / _rate(block[name]) for block in blocks] for name in servers}

    def added(name: str) -> list[float]:
        return [cost - least for cost, least in zip(costs[name], costs[bare], strict=True)]

    yield Figure(NAME, bare, median(costs[bare]) * 1e6, "µs")
    yield Figure(NAME, get, median(added(get)) * 1e6, "µs more")
    ratio = Spread.of([ours / least for ours, least in zip(added(ours), added(get), strict=True)])
    yield Figure(NAME, ours, median(added(ours)) * 1e6, "µs more", ratio, _GET, "<= 1.5")


def _serve(
    stack: ExitStack, environment: dict[str, str], server: Sequence[str], app: str
) -> tuple[str, int]:
    """The address and the process id of a server that has just been started."""
    port = free_port()
    where = ("--port", str(port)) if server is UVICORN else ("--bind", f"127.0.0.1:{port}")
    process = subprocess.Popen([sys.executable, *server, *where, app], env=environment)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    wait_for_port(port, process)
    return f"http://127.0.0.1:{port}", process.pid


def _session(url: str) -> str:
    with httpx2.Client() as browser:
        return f"session={browser.get(f'{url}/log-in').cookies['session']}"


def _compare(contestants: Sequence[_Contestant], against: str | None = None) -> Iterator[Figure]:
    """Let contestants take turns, and compare what their servers did per second of work.

    That is the rate itself where the machine has nothing else to do: a server under this load
    never waits.

    Args:
        against: the name of the one that all are compared with; by default the first.
    """
    names = [contestant.name for contestant in contestants]
    reference = against or names[0]
    blocks = _take_turns(contestants)
    for name in names:
        rates = [_rate(block[name]) for block in blocks]
        bare = [_rate(block[reference]) for block in blocks]
        ratio = Spread.of([rate / other for rate, other in zip(rates, bare, strict=True)])
        turns = [load for block in blocks for load in block[name]]
        p50, p99 = (min(getattr(load, part) for load in turns) for part in ("median", "p99"))
        title = f"{name} (p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms)"
        rate, target = median(rates), _TARGETS.get((name, reference), "")
        yield Figure(NAME, title, rate, "requests/s", ratio, reference, target)


def _take_turns(
    contestants: Sequence[_Contestant],
    *,
    blocks: int = _BLOCKS,
    rounds: int = _ROUNDS,
    seconds: int = _SECONDS,
) -> list[dict[str, list[_Load]]]:
    names = [contestant.name for contestant in contestants]
    for contestant in contestants:
        _wrk(contestant, seconds)  # warm
    found: list[dict[str, list[_Load]]] = []
    for block in range(blocks):
        loads: dict[str, list[_Load]] = {name: [] for name in names}
        for shift in range(rounds):
            turn = (block * rounds + shift) % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                loads[contestant.name].append(_wrk(contestant, seconds))
        found.append(loads)
    return found


def _rate(loads: Sequence[_Load]) -> float:
    return sum(load.requests for load in loads) / sum(load.busy for load in loads)


def _wrk(contestant: _Contestant, seconds: int) -> _Load:
    headers = [f"{name.decode()}: {value.decode()}" for name, value in BROWSER[1:]]
    headers.append(f"cookie: {contestant.cookie}")
    options = [part for header in headers for part in ("-H", header)]
    busy = _processor_time(contestant.process)
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{_CONNECTIONS}",
            f"-d{seconds}s",
            "--latency",
            *options,
            contestant.url,
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=seconds + 30,
    )
    busy = _processor_time(contestant.process) - busy
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"{contestant.name} did not answer well:\n{done.stdout}")
    found = re.search(r"(\d+) requests in", done.stdout)
    assert found, done.stdout
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    assert rate, done.stdout
    latencies = _latency(done.stdout, 50), _latency(done.stdout, 99)
    return _Load(int(found[1]), busy, *latencies, float(rate[1]))


def _processor_time(process: int) -> float:
    """Seconds that a process and its children have been at work (proc(5))."""
    folder = Path("/proc") / str(process)
    parts = (folder / "stat").read_text().rpartition(") ")[2].split()
    ticks = int(parts[11]) + int(parts[12])
    children = (folder / "task" / str(process) / "children").read_text().split()
    return ticks / os.sysconf("SC_CLK_TCK") + sum(_processor_time(int(pid)) for pid in children)


def _latency(output: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)\b", output, re.MULTILINE)
    assert found, output
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
