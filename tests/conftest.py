"""Fixtures that every test may ask for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.world import MakeWorld, World

_MARKS = re.compile(r"^pytestmark = (.+)$", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files aside of which no test would run: a fifth of a quick run would go into them.

    Who names files or folders is told how many of their tests were deselected.
    """
    is_named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if is_named or collection_path.suffix != ".py":
        return None
    marks = _MARKS.search(collection_path.read_text())
    names = re.findall(r"pytest\.mark\.(\w+)", marks[1]) if marks else []
    return True if any(f"not {name}" in config.option.markexpr for name in names) else None


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
