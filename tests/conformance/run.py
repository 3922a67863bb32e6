"""The whole suite: `python tests/conformance/run.py [--dtype float64 …] [--only NAME …] [--quick] [--jobs N]`.

Starts a server, or takes the one at --address, and ends with a table. Without --only and --quick it also writes
RESULTS.md and RESULTS.json beside this file. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402 - the path comes first

import gradoracle as go  # noqa: E402
from conformance import table  # noqa: E402
from conformance.judge import Judgement, Outcome  # noqa: E402
from conformance.processes import judgements  # noqa: E402
from conformance.samples import full_name, operators  # noqa: E402

DTYPES = ("float64", "float32", "complex128")


def filled(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which new memory has the same contents everywhere; None where this is one.

    torch.linalg.lstsq gives LAPACK's gelsy a list of pivots that it did not write. Without tcache, whose pointers would
    lie in it, and filled with zeros, as the server's memory is for it (255: the complement is the fill), both sides
    read the same.
    """
    if "MALLOC_PERTURB_" in environment:
        return None
    return {**environment, "MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def _chosen(dtype: torch.dtype, patterns: Sequence[str]) -> list[str]:
    names = [full_name(one) for one in operators(dtype)]
    if not patterns:
        return names
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def main(arguments: Sequence[str]) -> int:
    """Runs the suite. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", default=[], help="operators, patterns such as 'linalg.*' too"
    )
    parser.add_argument("--quick", action="store_true", help="one sample of each operator")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that trace and compare")
    parser.add_argument("--address", help="of a running server; default: one is started")
    parser.add_argument("--verbose", action="store_true", help="a line for each case that is not exact")
    options = parser.parse_args(arguments)
    limit = 1 if options.quick else None
    sweeps = []
    with contextlib.ExitStack() as stack:
        address = options.address or stack.enter_context(go.local_server(workers=options.jobs, threads=1))
        for dtype in options.dtype:
            names = _chosen(getattr(torch, dtype), options.only)
            found: list[Judgement] = []
            started = time.monotonic()
            results = judgements(str(address), dtype, names, limit=limit, jobs=options.jobs)
            for done, (_, part) in enumerate(results, 1):
                found += part
                _tell(dtype, done, len(names), found, part if options.verbose else [], started)
            sweeps.append(table.Sweep(dtype, found))
    print("\n" + table.text(sweeps))
    if not options.only and not options.quick:
        table.write(sweeps, "python tests/conformance/run.py", HERE)
    return 1 if any(one.outcome is Outcome.WRONG for each in sweeps for one in each.judgements) else 0


def _tell(
    dtype: str, done: int, count: int, found: Sequence[Judgement], shown: Sequence[Judgement], started: float
) -> None:
    for one in shown:
        if one.outcome is not Outcome.EXACT:
            print(f"{one.outcome.name.lower()}: {one.operator}[{one.index}] {one.reason[:700]}", flush=True)
    if done % 50 == 0 or done == count:
        exact = sum(one.outcome is Outcome.EXACT for one in found)
        seconds = time.monotonic() - started
        line = f"{dtype}: {done} of {count} operators, {len(found)} samples, {exact} exact, {seconds:.0f} s"
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    if (environment := filled(os.environ)) is not None:
        os.execve(sys.executable, [sys.executable, str(HERE / "run.py"), *sys.argv[1:]], environment)  # noqa: S606
    sys.exit(main(sys.argv[1:]))
