"""Play scenarios and print what came of them: `python -m tests.chaos --store redis --repeat 50`.

`python -m tests.chaos soak` plays the soak instead; see `tests.chaos.soak`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from . import soak
from .fleets import KINDS, Stages, by_kind
from .rig import EVERY_STORE
from .scenarios import SCENARIOS, NotPlayedError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--store", choices=(*EVERY_STORE, *KINDS), action="append", help="default: each"
    )
    parser.add_argument("--repeat", type=int, help="rounds of each; default: a few")
    parser.add_argument("--list", action="store_true", help="name the scenarios and leave")
    parser.add_argument("scenario", nargs="*", help="parts of names; default: all")
    options = parser.parse_args(arguments)
    if options.scenario == ["soak"]:
        outcome = soak.play(soak.Size.from_env(), lambda line: print(line, flush=True))
        print(outcome)
        return int(bool(outcome.wrong))
    failed = False

    def is_chosen(name: str) -> bool:
        return not options.scenario or any(part in name for part in options.scenario)

    for name, scenario in SCENARIOS.items():
        if not is_chosen(name):
            continue
        if options.list:
            print(f"{name:<28} {' '.join(scenario.stores):<13} {scenario.rounds} rounds")
            continue
        for store in options.store or EVERY_STORE:
            if store not in scenario.stores:
                continue
            began = time.monotonic()
            try:
                counts = scenario.play(store, options.repeat or scenario.rounds)
            except NotPlayedError as reason:
                print(f"{name:<28} {store:<7} NOT PLAYED: {reason}", flush=True)
                failed = True
                continue
            failed |= bool(counts.wrong)
            print(f"{counts}  ({time.monotonic() - began:.0f} s)", flush=True)
    with Stages() as stages:
        for kind, name in by_kind():
            if not is_chosen(name) or (options.store and kind not in options.store):
                continue
            if options.list:
                print(f"{name:<28} {kind}")
                continue
            began = time.monotonic()
            try:
                for counts in stages.play(kind, name, options.repeat):
                    print(f"{counts}  ({time.monotonic() - began:.0f} s)", flush=True)
            except NotPlayedError as reason:
                print(f"{name:<28} {kind:<7} NOT PLAYED: {reason}", flush=True)
                failed = True
                continue
            failed |= bool(counts.wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
