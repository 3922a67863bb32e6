"""Injects every fault at length, prints a line of figures for each, and writes them to RESULTS.md.

All of them take about half an hour; with --only, the others keep their lines of the table.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE.parent) not in sys.path:
    sys.path.insert(0, str(HERE.parent))

from faults import outcome  # noqa: E402 - the path comes first

EXPERIMENTS = (
    "crashers",
    "fuzz",
    "mutated",
    "kills",
    "stopped",
    "reactions",
    "cut",
    "drain",
    "orphans",
    "overload",
    "connections",
    "slow",
    "full_disk",
    "soak",
)
"""The modules, each of which has `run`, and its arguments in short and at length."""


def experiment(name: str, *, short: bool) -> outcome.Outcome:
    """Runs one of them."""
    module = importlib.import_module(f"faults.{name}")
    found: outcome.Outcome = module.run(**(module.SHORT if short else module.LONG))
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the experiments. The exit code: 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), metavar="NAME")
    parser.add_argument(
        "--short", action="store_true", help="some seconds each, as the tests do; the table is not written"
    )
    options = parser.parse_args(arguments)
    broken = 0
    for name in options.only:
        started = time.monotonic()
        try:
            found = experiment(name, short=options.short)
        except Exception as error:  # the other experiments are worth their while all the same
            traceback.print_exc()
            found = outcome.Outcome(
                name, "", "", {}, [f"the experiment itself failed: {type(error).__name__}: {error}"]
            )
        broken += len(found.broken)
        print(f"{found.line} ({time.monotonic() - started:.0f} s)", flush=True)
        for each in found.broken[: outcome.SHOWN]:
            print(f"    {each}", flush=True)
        if not options.short:
            kept = outcome.keep(name, found, HERE / "RESULTS.json")
            outcome.write({each: kept[each] for each in EXPERIMENTS if each in kept}, HERE / "RESULTS.md")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
