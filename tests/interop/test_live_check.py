"""``cm-auth check --login`` at Spring's two servers themselves: what it finds, what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cm_auth_middleware.testing import read_report

from ..cli.test_live_check import REPORTS, check, env, levels
from ..helpers.servers import free_port
from .browser import Browser
from .other_servers import OtherServer
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


def test_the_live_check_finds_no_harm_at_spring_authorization_server(
    authorization_server: OtherServer, check: Any
) -> None:
    authorization_server.control(reset=True)
    # The redirect URI that is registered, where localhost is another.
    redirect_uri = f"http://127.0.0.1:{free_port()}/auth/callback"
    with Browser() as browser:
        run = check(
            authorization_server.url,
            "--yes",
            person=browser.enter,
            provider="eagleeye",
            redirect_uri=redirect_uri,
        )
    assert not run.lines("✗") + run.lines("–"), run.output
    report = run.report
    assert (report["outcome"], report["logins"], report["not_revoked"]) == ("complete", 2, 0)
    assert (report["refresh_gives"], report["replaced_refresh"]) == ("rotated", "refused")
    assert (report["pkce_verified"], report["code_survives_wrong_verifier"]) == (True, True)
    assert authorization_server.control()["living_refresh_tokens"] == 0
