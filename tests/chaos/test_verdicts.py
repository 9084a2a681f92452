"""What the plays make of what they see: a fault, lateness, or nothing wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from . import fleets
from .counts import Counts
from .crowd import Response
from .fleets import FleetScenario, LateError, Stages
from .soak import Outcome, Sample, Size

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


# -- soaks ---------------------------------------------------------------------------------

SAMPLE = Sample(memory=600, connections=160, redis_memory=870, redis_clients=130)
NOBODY_TELLS = replace(SAMPLE, redis_memory=0, redis_clients=0)


def good() -> Outcome:
    outcome = Outcome(Size(1_000_000, 20, 8, 60), refreshes=60, logouts=6, failovers=2)
    outcome.samples = [SAMPLE, SAMPLE, NOBODY_TELLS] * 3
    outcome.answers = Counter({200: 950, 303: 6, 401: 1, 503: 43})
    outcome.out_answers = Counter({401: 7, 503: 1})
    return outcome


def test_a_good_soak_has_nothing_wrong() -> None:
    assert good().wrong == []


def grown(**more: Any) -> Callable[[Outcome], None]:
    def grow(outcome: Outcome) -> None:
        outcome.samples[-3:] = [NOBODY_TELLS, *[replace(SAMPLE, **more)] * 2]

    return grow


def counted(**numbers: Any) -> Callable[[Outcome], None]:
    def count(outcome: Outcome) -> None:
        for name, number in numbers.items():
            setattr(outcome, name, number)

    return count


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (counted(lost=1), "1 sessions lost"),
        (counted(failovers=1), "only 1 failovers"),
        (counted(reused=2), "2 refresh tokens used twice"),
        (counted(refreshes=0), "no session was refreshed"),
        (counted(logouts=0), "no session was logged out"),
        (counted(out_answers=Counter({200: 1, 401: 7})), "1 sessions worked after their logout"),
        (counted(out_answers=Counter({503: 7})), "no session was refused after its logout"),
        (
            counted(answers=Counter({200: 900, 303: 6, 503: 94})),
            "only 90.6% of the answers are 200 or 303",
        ),
        (
            counted(answers=Counter({200: 999, 500: 1})),
            "answers besides 200, 303, 401 and 503: {500}",
        ),
        (grown(memory=800), "memory grew by 1.22"),
        (grown(connections=240), "connections grew by 1.33"),
        (grown(redis_memory=1100), "Redis' memory grew by 1.26"),
        (grown(redis_clients=195), "Redis' clients grew by 1.50"),
    ],
)
def test_a_soak_says_what_is_wrong(spoil: Callable[[Outcome], None], complaint: str) -> None:
    outcome = good()
    spoil(outcome)
    assert outcome.wrong == [complaint]


def test_pools_that_a_failover_fills_are_no_leak() -> None:
    outcome = good()
    empty = replace(SAMPLE, connections=30, redis_clients=20)
    outcome.samples = [empty] * 6 + [replace(SAMPLE, connections=128, redis_clients=128)] * 3
    assert outcome.wrong == []


def test_what_was_never_measured_is_not_flat() -> None:
    outcome = good()
    outcome.samples = [NOBODY_TELLS] * 9
    assert outcome.wrong == ["Redis' memory grew by inf", "Redis' clients grew by inf"]
