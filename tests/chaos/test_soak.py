"""Plays the soak, whose length and size the environment says: `pytest -m soak`."""

from __future__ import annotations

from typing import Any

import pytest

from .soak import Size, play

pytestmark = [pytest.mark.soak, pytest.mark.timeout(0)]


def test_a_million_sessions_leave_memory_and_connections_flat(capsys: Any) -> None:
    with capsys.disabled():
        print()
        outcome = play(Size.from_env())
        print(outcome)
    assert not outcome.wrong
