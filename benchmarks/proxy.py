"""The proxy beside a relay that is written by hand, and beside nginx: snapshots and a recording."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from .end_to_end import THREADS, UVICORN, _Contestant, _processor_time, _rate, _serve, _take_turns
from .fast_server import RECORDING_BYTES, SNAPSHOT_BYTES, FastServer
from .measure import Spread, one_processor
from .report import Figure
from .served import BEARER
from .world import (
    COOKIE,
    SECRET_KEY,
    SECRET_KEY_VARIABLE,
    SimulatedWorld,
    free_port,
    wait_for_port,
)

NAME = "proxy"
_BLOCKS = 5
_ROUNDS = 2
_SECONDS = 3  # of a turn: in a shorter one, a p99 is that of a few requests
_RELAY, _OURS, _KEPT = "a relay by hand", "CMProxy", "CMProxy, kept"
_WSGI_RELAY, _WSGI = "a relay by hand, Flask, 4 threads", ("CMWSGIProxy", "CMWSGIProxy, kept")
_NGINX = "nginx, one bearer for all"
_SNAPSHOT, _RECORDING = "/rest/v2.4/cameras/1/snapshot", "/rest/v2.4/recording"
_RATES = {_OURS: ">= 0.95", _KEPT: ">= 5"}
_MOST_MEMORY = 16.0  # MB that a process may grow by while 1 GB passes through it


@dataclass(frozen=True, slots=True)
class _Download:
    """What a recording came to: seconds, the server's processor time, and MB that it grew by."""

    seconds: float
    busy: float
    grown: float


def run() -> Iterator[Figure]:
    """Put load on the proxies in turns; each is a process with one worker."""
    if shutil.which("wrk") is None:
        raise SystemExit("proxy needs wrk: apt-get install wrk")
    with one_processor(), ExitStack() as stack:
        contestants, threaded = _start(stack)
        yield from _snapshots(contestants)
        yield from _snapshots(threaded)
        yield from _recordings([c for c in contestants if c.name != _KEPT])


def _start(stack: ExitStack) -> tuple[list[_Contestant], list[_Contestant]]:
    """Start the servers, log in, and replace the simulator by a server that is fast.

    The first ones are ASGI servers and nginx, the others WSGI servers.
    """
    with SimulatedWorld() as world:
        options = world.options()
        environment = {
            **os.environ,
            SECRET_KEY_VARIABLE: SECRET_KEY,
            **{f"CM_AUTH_{key.upper()}": str(value) for key, value in options.items()},
        }
        ours, our_process = _serve(stack, environment, UVICORN, "benchmarks.served:proxied")
        relay, its_process = _serve(stack, environment, UVICORN, "benchmarks.served:relay")
        cookie = f"{COOKIE}={world.log_in_at(ours)}"
        flask, its_worker = _serve(stack, environment, THREADS, "benchmarks.served:flask_proxied()")
        by_hand, worker = _serve(stack, environment, THREADS, "benchmarks.served:flask_relay()")
        flask_cookie = f"{COOKIE}={world.log_in_at(flask)}"
    port = urlsplit(options["base_url"]).port or 0
    stack.enter_context(FastServer(port))
    contestants = [
        _Contestant(_RELAY, f"{relay}/cm", its_process, cookie),
        _Contestant(_OURS, f"{ours}/cm", our_process, cookie),
        _Contestant(_KEPT, f"{ours}/kept", our_process, cookie),
    ]
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is not None:
        url, process = _serve_nginx(stack, nginx, port)
        contestants.append(_Contestant(_NGINX, url, process, cookie))
    threaded = [_Contestant(_WSGI_RELAY, f"{by_hand}/cm", worker, flask_cookie)]
    for name, path in zip(_WSGI, ("/cm", "/kept"), strict=True):
        threaded.append(_Contestant(name, flask + path, its_worker, flask_cookie))
    return contestants, threaded


def _serve_nginx(stack: ExitStack, nginx: str, upstream: int) -> tuple[str, int]:
    folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port()
    temporary = " ".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/log;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{}}
        http {{
            access_log off; {temporary}
            upstream api {{ server 127.0.0.1:{upstream}; keepalive 32; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://api;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Authorization "Bearer {BEARER}";
                    proxy_max_temp_file_size 0;
                }}
            }}
        }}"""
    )
    process = subprocess.Popen([nginx, "-c", folder / "nginx.conf", "-e", folder / "log"])
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    wait_for_port(port, process)
    return f"http://127.0.0.1:{port}", process.pid


# -- snapshots ------------------------------------------------------------------------------------


def _snapshots(servers: Sequence[_Contestant]) -> Iterator[Figure]:
    """Compare with the first of the servers."""
    asked = [_Contestant(s.name, s.url + _SNAPSHOT, s.process, s.cookie) for s in servers]
    relay = asked[0].name
    blocks = _take_turns(asked, blocks=_BLOCKS, rounds=_ROUNDS, seconds=_SECONDS)
    for contestant in asked:
        name = contestant.name
        rates = [_rate(block[name]) for block in blocks]
        ratio = Spread.of([r / _rate(b[relay]) for r, b in zip(rates, blocks, strict=True)])
        loads = [load for block in blocks for load in block[name]]
        best, wall = min(load.median for load in loads), max(load.rate for load in loads)
        title = (
            f"{name}: snapshots of {SNAPSHOT_BYTES // 1000} kB "
            f"(p50 {best * 1e3:.1f} ms, {wall:.0f} in a second of the clock)"
        )
        yield Figure(NAME, title, median(rates), "requests/s", ratio, relay, _RATES.get(name, ""))
    for contestant in asked:
        name = contestant.name
        # What disturbs only ever adds: the best turn of a block counts for it.
        slowest = [min(load.p99 for load in block[name]) for block in blocks]
        relayed = [min(load.p99 for load in block[relay]) for block in blocks]
        ratio = Spread.of([p99 / other for p99, other in zip(slowest, relayed, strict=True)])
        target = "<= 1.1" if name == _OURS else ""
        yield Figure(NAME, f"{name}: p99", median(slowest) * 1e3, "ms", ratio, relay, target)


# -- a recording ----------------------------------------------------------------------------------


def _recordings(servers: Sequence[_Contestant]) -> Iterator[Figure]:
    for server in servers:
        _download(server, 50_000_000)  # warm
    blocks = []
    for shift in range(_BLOCKS):
        turn = shift % len(servers)
        order = [*servers[turn:], *servers[:turn]]
        blocks.append({server.name: _download(server, RECORDING_BYTES) for server in order})
    size = RECORDING_BYTES / 1e6
    for server in servers:
        found = [block[server.name] for block in blocks]
        ratio = Spread.of([block[_RELAY].busy / block[server.name].busy for block in blocks])
        wall = max(size / download.seconds for download in found)
        title = f"{server.name}: a recording of 1 GB ({wall:.0f} MB in a second of the clock)"
        rate, target = median(size / download.busy for download in found), ""
        target = ">= 0.95" if server.name == _OURS else ""
        yield Figure(NAME, title, rate, "MB/s", ratio, _RELAY, target)
    for server in servers:
        grown = max(block[server.name].grown for block in blocks)
        target = f"<= {_MOST_MEMORY:.0f}" if server.name == _OURS else ""
        yield Figure(
            NAME, f"{server.name}: memory that grew by meanwhile", grown, "MB", target=target
        )


def _download(server: _Contestant, size: int) -> _Download:
    """Fetch the beginning of the recording by a Range request."""
    parts = urlsplit(server.url + _RECORDING)
    workers = [server.process, *_children(server.process)]
    before, busy = sum(map(_forget_peak, workers)), _processor_time(server.process)
    started = time.perf_counter()
    with socket.create_connection((parts.hostname or "", parts.port or 80), 60) as connection:
        connection.sendall(
            f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {server.cookie}\r\n"
            f"Range: bytes=0-{size - 1}\r\nConnection: close\r\n\r\n".encode()
        )
        buffer, received = bytearray(1 << 20), 0
        head = connection.recv(65_536)
        if not head.startswith(b"HTTP/1.1 206") or b"\r\n\r\n" not in head:
            raise RuntimeError(f"{server.name} did not answer well: {head[:200]!r}")
        received = len(head.partition(b"\r\n\r\n")[2])
        while received < size and (count := connection.recv_into(buffer)):
            received += count
    if received != size:
        raise RuntimeError(f"{server.name} gave {received} bytes of {size}")
    seconds = time.perf_counter() - started
    busy = _processor_time(server.process) - busy
    return _Download(seconds, busy, sum(_status(p, "VmHWM") for p in workers) - before)


def _children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text().split()]


def _forget_peak(process: int) -> float:
    Path(f"/proc/{process}/clear_refs").write_text("5")  # proc(5)
    return _status(process, "VmHWM")


def _status(process: int, field: str) -> float:
    """Return MB of memory of a process (resident)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1e3
    raise RuntimeError(f"this system does not say {field}")
