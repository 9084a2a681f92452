"""Prints what the scenarios came to, at the end of the run."""

from __future__ import annotations

from typing import Any

import pytest

from .counts import Counts

PLAYED = pytest.StashKey[list[Counts]]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[PLAYED] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[PLAYED]:
        terminalreporter.section("what the scenarios came to")
        for counts in config.stash[PLAYED]:
            terminalreporter.write_line(str(counts))
