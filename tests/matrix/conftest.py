"""The matrix: one simulator for all of it, and a line for each cell at the end of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import browser  # noqa: F401 - a fixture

from .server_processes import Simulated, simulated

_results: dict[str, tuple[str, str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "matrix" not in report.keywords or (report.when != "call" and report.passed):
        return
    reason = ""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2]
    elif report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message if crash else str(report.longrepr)
    first = reason.strip().partition("\n")[0]
    result = f"{report.outcome} {first}" if first else f"{report.outcome} {report.duration:.1f} s"
    _results[report.nodeid] = (_cell(report.nodeid), result)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _results:
        return
    terminalreporter.section("matrix")
    width = max(len(cell) for cell, _ in _results.values()) + 2
    for cell, result in _results.values():
        terminalreporter.write_line(f"{cell:<{width}}{result}")


def _cell(nodeid: str) -> str:
    """A test's name, and its parameters, as words."""
    name, _, parameters = nodeid.rpartition("::")[2].partition("[")
    words = name.removeprefix("test_").replace("_", " ")
    return f"{words}: {parameters.rstrip(']')}" if parameters else words


@pytest.fixture(scope="session")
def _simulator() -> Iterator[Simulated]:
    with simulated() as simulator:
        yield simulator


@pytest.fixture
def simulator(_simulator: Simulated) -> Simulated:
    """The simulated CameraManager, as new."""
    _simulator.control(reset=True)
    return _simulator
