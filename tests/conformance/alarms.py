"""The right gradients: `python tests/conformance/alarms.py [--kind float64 …] [--samples N] [--jobs N] …`.

Every differentiable operator of PyTorch's own operator database, several samples each, traced, and its gradients
checked as a server checks them: at order 1 in five dtypes, at order 2 in float64. A FAIL is either one of the gradients
known to be wrong in torch 2.13 (corpus/known.py) or a false alarm. Ends with a table and a line for each FAIL; without
--only the table goes into faults.md and faults.json. Exit code 1 for a false alarm.

Wanted: none.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "unit")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - the path comes first

from conformance import faults  # noqa: E402
from conformance.corpus import known, rights, tally  # noqa: E402

KINDS = ("float64", "float32", "complex128", "bfloat16", "complex64", "float64 order 2")
VERDICTS = ("PASS", "INCONCLUSIVE", "NON_DIFFERENTIABLE", "NON_DETERMINISTIC", "FAIL")
HEAD = ("dtype", "order", "operators", "samples", *VERDICTS, "no answer", "of FAIL: wrong in torch", "false alarms")
_SHOWN = 4
ALL = sys.maxsize


def counted(kind: str, records: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[str]]]:
    """The line of the table, and what is listed below it."""
    dtype, order = rights.kind(kind)
    counts = collections.Counter(one["verdict"] for one in records)
    operators = {one["operator"] for one in records}
    wrong, alarms, silent = [], [], []
    for one in records:
        place = f"{one['sample']}" + (f", seed {one['seed']}" if "seed" in one else "")
        if one["verdict"] == "FAIL":
            why = known.why(one["operator"], dtype, order)
            if why:
                wrong.append((one["operator"], place, why))
            else:
                alarms.append(f"{one['operator']}[{place}]: {one['said']}")
        elif one["verdict"] not in VERDICTS:
            silent.append((one["operator"], place, f"{one['verdict'].lower()}: {one['said']}"))
    answered = sum(counts[verdict] for verdict in VERDICTS)
    figures = [len(operators), len(records), *(counts[one] for one in VERDICTS), len(records) - answered]
    row = [dtype, str(order), *(str(one) for one in figures), str(len(wrong)), str(len(alarms))]
    return row, {"wrong in torch": _grouped(wrong), "false alarms": alarms, "no answer": _grouped(silent)}


def _grouped(found: Sequence[tuple[str, str, str]]) -> list[str]:
    """One line for each operator, of (operator, place, text): the first places, and the first one's text."""
    places: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for operator, place, text in found:
        places.setdefault(operator, []).append(place)
        texts.setdefault(operator, text)
    lines = []
    for operator, several in places.items():
        shown, more = several[:_SHOWN], len(several) - _SHOWN
        lines.append(f"{operator}[{'; '.join(shown)}{f'; {more} more' if more > 0 else ''}]: {texts[operator]}")
    return lines


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """What was asked for; `samples` of each operator are None for each kind's default."""

    mode: str
    samples: int | None = None
    seeds: int = 1

    @property
    def options(self) -> str:
        """As they are typed."""
        found = f"--mode {self.mode}"
        if self.samples is not None:
            found += f" --samples {'all' if self.samples == ALL else self.samples}"
        return found + (f" --seeds {self.seeds}" if self.seeds > 1 else "")

    @property
    def section(self) -> str:
        """Its name in faults.md."""
        found = "right gradients" + (", all samples" if self.samples == ALL else "")
        return found + (f", {self.seeds} seeds" if self.seeds > 1 else "")


def _samples(text: str) -> int:
    return ALL if text == "all" else int(text)


def main(arguments: Sequence[str]) -> int:
    """Runs the sweeps. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--samples", type=_samples, metavar="N", help="of each operator, or 'all'; default: 8, 4 or 2")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="with which each sample is checked")
    parser.add_argument("--mode", choices=["probe", "full"], default="probe")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="operators, patterns too")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="for each kind, at most")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where finished operators are kept, one a line")
    options = parser.parse_args(arguments)
    found: dict[str, dict[str, Any]] = {}
    for kind in options.kind:
        names = [name for name in faults.names_of(rights.kind(kind)[0], options.only, None) if name[0] != "("]
        start, records = time.monotonic(), []
        serve, limit = rights.serve, rights.SAMPLES[kind] if options.samples is None else options.samples
        address = options.mode if options.seeds == 1 else f"{options.mode} {options.seeds}"
        answers = faults.judged(
            kind, names, [address], options.jobs, options.keep, serve=serve, limit=limit, minutes=options.minutes
        )
        for done, (name, part) in enumerate(answers, 1):
            records += [_record(name, one) for one in part]
            if done % 50 == 0 or done == len(names):
                failed = sum(one["verdict"] == "FAIL" for one in records)
                seconds = time.monotonic() - start
                line = f"{done} of {len(names)} operators, {len(records)} samples, {failed} FAIL, {seconds:.0f} s"
                print(f"{kind}: {line}", file=sys.stderr, flush=True)
        row, listed = counted(kind, records)
        found[kind] = {"date": datetime.date.today().isoformat(), "row": row, **listed}
    sweep = Sweep(options.mode, options.samples, options.seeds)
    print(written(found, sweep))
    if not options.only and options.samples in (None, ALL):
        key = f"{sweep.section}, {options.mode}"
        together = {**faults.figures_of(key), **found}  # of other kinds, an earlier run's
        faults.write({sweep.section: written(together, sweep)}, {key: together})
    return 1 if any(one["false alarms"] for one in found.values()) else 0


def _record(name: str, one: Mapping[str, Any]) -> Mapping[str, Any]:
    if "broken" not in one:
        return one
    return {"operator": name, "sample": -1, "verdict": "BROKEN", "said": one["broken"]}


def written(found: Mapping[str, Mapping[str, Any]], sweep: Sweep) -> str:
    """The section of faults.md."""
    kinds = [kind for kind in KINDS if kind in found]
    parts = [
        f"## {sweep.section.capitalize()}\n",
        f"`python tests/conformance/alarms.py {sweep.options}`: torch {torch.__version__} CPU, {faults.MACHINE}.\n",
        tally.markdown([[*HEAD, "date"], *([*found[kind]["row"], found[kind]["date"]] for kind in kinds)]) + "\n",
    ]
    for key in ("false alarms", "wrong in torch", "no answer"):
        lines = [f"- {kind}: {line}\n" for kind in kinds for line in found[kind][key]]
        parts.append(f"{key.capitalize()}:{chr(10) * 2 if lines else ' '}{''.join(lines) or 'none.' + chr(10)}")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
