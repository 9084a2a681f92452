"""What the comparison came to, for the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .known_differences import Known


@dataclass(frozen=True, slots=True)
class Compared:
    """One exchange at one setting of Spring."""

    setting: str
    exchange: str
    found: list[str]
    known: list[Known]


def lines(results: list[Compared]) -> Iterator[str]:
    """Return the table: exchanges, equal ones, different ones and why."""
    yield f"{'Spring':<24}{'exchanges':>10}{'equal':>8}{'different':>11}"
    for setting in sorted({result.setting for result in results}):
        mine = [result for result in results if result.setting == setting]
        different = sum(bool(result.found) for result in mine)
        yield f"{setting:<24}{len(mine):>10}{len(mine) - different:>8}{different:>11}"
    told: dict[tuple[str, ...], list[str]] = {}
    for result in results:
        if result.found:
            why = result.known[0] if result.known else None
            text = (
                f"[{why.tag}] {why.reason}" if why else "NEW",
                *(f"  {line}" for line in result.found),
            )
            told.setdefault((result.exchange, *text), []).append(result.setting)
    for (exchange, reason, *found), settings in told.items():
        yield ""
        yield f"{exchange} ({', '.join(settings)}): {reason}"
        yield from found
