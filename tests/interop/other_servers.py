"""Servers that were written elsewhere, each installed into a directory of its own and started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from .processes import free_port, running
from .spring_server import JAVA, build, needed

_HERE = Path(__file__).parent
_INSTALL = 240.0  # seconds: npm and pip over a slow line
_START = 120.0  # seconds: Spring on a machine that is busy with other tests

# Characters that RFC 6749 §2.3.1 wants percent-encoded in HTTP Basic.
CLIENT_ID, CLIENT_SECRET = "the:key/1", "100%+secret:"


@dataclass(frozen=True, slots=True)
class OtherServer:
    """A running server, steered by its ``/_control``.

    Attributes:
        name: of its provider in `PROVIDERS`.
        url: where it is.
        versions: of what runs, by name.
        has_grace_period: an old refresh token, used again soon, gives the same tokens again.
        ends_stolen_grants: the use of an old refresh token ends all that came after it.
    """

    name: str
    url: str
    versions: dict[str, str]
    has_grace_period: bool
    ends_stolen_grants: bool

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


@contextlib.contextmanager
def authorization_server(directory: Path) -> Iterator[OtherServer]:
    """Run Spring Authorization Server, as Eagle Eye's API v3."""
    name = "Spring Authorization Server"
    jar = build(_HERE / "authorization_server", name)
    with _started(name, [*JAVA, str(jar)], directory) as server:
        yield server


def _needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        needed(f"oidc-provider is not tried: {', '.join(missing)} not found")


def _install(*command: str, cwd: Path) -> None:
    words = " ".join(command)
    try:
        done = subprocess.run(
            command, cwd=cwd, timeout=_INSTALL, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        needed(f"{words} took longer than {_INSTALL:.0f} s")
    else:
        if done.returncode:
            needed(f"{words} failed: {(done.stderr or done.stdout).strip()[-500:]}")


@contextlib.contextmanager
def _started(name: str, command: Sequence[str], directory: Path) -> Iterator[OtherServer]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = directory / "log"
    key = ["--client-id", CLIENT_ID, "--client-secret", CLIENT_SECRET]

    def is_ready(client: httpx2.Client) -> bool:
        return client.post(f"{url}/_control", json={}).status_code == 200

    command = ["nice", "-n", "15", *command, "--port", str(port), *key]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with running(command, log, variables, is_ready, directory, _START):
        [line] = [line for line in log.read_text().splitlines() if line.startswith('{"versions"')]
        said = json.loads(line)
        ends_stolen_grants = said.get("ends_stolen_grants", True)
        yield OtherServer(name, url, said["versions"], said["has_grace_period"], ends_stolen_grants)
