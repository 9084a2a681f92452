"""Plays each scenario with each kind of fleet that it is for: `pytest -m fleets`."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .conftest import PLAYED
from .fleets import FLEET_SCENARIOS, Stages, by_kind
from .scenarios import NotPlayedError

pytestmark = [pytest.mark.fleets, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    with Stages() as made:
        yield made


@pytest.mark.parametrize(("kind", "name"), by_kind())
def test_fleet(kind: str, name: str, stages: Stages, pytestconfig: pytest.Config) -> None:
    try:
        counts = FLEET_SCENARIOS[name].play(name, stages.get(kind))
    except NotPlayedError as reason:
        if os.environ.get("CM_AUTH_REQUIRE_FLEETS") == "1":
            pytest.fail(f"NOT PLAYED: {reason}")
        pytest.skip(f"NOT PLAYED: {reason}")
    except BaseException:
        stages.close()  # nobody knows what is left of it
        raise
    pytestconfig.stash[PLAYED].append(counts)
    assert not counts.wrong, f"\n{counts}"
