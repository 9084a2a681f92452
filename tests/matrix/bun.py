"""Bun, the JavaScript runtime that Reflex builds its front end with, from npm.

Reflex downloads it by a script from its own repository, which not every machine can reach. npm has
the program as a package for each platform.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

_INSTALL = 240.0  # seconds: 40 MB over a slow line
_CPU = {"x86_64": "x64", "AMD64": "x64", "arm64": "aarch64"}


class NotInstalledError(Exception):
    """Bun cannot be had here; says why."""


def variables(folder: Path, path: str) -> dict[str, str]:
    """Install Bun into a folder; return what lets Reflex find it and npm's registry.

    Args:
        folder: an empty one.
        path: the ``PATH`` that Bun goes before.

    Raises:
        NotInstalledError: npm, or the package, is not there.
    """
    # What Reflex itself would download.
    version = _asked(
        sys.executable, "-W", "ignore", "-c",
        "from reflex.constants import Bun; print(Bun.VERSION)",
    )  # fmt: skip
    name = _package()
    (folder / "package.json").write_text(
        json.dumps({"private": True, "dependencies": {name: f"^{version}"}})
    )
    _asked(
        *("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"),
        cwd=folder,
    )
    program = folder / "node_modules" / name / "bin" / "bun"
    if not program.is_file():
        raise NotInstalledError(f"{name} has no bin/bun")
    program.chmod(0o755)  # its install script would have done that
    return {
        "PATH": os.pathsep.join([str(program.parent), path]),
        # Reflex would look for the faster one of two registries; Bun reads the same variable.
        "NPM_CONFIG_REGISTRY": _asked("npm", "config", "get", "registry", cwd=folder),
        "REFLEX_DIR": str(folder / "reflex"),  # no Bun of an earlier run
        "REFLEX_USE_SYSTEM_BUN": "true",
    }


def _package() -> str:
    """Return the name of the package for this machine."""
    machine = platform.machine()
    name = f"@oven/bun-{platform.system().lower()}-{_CPU.get(machine, machine)}"
    cpus = Path("/proc/cpuinfo")
    if name == "@oven/bun-linux-x64" and cpus.exists() and "avx2" not in cpus.read_text():
        return f"{name}-baseline"
    return name


def _asked(*command: str, cwd: Path | None = None) -> str:
    """Run a command; return the last word that it printed."""
    words = " ".join(command)
    try:
        done = subprocess.run(
            command, cwd=cwd, timeout=_INSTALL, capture_output=True, text=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise NotInstalledError(f"{command[0]} not found") from None
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{words} took longer than {_INSTALL:.0f} s") from None
    if done.returncode:
        raise NotInstalledError(f"{words} failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return (done.stdout.split() or [""])[-1]
