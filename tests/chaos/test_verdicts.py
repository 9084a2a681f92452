"""What the plays make of what they see: a fault, lateness, or nothing wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from . import fleets
from .counts import Counts
from .crowd import Response
from .fleets import FleetScenario, LateError, Stages

# -- fleets --------------------------------------------------------------------------------


class FakeStage:
    """A stage on which nothing can be harmed."""

    kind = "cluster"
    is_closed = False

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def keep_logs(self) -> str:
        return "nowhere"

    @property
    def site(self) -> Any:
        return type("Site", (), {"complaints": list})


def recover_late(counts: Counts) -> None:
    counts.check_time(False, "recovered 2.0 s after the store, not 1 s")


def stay_away(counts: Counts) -> None:
    raise LateError("the fleet did not come back")


def stand_still(counts: Counts) -> None:
    raise RedisTimeoutError


def lose(counts: Counts) -> None:
    recover_late(counts)
    counts.survived(29, 30)


def refresh_twice(counts: Counts) -> None:
    recover_late(counts)
    counts.called(31, 30, 30)


def answer_500(counts: Counts) -> None:
    counts.saw([Response(500, {}, b"", 0.1)], 200, 503)
    stay_away(counts)


def be_well(counts: Counts) -> None:
    counts.survived(30, 30)


@pytest.mark.parametrize(
    ("part", "plays"),
    [
        (be_well, 1),
        *((late, 2) for late in (recover_late, stay_away, stand_still)),
        *((fault, 1) for fault in (lose, refresh_twice, answer_500)),
    ],
)
def test_only_a_play_that_was_merely_late_is_played_once_more(
    part: Callable[[Counts], None], plays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[FakeStage] = []

    def make(_: str) -> FakeStage:
        stages.append(FakeStage())
        return stages[-1]

    monkeypatch.setattr(fleets, "Stage", make)
    scenario = FleetScenario(lambda _, counts: part(counts))
    monkeypatch.setitem(fleets.FLEET_SCENARIOS, "it", scenario)
    with Stages() as made:
        found = list(made.play("cluster", "it"))
    assert len(found) == plays
    assert all(counts.wrong for counts in found) == (part is not be_well)
    assert len(stages) == plays, "what was late is torn down"
    assert all(stage.is_closed for stage in stages)


def test_a_second_play_that_is_good_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = iter([recover_late, be_well, recover_late])
    monkeypatch.setattr(fleets, "Stage", lambda _: FakeStage())
    scenario = FleetScenario(lambda _, counts: next(parts)(counts))
    monkeypatch.setitem(fleets.FLEET_SCENARIOS, "it", scenario)
    with Stages() as made:
        first, second = made.play("cluster", "it")
    assert first.is_merely_late
    assert "LATE round 1: recovered" in str(first)
    assert not second.wrong
