"""Figures of a run: as a table to read, as JSON to keep."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measure import Spread

_COMPARED = ("starlette", "httpx2", "Flask", "starsessions", "Flask-Session", "Authlib", "redis")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        benchmark: which benchmark it is from.
        name: what was measured.
        value: the figure itself, in `unit`.
        ratio: the figure relative to `against`, with its spread over the run.
        target: what is to be reached, as "<= 0.3" or ">= 0.9".
        of_ratio: the target is one of the ratio, if there is a ratio, and not of the figure.
    """

    benchmark: str
    name: str
    value: float
    unit: str
    ratio: Spread | None = None
    against: str = ""
    target: str = ""
    of_ratio: bool = True

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None if there is none."""
        if not self.target:
            return None
        sign, _, bound = self.target.partition(" ")
        measured = self.ratio.value if self.ratio and self.of_ratio else self.value
        return measured <= float(bound) if sign == "<=" else measured >= float(bound)


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table."""
    rows: list[tuple[str, ...]] = [("", "measured", "ratio", "spread", "to", "target", "")]
    rows += [_row(figure) for figure in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def _row(figure: Figure) -> tuple[str, ...]:
    ratio = figure.ratio
    return (
        figure.name,
        f"{number(figure.value)} {figure.unit}".strip(),
        f"{ratio.value:.2f}" if ratio else "",
        f"{ratio.low:.2f}-{ratio.high:.2f}" if ratio else "",
        figure.against,
        figure.target,
        {None: "", True: "reached", False: "NOT REACHED"}[figure.reached],
    )


def number(value: float) -> str:
    """A number in as many digits as mean something."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(path: Path, figures: Sequence[Figure]) -> None:
    """Write the figures, and what they were measured on."""
    machine = {
        "python": platform.python_version(),
        "processor": _processor(),
        **{name: version(name) for name in _COMPARED},
    }
    rows: list[dict[str, Any]] = [{**asdict(f), "reached": f.reached} for f in figures]
    path.write_text(json.dumps({"machine": machine, "figures": rows}, indent=1) + "\n")


def _processor() -> str:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{len(models)} x {models[0]}" if models else platform.processor()
