"""Servers as processes of their own, started by their own command lines, ended by their ids."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.helpers.servers import free_port
from tests.helpers.world import SECRET_KEY

ROOT = Path(__file__).parents[2]
APPS = "tests.matrix.apps."
_START = 40.0  # seconds: two cores and a cold cache
_STOP = 20.0

_GUNICORN = ["gunicorn", "--no-control-socket", "-b", "127.0.0.1:{port}"]
ASGI = {
    "uvicorn": ["uvicorn", "--host", "127.0.0.1", "--port", "{port}", "{app}"],
    "hypercorn": ["hypercorn", "--bind", "127.0.0.1:{port}", "{app}"],
    "hypercorn-trio": ["hypercorn", "-k", "trio", "--bind", "127.0.0.1:{port}", "{app}"],
    "granian": ["granian", "--interface", "asgi", "--port", "{port}", "{app}"],
    "gunicorn-asgi": [*_GUNICORN, "-k", "asgi", "{app}"],
}
WSGI = {
    "gunicorn-sync": [*_GUNICORN, "-k", "sync", "{app}"],
    "gunicorn-gthread": [*_GUNICORN, "-k", "gthread", "--threads", "8", "{app}"],
    "gunicorn-gevent": [*_GUNICORN, "-k", "gevent", "{app}"],
    "waitress": ["waitress-serve", "--listen=127.0.0.1:{port}", "{app}"],
    "granian": ["granian", "--interface", "wsgi", "--port", "{port}", "{app}"],
}
# gunicorn's sync worker closes each connection after its answer: it serves one at a time.
CLOSES = frozenset({"gunicorn-sync"})
# No denial response extension: a WebSocket that is refused gets the server's own 403.
DENIES_ITSELF = frozenset({"gunicorn-asgi"})
_MODULES = {
    "hypercorn-trio": ("hypercorn", "trio"),
    "gunicorn-asgi": ("gunicorn",),
    "gunicorn-gevent": ("gunicorn", "gevent"),
    "gunicorn-gthread": ("gunicorn",),
    "gunicorn-sync": ("gunicorn",),
}


def needs(*modules: str, programs: Sequence[str] = ()) -> None:
    """Skip the cell, with the reason, where something is not installed.

    With ``CM_AUTH_REQUIRE_MATRIX=1`` that is a failure.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    missing += [name for name in programs if shutil.which(name) is None]
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)} (pip install -e '.[matrix]'; apt-get nginx)"
    if os.environ.get("CM_AUTH_REQUIRE_MATRIX"):
        pytest.fail(reason)
    pytest.skip(reason)


def needs_server(server: str) -> None:
    """The same for a server of the tables above."""
    needs(*_MODULES.get(server, (server,)))


@dataclass(frozen=True, slots=True)
class Simulated:
    """The simulated CameraManager in its own process, steered over HTTP."""

    url: str

    def control(self, **commands: Any) -> dict[str, Any]:
        """Steer it; see the simulator's ``/_control``."""
        answer = httpx2.post(f"{self.url}/_control", json=commands, timeout=30)
        return dict(answer.raise_for_status().json())

    def expire(self) -> None:
        """Let every access token expire now."""
        self.control(expire_access_tokens=True)

    def count(self, method: str, path: str, grant_type: str | None = None) -> int:
        """How many such calls came since the reset."""
        return sum(
            call["method"] == method
            and call["path"] == path
            and grant_type in (None, call["form"].get("grant_type"))
            for call in self.control()["requests"]
        )

    @property
    def refreshes(self) -> int:
        """How many refreshes there were since the reset."""
        return self.count("POST", "/oauth/token", "refresh_token")


@dataclass(frozen=True, slots=True)
class Site:
    """A running application."""

    origin: str
    mount: str
    server: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.origin.rpartition(":")[2])


@contextlib.contextmanager
def simulated(*flags: str) -> Iterator[Simulated]:
    """Run the simulator by its own command line."""
    command = [sys.executable, "-m", "cm_auth_middleware.testing", "--port", "0", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Simulated(process.stdout.readline().split()[-1])
    finally:
        process.terminate()  # a shell's background jobs ignore SIGINT
        process.communicate(timeout=_STOP)


def environment(simulator: Simulated, **variables: str) -> dict[str, str]:
    """The variables of an application's process."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
        "CM_AUTH_CLIENT_ID": "demo-key-id",
        "CM_AUTH_CLIENT_SECRET": "demo-key-secret",
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_BASE_URL": simulator.url,
        "CM_AUTH_EXEMPT": "/health",
        **variables,
    }


@contextlib.contextmanager
def serve(
    server: str,
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    *,
    app: str = "",
    mount: str = "",
    cwd: Path = ROOT,
    silent: bool = True,
) -> Iterator[Site]:
    """Run a server until the block ends; then it has to end at SIGTERM.

    Args:
        server: its name in the tables above.
        command: its command line, with ``{port}`` and ``{app}`` to fill in.
        log: where its output goes; shown when the block fails.
        variables: its environment, as `environment` makes it.
        app: ``module:variable``.
        mount: the path that the app is under.
        cwd: the directory to run it in.
        silent: no traceback may be in its output.
    """
    port = free_port()
    filled = [part.format(port=port, app=app) for part in command]
    site = Site(f"http://127.0.0.1:{port}", mount, server, log)

    def is_ready(client: httpx2.Client) -> bool:
        return client.get(f"{site.origin}{site.mount}/health").status_code == 200

    with running(filled, log, variables, is_ready, cwd):
        yield site
    if silent:
        text = log.read_text(errors="replace")
        assert "Traceback" not in text, text[-8000:]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    variables: Mapping[str, str],
    is_ready: Callable[[httpx2.Client], bool],
    cwd: Path,
    patience: float = _START,
) -> Iterator[None]:
    """Run a process; show its output when the block fails.

    Args:
        patience: seconds until it has to be ready.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(variables), stdout=output, stderr=output,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, is_ready, patience)
        yield
        process.terminate()
        process.wait(_STOP)
    except BaseException:
        sys.stdout.write(f"\n{' '.join(command)}\n{log.read_text(errors='replace')[-8000:]}\n")
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own group, workers included
        process.wait(_STOP)


def _wait(
    process: subprocess.Popen[bytes], is_ready: Callable[[httpx2.Client], bool], patience: float
) -> None:
    deadline = time.monotonic() + patience
    with httpx2.Client(timeout=10) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, f"it ended by itself, with {process.returncode}"
            with contextlib.suppress(httpx2.TransportError):
                if is_ready(client):
                    return
            time.sleep(0.1)
    raise AssertionError(f"no answer within {patience} s")
