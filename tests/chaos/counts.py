"""What a scenario came to, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .crowd import Response


@dataclass
class Counts:
    """The numbers of one scenario, and what was not as it has to be.

    Attributes:
        rounds: how often the scenario was played.
        answers: how often each status came; 0 stands for a connection that broke.
        token_calls: refreshes that reached CameraManager.
        sessions: logged-in browsers that should have survived.
        lost: those of them that did not.
        recovered: seconds, at most, from when the store worked again until every request did; None
            where it worked all the while.
        slowest: seconds that a request took, at most.
        faults: a sentence for each thing that was not as it has to be.
        late: a sentence for each thing that took too long, as anything does on a busy machine.
        complaints: what the processes said of it.
    """

    scenario: str
    store: str
    rounds: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    token_calls: int = 0
    sessions: int = 0
    lost: int = 0
    recovered: float | None = None
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """All sentences: nothing of this may be."""
        return self.faults + self.late

    @property
    def is_merely_late(self) -> bool:
        """True if all was as it has to be, but for how long it took."""
        return bool(self.late) and not self.faults

    def saw(self, answers: Iterable[Response], *expected: int) -> None:
        """Count answers; only those statuses are right, if any are given."""
        answers = list(answers)
        found = Counter(answer.status for answer in answers)
        self.slowest = max([self.slowest, *(answer.seconds for answer in answers)])
        self.answers += found
        if expected:
            others = {status: n for status, n in found.items() if status not in expected}
            self.check(not others, f"answers besides {expected}: {others}")

    def called(self, calls: int, least: int, most: int) -> None:
        """Count refresh calls, of which there should be so many."""
        self.token_calls += calls
        self.check(least <= calls <= most, f"{calls} token calls, not {least} to {most}")

    def survived(self, alive: int, of: int) -> None:
        """Count sessions that still work."""
        self.sessions += of
        self.lost += of - alive
        self.check(alive == of, f"{of - alive} of {of} sessions lost")

    def recovered_in(self, seconds: float) -> None:
        """Count an outage after which every request worked again after so long."""
        self.recovered = max(self.recovered or 0.0, seconds)

    def check(self, holds: object, complaint: str) -> None:
        self._note(self.faults, holds, complaint)

    def check_time(self, holds: object, complaint: str) -> None:
        """Like `check`, for what took its time."""
        self._note(self.late, holds, complaint)

    def _note(self, sentences: list[str], holds: object, complaint: str) -> None:
        sentence = f"round {self.rounds + 1}: {complaint}"
        if not holds and sentence not in sentences:
            sentences.append(sentence)

    def __str__(self) -> str:
        answers = " ".join(f"{n}x{status}" for status, n in sorted(self.answers.items()))
        line = (
            f"{self.scenario:<34} {self.store:<7} rounds {self.rounds:>3}  "
            f"token calls {self.token_calls:>4}  lost {self.lost}/{self.sessions}  {answers}"
        )
        recovered = "-" if self.recovered is None else f"in {self.recovered:.2f} s"
        line += f"  recovered {recovered}  slowest {self.slowest:.1f} s"
        wrong = [f"    WRONG {sentence}" for sentence in self.faults]
        wrong += [f"    LATE {sentence}" for sentence in self.late]
        return "\n".join([line, *wrong, *(f"    | {line}" for line in self.complaints)])
