"""A corpus of planted faults: `python tests/conformance/faults.py [--operators N] [--dtype float64 …] [--jobs N] …`.

Operators of PyTorch's own operator database get a backward that is wrong in one of the ways in which backward formulas
have been wrong in earnest, one way at a time; and the right backward, as the other class. So do claims, and second
derivatives. gradoracle's two modes, torch.autograd.gradcheck's two and, where jax is installed, its check_grads judge
each case in the same run. The table counts, for each kind of fault, how many of its cases each checker rejects, and in
the lines "right" how many right gradients it rejects. An operator is in the corpus where gradcheck's slow mode passes
its right gradient at a sample that is small enough for it.

Finished operators are kept in the file that --keep names, and not judged again. Without --only and --operators the
tables are written into faults.md and faults.json beside this file.

Wanted: every fault of relative size 1e-8 or more rejected, and no right gradient rejected.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fnmatch
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "unit")]
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402 - the path comes first

from conformance.corpus import jax_peer, known, tally, work  # noqa: E402
from conformance.corpus.checkers import OURS, PEERS  # noqa: E402
from conformance.judge import Judgement  # noqa: E402
from conformance.processes import Serve, judgements  # noqa: E402
from conformance.samples import full_name, operators  # noqa: E402

DTYPES = ("float64", "complex128", "float32")
MACHINE = "2 cores, shared, one thread a process"
MARKS = ("<!-- {}: generated -->", "<!-- {}: end -->")


def names_of(dtype: str, only: Sequence[str], most: int | None) -> list[str]:
    """The operators to judge, and the groups of cases beside them."""
    found = sorted({full_name(one) for one in operators(getattr(torch, dtype))})
    groups = [work.KINKS, work.OTHERS] if dtype == "float64" else []
    if only:
        return [name for name in found if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)]
    found.sort(key=lambda name: zlib.crc32(name.encode()))  # in no order, so that some stand for all
    return [*groups, *found[:most]]


def judged(
    dtype: str,
    names: Sequence[str],
    peers: Sequence[str],
    jobs: int,
    keep: Path | None,
    *,
    serve: Serve = work.serve,
    limit: int | None = None,
    minutes: float = math.inf,
) -> Iterator[Any]:
    """(operator, records) of each, those kept from an earlier run first; of what is done after so many minutes."""
    until = time.monotonic() + 60 * minutes
    before = _kept(keep, dtype)
    for name in names:
        if name in before:
            yield name, before[name]
    rest = [name for name in names if name not in before]
    with keep.open("a", encoding="utf-8") if keep else contextlib.nullcontext() as file:
        for name, found in judgements(",".join(peers), dtype, rest, limit=limit, jobs=jobs, serve=serve):
            records = [_plain(one) for one in found]
            if file:
                file.write(json.dumps({"dtype": dtype, "operator": name, "records": records}) + "\n")
                file.flush()
            yield name, records
            if time.monotonic() > until:
                return


def _kept(keep: Path | None, dtype: str) -> dict[str, list[dict[str, Any]]]:
    if keep is None or not keep.exists():
        return {}
    lines = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    return {line["operator"]: line["records"] for line in lines if line["dtype"] == dtype}


def _plain(one: Any) -> dict[str, Any]:
    """A record; what `judgements` puts in the place of those of a process that died becomes one, too."""
    return {"operator": one.operator, "broken": one.reason} if isinstance(one, Judgement) else one


def counted(dtype: str, checkers: Sequence[str], found: Iterator[Any], total: int) -> tuple[tally.Tally, int]:
    """The tally of all that comes, and how many names did, with a line on stderr now and then."""
    wrong: dict[str, str] = {}
    counts = tally.Tally(checkers, wrong)
    start, done = time.monotonic(), 0
    for done, (name, records) in enumerate(found, 1):
        reason = known.why(name, dtype, 1)
        if reason:
            wrong[name] = reason
        counts.add(records)
        if done % 25 == 0 or done == total:
            line = (f"{dtype}: {done} of {total} names, {len(counts.operators)} operators, "
                    f"{sum(counts.cases.values())} cases, {len(counts.missed)} missed, {len(counts.alarms)} alarms, "
                    f"{time.monotonic() - start:.0f} s")  # fmt: skip
            print(line, file=sys.stderr, flush=True)
    return counts, done


def write(pages: Mapping[str, str], figures: Mapping[str, Any]) -> None:
    """Each dtype's section into faults.md, between its markers, and its figures into faults.json; others' stay."""
    path, data = HERE / "faults.md", HERE / "faults.json"
    text = path.read_text(encoding="utf-8")
    for dtype, page in pages.items():
        start, end = (mark.format(dtype) for mark in MARKS)
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n\n{page}\n{end}{after}"
    path.write_text(text, encoding="utf-8")
    kept = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    data.write_text(json.dumps({**kept, **figures}, indent=1) + "\n", encoding="utf-8")


def figures_of(key: str) -> dict[str, Any]:
    """What faults.json has under a key; nothing where it has none."""
    data = HERE / "faults.json"
    kept: dict[str, dict[str, Any]] = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    return kept.get(key, {})


def main(arguments: Sequence[str]) -> int:
    """Runs the corpus. Exit code 1 where one of our modes misses a fault or fails a right gradient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", type=int, metavar="N", help="so many operators, in a fixed random order")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help="operators, patterns too")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), help="default: all that are installed")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="for each dtype, at most")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where finished operators are kept, one a line")
    options = parser.parse_args(arguments)
    peers = options.peers
    if peers is None:
        peers = [name for name in PEERS if name != "jax" or jax_peer.installed()]
    checkers = [*OURS, *peers]
    pages, figures, failed = {}, {}, False
    for dtype in options.dtype:
        names = names_of(dtype, options.only, options.operators)
        found = judged(dtype, names, peers, options.jobs, options.keep, minutes=options.minutes)
        counts, done = counted(dtype, checkers, found, len(names))
        note = f"{datetime.date.today().isoformat()}, torch {torch.__version__} CPU, {MACHINE}"
        note += f"; {done} of {len(names)} names done"
        page = tally.page(dtype, counts, f"python tests/conformance/faults.py --dtype {dtype}", note)
        pages[dtype] = page
        figures[dtype] = {"date": datetime.date.today().isoformat(), **counts.figures()}
        failed |= bool(counts.missed or counts.alarms)
    print("\n".join(pages.values()))
    if not options.only and not options.operators:
        write(pages, figures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
