"""Lists the parts of a release: ``python -m tests.packaging.sbom WHEEL FILE``.

The list is a software bill of materials in the format of CycloneDX: what pip installs for the wheel
without extras, each with its version and license. The package cyclonedx-bom makes it; the version
and the hash of the release are added here, since ``pyproject.toml`` has neither.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write(wheel: Path, file: Path) -> None:
    """List what a wheel needs in a clean environment.

    Args:
        wheel: of the release.
        file: where the list goes.
    """
    with tempfile.TemporaryDirectory() as folder:
        _run(sys.executable, "-m", "venv", folder)
        python = str(Path(folder) / "bin" / "python")
        pip = (python, "-m", "pip")
        _run(*pip, "install", "-q", "--disable-pip-version-check", str(wheel))
        _run(*pip, "uninstall", "-q", "-y", "pip", "setuptools")
        _run(
            *(sys.executable, "-m", "cyclonedx_py", "environment", python),
            *("--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library"),
            *("--output-reproducible", "--output-file", str(file)),
        )
    _name_the_release(file, wheel)


def _name_the_release(file: Path, wheel: Path) -> None:
    parts = json.loads(file.read_text())
    version = wheel.name.split("-")[1]
    parts["metadata"]["component"] |= {
        "version": version,
        "purl": f"pkg:pypi/cm-auth-middleware@{version}",
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}],
    }
    file.write_text(json.dumps(parts, indent=2, sort_keys=True) + "\n")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
