"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, ERROR = 0, 1, 2  # also the exit status


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK, WARNING or ERROR.
        topic: the option or the thing that it is about.
        text: what is the case.
        advice: what to do about it.
    """

    level: int
    topic: str
    text: str
    advice: str = ""
