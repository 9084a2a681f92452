"""Servers that are started once for all tests that need them, and what the run came to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .other_servers import OtherServer, authorization_server, django_toolkit, oidc_provider
from .report import Compared, lines
from .simulator_server import Simulated
from .simulator_server import simulator as run_simulator
from .sites import Site, site
from .spring_server import Setting, Spring, spring

_HERE = str(Path(__file__).parent)
_versions: dict[str, str] = {}
_compared: list[Compared] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(_HERE):
            item.add_marker("interop")
            # The first test that needs Spring waits for Maven.
            item.add_marker(pytest.mark.timeout(900))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _versions:
        return
    terminalreporter.section("interop")
    for name, version in _versions.items():
        terminalreporter.write_line(f"{name} {version}")
    if _compared:
        terminalreporter.section("the simulator beside Spring")
        for line in lines(_compared):
            terminalreporter.write_line(line)


@pytest.fixture
def compared() -> Callable[[Compared], None]:
    """Keep what an exchange came to, for the table at the end."""
    return _compared.append


@pytest.fixture(scope="session")
def simulator() -> Iterator[Simulated]:
    """The package's simulator in a process of its own."""
    with run_simulator() as running:
        yield running


@pytest.fixture(scope="session")
def eagle_eye_simulator() -> Iterator[Simulated]:
    """The same, playing Eagle Eye's API v3."""
    with run_simulator("--provider", "eagleeye") as running:
        yield running


@pytest.fixture(scope="session")
def spring_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Setting], Spring]]:
    """Start a server of a setting, or return the one that runs."""
    servers: dict[Setting, Spring] = {}
    with contextlib.ExitStack() as stack:

        def start(setting: Setting) -> Spring:
            if setting not in servers:
                log = tmp_path_factory.mktemp(str(setting)) / "spring.log"
                servers[setting] = stack.enter_context(spring(setting, log))
                _versions.update(servers[setting].state()["versions"])
            return servers[setting]

        yield start


@pytest.fixture(scope="session")
def site_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], Site]]:
    """Start an application of a side at a server, or return the one that runs."""
    sites: dict[tuple[str, str], Site] = {}
    with contextlib.ExitStack() as stack:

        def start(side: str, base_url: str) -> Site:
            if (side, base_url) not in sites:
                folder = tmp_path_factory.mktemp(side)
                sites[side, base_url] = stack.enter_context(site(side, base_url, folder))
            return sites[side, base_url]

        yield start


@pytest.fixture(scope="session", name="oidc_provider")
def _oidc_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    """npm's oidc-provider, installed and running."""
    with oidc_provider(tmp_path_factory.mktemp("oidc_provider")) as server:
        _versions.update(server.versions)
        yield server


@pytest.fixture(scope="session", name="django_toolkit")
def _django_toolkit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    """PyPI's django-oauth-toolkit, installed and running."""
    with django_toolkit(tmp_path_factory.mktemp("django_toolkit")) as server:
        _versions.update(server.versions)
        yield server


@pytest.fixture(scope="session", name="authorization_server")
def _authorization_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherServer]:
    """Spring Authorization Server, built and running."""
    with authorization_server(tmp_path_factory.mktemp("authorization_server")) as server:
        _versions.update(server.versions)
        yield server
