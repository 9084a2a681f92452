"""``cm-auth check --login`` at Spring Security OAuth itself: what it finds, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cm_auth_middleware.testing import read_report

from ..cli.test_live_check import REPORTS, check, env, levels
from .browser import Browser
from .spring_server import Setting, Spring

__all__ = ["check", "env"]  # fixtures


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        (Setting(reuse=True, store="memory"), "spring-memory"),
        (Setting(reuse=True, store="jdbc"), "spring-jdbc"),
        (Setting(reuse=False, store="memory"), "spring-rotation"),
        (Setting(reuse=True, store="memory", phantom=True), "spring-phantom"),
    ],
    ids=lambda value: str(value),
)
def test_the_live_check_finds_what_spring_does(
    spring_of: Callable[[Setting], Spring], check: Any, setting: Setting, name: str
) -> None:
    server = spring_of(setting)
    server.reset()
    with Browser() as browser:
        run = check(server.url, "--yes", person=browser.enter)
    assert levels(run.report) == levels(read_report(REPORTS / f"{name}.json")), run.output
    assert server.tokens() == []
