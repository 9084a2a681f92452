"""Spring Security OAuth as CameraManager: built by Maven, run as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from .browser import ANNA, BOB, NO_AUTHORITIES
from .processes import free_port, running

_SOURCE = Path(__file__).parent / "spring"
_NAME = "Spring Security OAuth"
_OLDEST_JAVA = 17
_BUILD = 600.0  # seconds: Maven downloads some hundred files the first time
_LIFETIME = 43_199  # seconds, CameraManager's
# How a server is started: neither fast nor large, but soon.
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-jar")


def needed(reason: str) -> None:
    """Skip what needs a tool that is missing; fail with ``CM_AUTH_REQUIRE_INTEROP=1``."""
    if os.environ.get("CM_AUTH_REQUIRE_INTEROP"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def build(source: Path = _SOURCE, name: str = _NAME) -> Path:
    """Build a server, unless it was built from these very files, and return its jar.

    Args:
        source: its directory, after which the jar is called, too.
        name: of the server, for who has to install something.
    """
    missing = [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]
    if missing:
        needed(
            f"{name} is not tried: {', '.join(missing)} not found "
            f"(apt-get install maven openjdk-{_OLDEST_JAVA}-jdk-headless)"
        )
    told = subprocess.run(["javac", "-version"], capture_output=True, text=True, timeout=60)
    version = re.search(r"javac (\d+)", told.stdout + told.stderr)
    if version is None or int(version[1]) < _OLDEST_JAVA:
        needed(f"{name} is not tried: {told.stdout.strip()} is older than 17")
    jar = source / "target" / f"{source.name}.jar"
    sources = [source / "pom.xml", *source.glob("src/**/*.java")]
    newest = max(file.stat().st_mtime for file in sources)
    if not jar.exists() or jar.stat().st_mtime < newest:
        command = ["nice", "-n", "15", "mvn", "-q", "-B", "package"]
        built = subprocess.run(
            command, cwd=source, capture_output=True, text=True, timeout=_BUILD,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if built.returncode:
            said = "\n".join(built.stdout.splitlines()[:20])
            needed(f"{name} is not tried: Maven could not build it.\n{said}")
    return jar


@dataclass(frozen=True, slots=True)
class Setting:
    """How a server is set up: what differs among the servers that are tried.

    Attributes:
        reuse: a refresh keeps the refresh token.
        store: where tokens are kept, ``memory`` or ``jdbc``.
        phantom: a refresh answers with a refresh token that the server does not know.
    """

    reuse: bool
    store: str
    phantom: bool = False

    def __str__(self) -> str:
        words = ["reuses" if self.reuse else "rotates", self.store]
        return "-".join([*words, "phantom"] if self.phantom else words)


@dataclass(frozen=True, slots=True)
class Spring:
    """A running server, and what tests change about it."""

    url: str
    setting: Setting

    def state(self, email: str = ANNA) -> dict[str, Any]:
        """The calls so far, the living tokens of a user, the versions."""
        answer = httpx2.get(
            f"{self.url}/_control/state", params={"email": email}, timeout=30, verify=NO_AUTHORITIES
        )
        return dict(answer.raise_for_status().json())

    def tokens(self, email: str = ANNA) -> list[tuple[str, str]]:
        """The living access tokens of a user, each with its refresh token."""
        return [(access, refresh) for access, refresh in self.state(email)["tokens"]]

    def count(self, method: str, path: str, grant_type: str | None = None) -> int:
        """How many such calls came since the reset."""
        return sum(
            call["method"] == method
            and call["path"] == path
            and grant_type in (None, call["grant_type"])
            for call in self.state()["requests"]
        )

    @property
    def refreshes(self) -> int:
        """How many refreshes there were since the reset."""
        return self.count("POST", "/oauth/token", "refresh_token")

    def lifetimes(self, access: int = _LIFETIME, refresh: int = 0) -> None:
        """Set how many seconds the next tokens live; a refresh token without end by 0."""
        self._command("lifetimes", access=access, refresh=refresh)

    def revoke(self, email: str = ANNA) -> None:
        """End all tokens of a user."""
        self._command("revoke", email=email)

    def disable(self, email: str = ANNA, disabled: bool = True) -> None:
        """Refuse a user's logins and refreshes, or no longer do."""
        self._command("disable", email=email, disabled=disabled)

    def simulate(self, **settings: Any) -> None:
        """Do nothing: this is no simulator."""

    def meet(self) -> None:
        """Let the next two logins read the store at the same moment."""
        self._command("rendezvous")

    def reset(self) -> None:
        """End everything that an earlier test began."""
        self.lifetimes()
        for email in (ANNA, BOB):
            self.disable(email, False)
            self.revoke(email)
        self.forget()

    def forget(self) -> None:
        """Forget the calls so far."""
        self._command("forget")

    def _command(self, name: str, **parameters: Any) -> None:
        answer = httpx2.post(
            f"{self.url}/_control/{name}", params=parameters, timeout=30, verify=NO_AUTHORITIES
        )
        answer.raise_for_status()


@contextlib.contextmanager
def spring(setting: Setting, log: Path) -> Iterator[Spring]:
    """Run a server until the block ends."""
    jar, port = build(), free_port()
    command = [
        "nice", "-n", "15", *JAVA, str(jar), f"--server.port={port}", f"--store={setting.store}",
        f"--reuse={str(setting.reuse).lower()}", f"--phantom={str(setting.phantom).lower()}",
    ]  # fmt: skip
    server = Spring(f"http://127.0.0.1:{port}", setting)

    def is_ready(client: httpx2.Client) -> bool:
        return client.get(f"{server.url}/_control/state").status_code == 200

    with running(command, log, os.environ, is_ready, _SOURCE):
        yield server
