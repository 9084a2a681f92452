"""Plays each scenario on each store: `pytest -m chaos`.

The moment of expiry is played CM_AUTH_CHAOS_REPEAT times (3 by default).
"""

from __future__ import annotations

import os

import pytest

from .conftest import PLAYED
from .scenarios import SCENARIOS, NotPlayedError

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("name", "store"),
    [(name, store) for name, scenario in SCENARIOS.items() for store in scenario.stores],
)
def test_scenario(name: str, store: str, pytestconfig: pytest.Config) -> None:
    scenario = SCENARIOS[name]
    rounds = scenario.rounds
    if name == "expiry":
        rounds = int(os.environ.get("CM_AUTH_CHAOS_REPEAT", rounds))
    try:
        counts = scenario.play(store, rounds)
    except NotPlayedError as reason:
        if os.environ.get("CM_AUTH_REQUIRE_CHAOS") == "1":
            pytest.fail(f"NOT PLAYED: {reason}")
        pytest.skip(f"NOT PLAYED: {reason}")
    pytestconfig.stash[PLAYED].append(counts)
    assert not counts.wrong, f"\n{counts}"
