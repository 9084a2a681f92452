"""Fixtures that every test may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from .support import World

MakeWorld = Callable[..., World]

# Long by their number, or by the servers and browsers that they start; CI runs them.
LONG = (
    "browser/test_pages.py",
    "browser/test_session_warning.py",
    "packaging/",
    "security/test_exemptions.py",
    "security/test_races.py",
    "security/test_secrets.py",
    "security/test_state_changes.py",
    "security/test_targets.py",
    "security/test_token_endpoint.py",
    "security/test_tokens.py",
    "test_at_rest.py",
    "test_failover.py",
    "test_plugin.py",
    "test_proxy_streams.py",
    "test_stores_redis.py",
    "test_telemetry.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(LONG):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asgi", "wsgi"])
def shell(request: pytest.FixtureRequest) -> str:
    """Both shells; a test that asks for a world runs once behind each."""
    return str(request.param)


@pytest.fixture
async def make_world(shell: str) -> AsyncIterator[MakeWorld]:
    """Make worlds with options of the test's own."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**{"shell": shell, **options}))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
