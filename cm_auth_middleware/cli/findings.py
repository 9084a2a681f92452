"""The findings of a check."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, ERROR = 0, 1, 2  # also the exit status


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK, WARNING or ERROR.
        topic: the option or the subject of the finding.
        text: a phrase that says what was found.
        advice: a sentence that says what to do; may be empty.
    """

    level: int
    topic: str
    text: str
    advice: str = ""
