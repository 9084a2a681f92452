"""Run what CI runs, for each Python that this machine has: ``nox``, or ``nox -s tests-3.12``."""

from __future__ import annotations

import os
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


@nox.session
def coverage(session: nox.Session) -> None:
    """The quick and the slow tests, and which branches they leave out."""
    session.install("-e", ".[test]")
    session.run(
        "coverage", "run", "-m", "pytest", "-q", "-m", "not matrix and not chaos and not interop"
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
def packaging(session: nox.Session) -> None:
    """The wheel in clean environments; takes minutes."""
    session.install("-e", ".[dev]")
    session.run("pytest", "-m", "slow", "tests/packaging")
