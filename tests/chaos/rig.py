"""A site in several processes, its store and its CameraManager, each to be harmed on its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2

from tests.helpers.browser import Visitor
from tests.helpers.postgres import PostgresServer, postgres_server
from tests.helpers.servers import RedisServer, free_port, redis_server
from tests.helpers.world import SECRET_KEY

from .crowd import Ask, Crowd, Response
from .site import SharedClock

ROOT = Path(__file__).parents[2]
LIFETIME = 43_199  # seconds that an access token lives, unless a test says otherwise
STORES = ("sqlite", "redis")  # of every scenario
EVERY_STORE = (*STORES, "postgres")  # of those that play with what stores do differently
_START = 40.0


class Process:
    """A process of ours, with a log."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=file, env={**os.environ, **environment}
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """End it as an out-of-memory killer would."""
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it as a deployment does."""
        if self.is_running():
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()


class CameraManager:
    """The simulator in a process of its own, on the shared clock, steered over HTTP."""

    def __init__(
        self, directory: Path, settings: dict[str, Any], module: str, provider: str
    ) -> None:
        port = free_port()
        command = [sys.executable, "-m", f"tests.chaos.{module}", str(port)]
        command += [str(directory / "clock"), *([] if provider == "cameramanager" else [provider])]
        self.url = f"http://127.0.0.1:{port}"
        self.process = Process(command, directory / "camera_manager.log")
        self._http = httpx2.Client(base_url=self.url, timeout=30)
        _until(self._answers, f"no simulator: {self.process.log}")
        self.control(**settings)

    def control(self, **command: Any) -> dict[str, Any]:
        """Change it, and say what it has seen."""
        answer = self._http.post("/_control?since=1000000000", json=command)
        return dict(answer.raise_for_status().json())

    def mark(self) -> int:
        """The number of requests so far."""
        return int(self.control()["next"])

    def calls(self, since: int, path: str, method: str) -> list[dict[str, Any]]:
        seen = self._http.get(f"/_control?since={since}").json()["requests"]
        return [
            call for call in seen if re.fullmatch(path, call["path"]) and call["method"] == method
        ]

    def refreshes(self, since: int) -> list[dict[str, Any]]:
        """The refresh calls since a mark."""
        calls = self.calls(since, "/oauth2?/token", "POST")
        return [call for call in calls if call["form"].get("grant_type") == "refresh_token"]

    def wait_for_refresh(self, since: int, *, answered: bool = False) -> None:
        """Return when a refresh call has reached CameraManager, or when it was answered."""
        _until(
            lambda: any(
                not answered or call["status"] is not None for call in self.refreshes(since)
            ),
            "no refresh was made",
        )

    def living_grants(self) -> int:
        """How many refresh tokens can still be used."""
        return int(self.control()["living"]["refresh_tokens"])

    def close(self) -> None:
        self._http.close()
        self.process.stop()

    def _answers(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return self._http.get("/_control?since=0").status_code == 200
        return False


class Rig:
    """Everything that one scenario needs.

    Args:
        redis: the store; without it and `postgres` it is SQLite.
        postgres: the store.
        file: of SQLite, if it is not to lie in `directory`.
        side: ``asgi`` (a uvicorn for each worker), ``uvicorn --workers`` (one port for all),
            ``wsgi`` (one gunicorn with threads for all), or ``both`` (as ``asgi``, but the last
            worker is a gunicorn with threads).
        workers: how many processes.
        threads: of each gunicorn.
        skews: seconds that the workers' clocks are ahead; 0 for those not given.
        settings: of the simulator.
        camera_manager: the module of this folder that plays CameraManager.
        provider: the server that it plays in its place.
        lease_margin: seconds that a lease lasts longer than a token call may; None for as it is.
        options: of the middleware.
    """

    def __init__(
        self,
        directory: Path,
        *,
        redis: RedisServer | None = None,
        postgres: PostgresServer | None = None,
        file: Path | None = None,
        side: str = "asgi",
        workers: int = 4,
        threads: int = 16,
        skews: Sequence[float] = (),
        settings: dict[str, Any] | None = None,
        camera_manager: str = "camera_manager",
        provider: str = "cameramanager",
        lease_margin: float | None = None,
        **options: Any,
    ) -> None:
        self.directory = directory
        self.redis = redis
        self.server = redis or postgres  # of the store, if it has one
        self.side = side
        self.clock = SharedClock(directory / "clock")
        self.crowd, self.other_crowd = Crowd(), Crowd()
        self._lease_margin = lease_margin
        settings = {"access_token_lifetime": LIFETIME, **(settings or {})}
        self.cm = CameraManager(directory, settings, camera_manager, provider)
        self.file = file or directory / "sessions.db"
        self.options = {
            "client_id": "demo-key-id",
            "client_secret": "demo-key-secret",
            "secret_key": SECRET_KEY,
            "provider": provider,
            "base_url": self.cm.url,
            "store": self.server.url if self.server else f"sqlite:///{self.file}",
            "absolute_timeout": 10 * 365 * 86_400,
            **options,
        }
        separate = workers if side in ("asgi", "both") else 1
        self.ports = [free_port() for _ in range(separate)]
        self.skews = [*skews, *([0.0] * (separate - len(skews)))]
        self._workers, self._threads = workers, threads
        self.workers = [self._start(n) for n in range(separate)]
        for n in range(separate):
            self.wait_for(n)

    # -- processes -------------------------------------------------------------------------

    def restart(self, number: int) -> None:
        """Start a worker again after it was ended."""
        self.workers[number] = self._start(number)
        self.wait_for(number)

    def wait_for(self, number: int) -> None:
        worker = self.workers[number]
        _until(
            lambda: self.crowd.one(self.ports[number], "/health").status == 200,
            f"worker {number} does not start: {worker.log.read_text()[-3000:]}",
        )

    def number(self, pid: int) -> int:
        """The worker of a process id."""
        return [worker.pid for worker in self.workers].index(pid)

    def _start(self, number: int) -> Process:
        chaos: dict[str, Any] = {"clock": str(self.directory / "clock"), "skew": self.skews[number]}
        chaos |= {"options": self.options, "lease_margin": self._lease_margin}
        environment = {"CHAOS": json.dumps(chaos)}
        port, log = str(self.ports[number]), self.directory / f"worker{number}.log"
        quiet = ("--log-level", "warning")
        command = [sys.executable, "-m", "uvicorn", "--factory", "tests.chaos.site:asgi"]
        command += ["--port", port, "--no-access-log", *quiet, "--timeout-keep-alive", "600"]
        if self.side == "uvicorn --workers":
            command += ["--workers", str(self._workers)]
        elif self.side == "wsgi" or (self.side == "both" and number == len(self.ports) - 1):
            processes = self._workers if self.side == "wsgi" else 1
            command = [sys.executable, "-m", "gunicorn", "--no-control-socket", *quiet]
            command += ["-b", f"127.0.0.1:{port}", "-w", str(processes), "-k", "gthread"]
            command += ["--threads", str(self._threads), "--keep-alive", "600"]
            command.append("tests.chaos.site:wsgi()")
        return Process(command, log, **environment)

    def close(self) -> None:
        self.crowd.close()
        self.other_crowd.close()
        for worker in self.workers:
            worker.stop()
        self.cm.close()

    # -- browsers --------------------------------------------------------------------------

    def login(self, number: int = 0, email: str = "anna@example.com") -> str:
        """Walk through CameraManager's forms; return the value of the session cookie."""
        with Visitor(f"http://127.0.0.1:{self.ports[number]}") as visitor:
            page = visitor.enter("/", email)
            assert page.status_code == 200, page.text
            return visitor.session_cookie

    def asks(self, cookies: Sequence[str], count: int, path: str = "/cameras") -> list[Ask]:
        """So many requests, of all browsers at all workers in turn."""
        # Browser and worker change at different paces, so that every pair occurs.
        ports, sessions = self.ports, cookies
        return [
            Ask(ports[n % len(ports)], path, sessions[(n // len(ports)) % len(sessions)])
            for n in range(count)
        ]

    def expire(self, lifetime: float = LIFETIME) -> None:
        """Let the access tokens' time pass, for CameraManager and every worker at once."""
        self.clock.move(lifetime + 1)

    def alive(self, cookies: Sequence[str]) -> int:
        """How many of these sessions every worker still serves."""
        answers = [
            self.crowd.ask([Ask(port, "/cameras", cookie) for port in self.ports])
            for cookie in cookies
        ]
        return sum(all(answer.status == 200 for answer in found) for found in answers)

    def tracebacks(self) -> int:
        """How many errors nobody had foreseen."""
        # uvloop reports TLS connections that break, in a handshake or while it reads; no request
        # fails of that.
        unforeseen = re.compile(r'Traceback [^\n]*\n(?!  File "uvloop/sslproto)')
        return sum(len(unforeseen.findall(worker.log.read_text())) for worker in self.workers)

    def complaints(self, most: int = 30) -> list[str]:
        """The kinds of lines in the processes' logs, rarest first, and how many of each."""
        lines = [
            f"{process.log.stem}: {re.sub(r'(?<=session=)[0-9a-f]+|[0-9]+', '#', line)[:200]}"
            for process in [*self.workers, self.cm.process]
            for line in process.log.read_text().splitlines()
            if not line.startswith(" ")  # the frames of a traceback
        ]
        return [f"{n} x {line}" for line, n in reversed(Counter(lines).most_common())][:most]


@contextlib.contextmanager
def rig(store: str, **options: Any) -> Iterator[Rig]:
    """Run a rig for as long as the `with` lasts."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos")))
        redis = postgres = None
        if store == "postgres":
            postgres = stack.enter_context(postgres_server())
        if store == "redis":
            # What was answered is on the disk: the scenarios kill the server.
            durable = ("--appendonly", "yes", "--appendfsync", "always")
            redis = stack.enter_context(redis_server(*durable))
        made = Rig(directory, redis=redis, postgres=postgres, **options)
        stack.callback(made.close)
        yield made


def statuses(answers: Sequence[Response]) -> dict[int, int]:
    """How often each status occurred."""
    found = sorted({answer.status for answer in answers})
    return {status: sum(a.status == status for a in answers) for status in found}


def _until(happens: Any, complaint: str) -> None:
    deadline = time.monotonic() + _START
    while not happens():
        if time.monotonic() > deadline:
            raise AssertionError(complaint)
        time.sleep(0.02)
