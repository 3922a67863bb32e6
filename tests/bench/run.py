"""Every figure of speed, in one table.

    python tests/bench/run.py [--only NAME ...] [--quick] [--json FILE] [--update]

Each figure is a ratio to something that runs beside it, in turn with it, on the same machine: only ratios mean anything
elsewhere. --only takes subjects (see SUBJECTS below) or parts of rows' names, and measures those alone; --quick
measures less, and leaves out what takes long; --update keeps the rows of the subjects that were measured in
RESULTS.json, and the whole table in RESULTS.md. Nothing else should run meanwhile.
Exit code 0, whatever is missed: how fast a machine is today is no property of the code alone. Benchmarks, not tests.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import grpc
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import table
from bench.table import Row

SUBJECTS = (
    "small_vjp",
    "callers",
    "large_tensors",
    "engine_speed",
    "long_chain",
    "check_speed",
    "start_up",
    "scale",
    "gpu",
    "trace_chain",
    "batch_speed",
    "check_bars",
)
"""Modules beside this one; each has `rows(quick)`."""

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
KEPT = RESULTS.with_suffix(".json")


def machine() -> dict[str, object]:
    """Where, when and with what."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": cuda or "cpu",
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grpcio": grpc.__version__,
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def measured(subject: str, only: Sequence[str], quick: bool) -> list[Row]:
    """A subject's rows, shown as they are measured: all of them, or those that `only` has a part of the name of."""
    parts = [one for one in only if one not in SUBJECTS]
    found = []
    for row in importlib.import_module(f"bench.{subject}").rows(quick):
        if not only or subject in only or any(part in row.name for part in parts):
            print(f"  {row.name}: {row.cells()[1]}", file=sys.stderr, flush=True)
            found.append(row)
    return found


def measured_apart(subjects: Sequence[str], only: Sequence[str], quick: bool) -> dict[str, list[Row]]:
    """The same of several, each in a process of its own: what one leaves behind, in its memory above all, is nothing to
    the next."""
    if len(subjects) == 1:
        return {subjects[0]: measured(subjects[0], only, quick)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as process:
        return {one: process.submit(measured, one, only, quick).result() for one in subjects}


def keep(found: Mapping[str, Sequence[Row]], where: Mapping[str, object]) -> None:
    """Writes RESULTS.json and RESULTS.md anew, with what has been found in place of what was there."""
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    kept |= {subject: table.document(rows, where) for subject, rows in found.items()}
    ordered = {subject: kept[subject] for subject in SUBJECTS if subject in kept}
    KEPT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    RESULTS.write_text(table.page(ordered), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--update", action="store_true", help="write RESULTS.md and RESULTS.json")
    options = parser.parse_args(arguments)
    parts = [one for one in options.only if one not in SUBJECTS]
    if options.update and (parts or options.quick):
        parser.error("--update keeps whole subjects: expected no --quick, and only subjects after --only")
    where = machine()
    if float(str(where["load"])) > 2.5:
        print(f"the machine is busy (load {where['load']}): these figures are worth little", file=sys.stderr)
    chosen = [one for one in SUBJECTS if not options.only or parts or one in options.only]
    found = measured_apart(chosen, options.only, options.quick)
    rows = [row for one in found.values() for row in one]
    print(table.text(rows))
    print(f"\n{table.summary(rows)}")
    if options.json:
        text = json.dumps(table.document(rows, where), indent=1, ensure_ascii=False)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    if options.update:
        keep(found, where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
