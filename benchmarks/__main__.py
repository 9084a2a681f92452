"""Run benchmarks: `python -m benchmarks [NAME…]`, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

from .report import Figure, table, write_json

_MODULES = {
    "request-path": "request_path",
    "client": "client",
    "end-to-end": "end_to_end",
    "proxy": "proxy",
    "growth": "growth",
    "store": "store",
    "storm": "storm",
    "import": "imports",
    "start": "start",
    "login": "login",
    "sizes": "sizes",
}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(_MODULES)}; or quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--accept", action="store_true", help="with quick: make what is measured the baseline"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*_MODULES, "quick"}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if "quick" in arguments.names:
        from . import quick

        return quick.accept() if arguments.accept else quick.check()
    figures: list[Figure] = []
    for name in arguments.names or _MODULES:
        started = time.monotonic()
        found = list(importlib.import_module(f".{_MODULES[name]}", __package__).run())
        print(f"\n## {name} ({time.monotonic() - started:.0f} s)\n\n{table(found)}", flush=True)
        figures += found
    if arguments.json:
        write_json(arguments.json, figures)
    missed = [f"{figure.benchmark}: {figure.name}" for figure in figures if figure.reached is False]
    print(f"\n{len(missed)} targets not reached{': ' + '; '.join(missed) if missed else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
