"""Servers that were written elsewhere, each installed into a directory of its own and started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.matrix.servers import running
from tests.servers import free_port

_HERE = Path(__file__).parent
_INSTALL = 240.0  # seconds: npm and pip over a slow line

# Characters that RFC 6749 §2.3.1 wants percent-encoded in HTTP Basic.
CLIENT_ID, CLIENT_SECRET = "the:key/1", "100%+secret:"


@dataclass(frozen=True, slots=True)
class OtherServer:
    """A running server, steered by its ``/_control``.

    Attributes:
        name: of its provider in `other_apps.PROVIDERS`.
        url: where it is.
        versions: one line that says what runs.
    """

    name: str
    url: str
    versions: str

    def control(self, **commands: Any) -> dict[str, Any]:
        """Steer it; return what it has counted since the reset."""
        answer = httpx2.post(f"{self.url}/_control", json=commands, timeout=30)
        return dict(answer.raise_for_status().json())

    def expire(self) -> None:
        """Let every access token expire now."""
        self.control(expire_access_tokens=True)

    @property
    def refreshes(self) -> list[int]:
        """The statuses that refreshes were answered with since the reset."""
        calls = self.control()["token_calls"]
        return [call["status"] for call in calls if call["grant_type"] == "refresh_token"]


@contextlib.contextmanager
def oidc_provider(directory: Path) -> Iterator[OtherServer]:
    """Run npm's oidc-provider."""
    _needs("node", "npm")
    # A script finds its modules next to itself, so it moves to where they are installed.
    for name in ("package.json", "server.js"):
        shutil.copy(_HERE / "oidc_provider" / name, directory)
    _install(
        *("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"),
        cwd=directory,
    )
    with _started("oidc-provider", ["node", "server.js"], directory) as server:
        yield server


@contextlib.contextmanager
def django_toolkit(directory: Path) -> Iterator[OtherServer]:
    """Run PyPI's django-oauth-toolkit, in a virtual environment of its own."""
    source = _HERE / "django_toolkit"
    _install(sys.executable, "-m", "venv", "venv", cwd=directory)
    python = str(directory / "venv" / "bin" / "python")
    requirements = str(source / "requirements.txt")
    _install(
        *(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", requirements),
        cwd=directory,
    )
    command = [python, str(source / "server.py"), "--directory", str(directory)]
    with _started("django-oauth-toolkit", command, directory) as server:
        yield server


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        _give_up(f"not installed: {', '.join(missing)}")


def _install(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=cwd, timeout=_INSTALL, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        _give_up(f"{' '.join(command)} took longer than {_INSTALL:.0f} s")
    if done.returncode:
        _give_up(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _give_up(reason: str) -> None:
    """Skip, and say so; with ``CM_AUTH_REQUIRE_INTEROP=1`` that is a failure."""
    if os.environ.get("CM_AUTH_REQUIRE_INTEROP") == "1":
        pytest.fail(f"NOT TESTED: {reason}")
    pytest.skip(f"NOT TESTED: {reason}")


@contextlib.contextmanager
def _started(name: str, command: Sequence[str], directory: Path) -> Iterator[OtherServer]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = directory / "log"
    key = ["--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET]

    def is_ready(client: httpx2.Client) -> bool:
        return client.post(f"{url}/_control", json={}).status_code == 200

    command = [*command, "--port", str(port), *key]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with running(command, log, variables, is_ready, directory):
        lines = log.read_text().splitlines()
        versions = next(line for line in lines if line.endswith(f" at {url}"))
        yield OtherServer(name, url, versions.removesuffix(f" at {url}"))
