"""Run what CI runs, for each Python that this machine has: ``nox``, or ``nox -s tests-3.12``."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13"]

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False  # a machine need not have all of them
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "docs"]

# pyenv's interpreters are on no path unless somebody chose them.
os.environ["PATH"] = os.pathsep.join(
    [os.environ["PATH"], *map(str, sorted(Path.home().glob(".pyenv/versions/*/bin")))]
)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests; with arguments, pytest's own: nox -s tests-3.12 -- -m slow."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """Some of the tests, with the lowest version of each dependency that pyproject.toml allows."""
    folder = Path(session.create_tmp())
    (folder / "lowest.txt").write_text("\n".join(_floors()))
    session.install("uv")  # pip takes minutes for it
    install = ["uv", "pip", "install", "-q", "-e", ".[fastapi,otel,test]"]
    httpx = "httpx"  # of Starlette's TestClient, which newer ones have by httpx2
    session.run(*install, httpx, "-c", str(folder / "lowest.txt"))
    session.run("pytest", *session.posargs)


def _floors() -> list[str]:
    """Return ``name==version`` for the lowest version of each dependency of users."""
    project = nox.project.load_toml("pyproject.toml")["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"]]
    for extra in ("redis", "postgres", "fastapi", "flask", "otel", "testing", "cli", "demo"):
        needed += extras[extra]
    return sorted({requirement.replace(">=", "==") for requirement in needed})


@nox.session
def coverage(session: nox.Session) -> None:
    """The quick and the slow tests, and which branches they leave out."""
    session.install("-e", ".[test]")
    session.run(
        "coverage",
        "run",
        "-m",
        "pytest",
        "-q",
        "-m",
        "not matrix and not chaos and not fleets and not interop and not soak",
    )
    session.run("coverage", "report", "--skip-covered")


@nox.session
def lint(session: nox.Session) -> None:
    """Style."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """The package under strict mypy."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, into site/; every warning is an error."""
    session.install("-e", ".[docs]")
    session.run("mkdocs", "build", "--strict")


@nox.session
def versions(session: nox.Session) -> None:
    """The documentation of this version beside those of others, on the branch gh-pages."""
    session.install("-e", ".[docs]")
    text = Path("cm_auth_middleware/__init__.py").read_text()
    version = re.search(r'^__version__ = "(\d+\.\d+)', text, re.M)
    assert version is not None  # noqa: S101
    session.run("mike", "deploy", "--update-aliases", version[1], "latest")
    session.run("mike", "set-default", "latest")


@nox.session
def pictures(session: nox.Session) -> None:
    """Pictures of everything, into build/pictures, and those of the documentation into docs/."""
    session.install("-e", ".[dev,matrix,dashboards]")
    folder = str(Path("build/pictures").absolute())
    shutil.rmtree(folder, ignore_errors=True)
    wanted = {"CM_AUTH_PICTURES": folder}
    session.run("pytest", "-q", "-m", "browser", "tests/browser/test_pictures.py", env=wanted)
    dashboards = ["-m", "matrix", "-p", "no:dash", "tests/matrix/test_dashboards.py"]
    session.run("pytest", "-q", *dashboards, env=wanted)
    session.run("python", "-m", "tests.helpers.pictures", folder)


@nox.session
def packaging(session: nox.Session) -> None:
    """The wheel in clean environments; takes minutes."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "slow", "tests/packaging")


@nox.session
def release(session: nox.Session) -> None:
    """The files of a release, into dist/: distributions that are checked, and a list of parts."""
    if not os.environ.get("REPOSITORY_URL"):
        session.error("set REPOSITORY_URL=https://…: by it an index finds the README's pictures")
    session.install("build", "twine", "readme_renderer[md]", "cyclonedx-bom")
    time = session.run("git", "log", "-1", "--format=%ct", external=True, silent=True)
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", env={"SOURCE_DATE_EPOCH": str(time).strip()})
    files = sorted(map(str, Path("dist").iterdir()))
    session.run("twine", "check", "--strict", *files)
    wheel = next(name for name in files if name.endswith(".whl"))
    session.run("python", "-m", "tests.packaging.sbom", wheel, "dist/sbom.cdx.json")
