"""Fixtures that every test may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.helpers.world import MakeWorld, World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asgi", "wsgi"])
def side(request: pytest.FixtureRequest) -> str:
    """Both sides; a test that asks for a world runs once behind each."""
    return str(request.param)


@pytest.fixture
def provider() -> str:
    """The server; `both_providers` of tests/helpers/world.py also runs a test with the other."""
    return "cameramanager"


@pytest.fixture
async def make_world(side: str, provider: str) -> AsyncIterator[MakeWorld]:
    """Make worlds with options of the test's own."""
    worlds: list[World] = []

    def make(**options: Any) -> World:
        worlds.append(World(**{"side": side, "provider": provider, **options}))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.close()


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
