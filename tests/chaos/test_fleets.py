"""Plays each scenario with each kind of fleet that it is for: `pytest -m fleets`.

A play that was merely late is followed by a second one; both are printed.

What cannot be played is skipped, or fails where CM_AUTH_REQUIRE_FLEETS=1; for fleets with a node in
a network namespace, where CM_AUTH_REQUIRE_NAMESPACES=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from .conftest import PLAYED
from .fleets import APART, Stages, by_kind
from .scenarios import NotPlayedError

pytestmark = [pytest.mark.fleets, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    with Stages() as made:
        yield made


@pytest.mark.parametrize(("kind", "name"), by_kind())
def test_fleet(kind: str, name: str, stages: Stages, pytestconfig: pytest.Config) -> None:
    try:
        for counts in stages.play(kind, name):
            pytestconfig.stash[PLAYED].append(counts)
    except NotPlayedError as reason:
        needed = "NAMESPACES" if kind in APART else "FLEETS"
        if os.environ.get(f"CM_AUTH_REQUIRE_{needed}") == "1":
            pytest.fail(f"NOT PLAYED: {reason}")
        pytest.skip(f"NOT PLAYED: {reason}")
    assert not counts.wrong, f"\n{counts}"
