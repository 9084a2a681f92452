"""Installs one release of a server, beside the one of the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def install(name: str, release: str, target: Path, timeout: float) -> Path:
    """Install a release into a folder, and nothing else; return the folder.

    If that fails, the test is skipped, or fails with CM_AUTH_REQUIRE_MATRIX=1.

    Args:
        timeout: seconds that it may take.
    """
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    done = subprocess.run(
        [*command, f"{name}=={release}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        reason = f"{name} {release} cannot be installed: {done.stderr.strip()[-300:]}"
        if os.environ.get("CM_AUTH_REQUIRE_MATRIX"):
            pytest.fail(reason)
        pytest.skip(reason)
    return target
