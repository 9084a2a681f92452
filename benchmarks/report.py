"""Figures of a run: as a table to read, as JSON to keep, as a section of the README."""

from __future__ import annotations

import itertools
import json
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measure import Spread

# Between these two lines of a page, everything is written by `python -m benchmarks --readme`.
_BEGIN, _END = "<!-- figures -->", "<!-- end of the figures -->"
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


def checkout() -> str:
    """Return which commit is measured, and on which day."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        folder = Path(__file__).parent
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):  # no git, or an archive of the files
        return f"{time.strftime('%Y-%m-%d')}, of an unknown commit"
    kind = "with changes that are not committed" if changes else "a clean checkout"
    return f"{time.strftime('%Y-%m-%d')}, at {commit} ({kind})"


def section(figures: Sequence[Figure], measured: str) -> str:
    """Return the tables of a whole run as Markdown, and what they were measured on.

    Args:
        measured: what `checkout` said before the run.
    """
    versions = ", ".join(f"{name} {version(name)}" for name in _COMPARED)
    missed = [
        f"{figure.name} ({figure.benchmark})" for figure in figures if figure.reached is False
    ]
    tables = [
        f"### {name}\n\n{table(rows)}"
        for name, rows in itertools.groupby(figures, lambda figure: figure.benchmark)
    ]
    return "\n\n".join(
        [
            f"One run of `python -m benchmarks --readme`, {measured}. {_processor()}, Python "
            f"{platform.python_version()}; {versions}.",
            f"Targets that were not reached: {'; '.join(missed) or 'none'}.",
            *tables,
        ]
    )


def write_section(page: Path, text: str) -> None:
    """Put the figures into a page, in the place of those that it has."""
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise RuntimeError(f"{page} has no place for the figures: {_BEGIN} and {_END}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
