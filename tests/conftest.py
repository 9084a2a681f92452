"""Fixtures that every test may ask for."""

from __future__ import annotations

import pytest

from .support import World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def world() -> World:
    return World()
