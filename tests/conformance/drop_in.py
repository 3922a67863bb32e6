"""`go.gradcheck` and `go.gradgradcheck` in the place of torch's: `python tests/conformance/drop_in.py [NAME …]`.

A test-suite that moves by changing an import must not fail where it passed. Each differentiable operator of PyTorch's
own operator database is asked about at the sample that the planted faults are tried on, in float64, by torch's two
functions and by ours. Printed is where they differ: ours fail what torch's pass, raise where those do not, or the other
way round; an operator that neither can be asked about is no difference. One thread, a minute or two.

Wanted: nothing but gradients that are wrong in torch, which `known` has.
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd.gradcheck import GradcheckError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gradoracle as go
from conformance import faults
from conformance.corpus import cases, known, work
from conformance.samples import silence

PATIENCE = 60  # seconds for one operator
CHECKS: dict[str, tuple[Callable[..., bool], Callable[..., bool]]] = {
    "gradcheck": (torch.autograd.gradcheck, go.gradcheck),
    "gradgradcheck": (torch.autograd.gradgradcheck, go.gradgradcheck),
}


class Answers(NamedTuple):
    """What was said of one operator: "passes", "fails" or "raises", and what else ours said."""

    operator: str
    check: str
    torchs: str
    ours: str
    text: str

    @property
    def differ(self) -> bool:
        return self.torchs != self.ours

    @property
    def is_known(self) -> bool:
        """Whether torch passes a gradient that is wrong in torch."""
        order = list(CHECKS).index(self.check) + 1
        wrong = known.why(self.operator, "float64", order) is not None
        return self.torchs == "passes" and self.ours == "fails" and wrong


def answers(names: list[str]) -> Iterator[Answers]:
    """Of each operator that has a sample, to both checks."""
    for name in names:
        torch.manual_seed(0)
        subject, _ = cases.chosen(name, torch.float64)
        if subject is None:
            continue
        inputs = [one.detach().clone().requires_grad_() for one in subject.inputs]
        for check, (torchs, ours) in CHECKS.items():
            other, _ = answer(torchs, subject.function, inputs, fast_mode=True)
            mine, text = answer(ours, subject.function, inputs)
            yield Answers(name, check, other, mine, text)


def answer(check: Callable[..., bool], function: Any, inputs: Any, **options: Any) -> tuple[str, str]:
    """One check's, without its warnings."""

    def too_long(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(PATIENCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ("passes" if check(function, inputs, **options) else "fails"), ""
    except GradcheckError as error:
        return "fails", str(error)
    except Exception as error:
        return "raises", repr(error)
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help="operators, patterns too")
    torch.set_num_threads(1)
    silence()
    chosen = faults.names_of("float64", parser.parse_args().name, None)
    found = list(answers([one for one in chosen if one not in (work.KINKS, work.OTHERS)]))
    for check in CHECKS:
        said = [one for one in found if one.check == check]
        both = sum(one.torchs == one.ours == "passes" for one in said)
        print(f"{check}: {len(said)} operators; {both} pass both, {sum(one.differ for one in said)} differ")
    for one in found:
        if one.differ:
            why = "wrong in torch" if one.is_known else one.text.replace("\n", " ")[:300]
            print(f"- {one.operator}, {one.check}: torch's {one.torchs}, ours {one.ours}: {why}")
    return int(any(one.differ and not one.is_known for one in found))


if __name__ == "__main__":
    sys.exit(main())
