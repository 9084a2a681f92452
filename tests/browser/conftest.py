"""A real Chromium for the tests of this folder, and servers for it on this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from cm_auth_middleware.testing import Simulator, SimulatorServer, settings_for

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A Chromium for one module; where there is none the tests are skipped, or fail in CI.

    Not for all: the event loop of its driver would be in the way of async tests.
    """
    if CHROMIUM is None and not os.environ.get("CM_AUTH_REQUIRE_BROWSER"):
        pytest.skip("NO BROWSER: install Chromium (apt-get install chromium) or set CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def cm(provider: str) -> Iterator[SimulatorServer]:
    with SimulatorServer(Simulator(settings_for(provider))) as server:
        yield server
