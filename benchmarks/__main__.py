"""Run benchmarks: `python -m benchmarks [NAME…]`, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

from .report import Figure, checkout, section, table, write_json, write_section

_MODULES = {
    "request-path": "request_path",
    "client": "client",
    "end-to-end": "end_to_end",
    "login": "login",
    "proxy": "proxy",
    "growth": "growth",
    "store": "store",
    "storm": "storm",
    "import": "imports",
    "start": "start",
    "sizes": "sizes",
}
_README = Path(__file__).with_name("README.md")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(_MODULES)}; or quick")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--readme",
        action="store_true",
        help="run everything, and put the tables into benchmarks/README.md",
    )
    parser.add_argument(
        "--accept", action="store_true", help="with quick: make what is measured the baseline"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {*_MODULES, "quick"}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    if arguments.names and arguments.readme:
        parser.error("--readme takes no names: the tables are those of one whole run")
    if "quick" in arguments.names:
        from . import quick

        return quick.accept() if arguments.accept else quick.check()
    measured = checkout()  # before anything is written
    figures, failed = _run(arguments.names or list(_MODULES), arguments.json)
    missed = [f"{figure.benchmark}: {figure.name}" for figure in figures if figure.reached is False]
    print(f"\n{len(missed)} targets not reached{': ' + '; '.join(missed) if missed else ''}")
    if failed:
        print(f"\nFAILED: {', '.join(failed)}")
        return 1
    if arguments.readme:
        write_section(_README, section(figures, measured))
    return 0


def _run(names: list[str], json: Path | None) -> tuple[list[Figure], list[str]]:
    """Run benchmarks and print their tables; return their figures, and the names that failed.

    One that fails does not cost the figures of the others, which take minutes.
    """
    figures: list[Figure] = []
    failed: list[str] = []
    for name in names:
        started = time.monotonic()
        try:
            found = list(importlib.import_module(f".{_MODULES[name]}", __package__).run())
        except (Exception, SystemExit):
            traceback.print_exc()
            failed.append(name)
            continue
        print(f"\n## {name} ({time.monotonic() - started:.0f} s)\n\n{table(found)}", flush=True)
        figures += found
        if json:
            write_json(json, figures)
    return figures, failed


if __name__ == "__main__":
    sys.exit(main())
