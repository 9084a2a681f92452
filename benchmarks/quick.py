"""The request path in some seconds: has anything become much slower than what was committed?"""

from __future__ import annotations

import json
from pathlib import Path

from . import request_path
from .report import Figure, table

_BASELINE = Path(__file__).with_name("baseline.json")
_WORSE = 1.3


def check() -> int:
    """Compare with the baseline; exit status 1 if a ratio is worse by 1.3, twice in a row."""
    baseline: dict[str, float] = json.loads(_BASELINE.read_text())
    figures = _measure()
    print(table(figures))
    worse = _worse(figures, baseline)
    if worse:
        print(f"\nOnce more, for {', '.join(worse)} looks slow.\n")
        figures = _measure()
        print(table(figures))
        worse = {name: ratio for name, ratio in _worse(figures, baseline).items() if name in worse}
    measured = _ratios(figures).keys()
    for name in baseline.keys() - measured:
        print(f"\nNot measured, though the baseline has it: {name}")
    for name in measured - baseline.keys():
        print(f"\nNot in the baseline: {name}; add it with --accept")
    for name, ratio in worse.items():
        print(f"\nSLOWER: {name}: {ratio:.3f}, and the baseline has {baseline[name]:.3f}")
    return 1 if worse or baseline.keys() != measured else 0


def accept() -> int:
    """Make what is measured now the baseline: of three runs the median."""
    runs = [_ratios(_measure()) for _ in range(3)]
    ratios = {name: round(sorted(run[name] for run in runs)[1], 3) for name in runs[0]}
    _BASELINE.write_text(json.dumps(ratios, indent=1) + "\n")
    print(_BASELINE.read_text())
    return 0


def _measure() -> list[Figure]:
    return list(request_path.run(quick=True))


def _ratios(figures: list[Figure]) -> dict[str, float]:
    return {f.name: f.ratio.value for f in figures if f.ratio and f.name.startswith("ours")}


def _worse(figures: list[Figure], baseline: dict[str, float]) -> dict[str, float]:
    """Those whose best block is still too slow: one that was disturbed is no reason."""
    lows = {f.name: f.ratio.low for f in figures if f.ratio}
    ratios = _ratios(figures)
    return {
        name: ratios[name]
        for name, before in baseline.items()
        if name in lows and lows[name] > _WORSE * before
    }
