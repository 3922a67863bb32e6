"""The corpus of planted faults in small, and the corpus itself: what it must count as a miss, and as a false alarm.

The whole corpus is `python tests/conformance/faults.py`, all right gradients are `python tests/conformance/alarms.py`.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conformance import alarms, faults
from conformance.corpus import cases, checkers, jax_peer, kinks, known, low, others, rights, tally, wrongs
from conformance.corpus.checkers import FAIL, PASS, Checker
from conformance.corpus.subjects import Subject, subjects
from gradoracle_server.engine.report import Mode

CORPUS = {
    "float64": ["mul", "gather", "linalg.solve", "nn.functional.softplus"],
    "complex128": ["dot"],
}
SECOND = ["mul"]
FLOAT32 = ["mul", "linalg.inv"]
RIGHTS = ["amax", "linalg.cholesky", "nn.functional.layer_norm", "cumsum", "std"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in the processes of the whole corpus, but as long as it takes; and torch deprecates some of what its operator
    database calls."""
    monkeypatch.setattr(checkers, "PATIENCE", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def judged(name: str, dtype: str, asked: dict[str, Checker]) -> Iterator[dict[str, Any]]:
    """The records of an operator's backwards and claims."""
    first, broadcast = cases.chosen(name, getattr(torch, dtype))
    assert first is not None
    everything = [[cases.right_case(first)], cases.backwards(first), cases.claims(first)]
    if name in SECOND:
        everything.append(cases.seconds(first))
    if broadcast is not None and broadcast is not first:
        everything.append(one for one in cases.backwards(broadcast) if "broadcast" in one.fault)
    for case in itertools.chain.from_iterable(everything):
        yield {"operator": name, "sample": first.index, **checkers.asked(case, asked)}


def tallied(asked: dict[str, Checker]) -> tally.Tally:
    """The counts of a small corpus."""
    counts = tally.Tally(list(asked))
    for dtype, names in CORPUS.items():
        for name in names:
            counts.add(judged(name, dtype, asked))
    return counts


def test_a_small_corpus() -> None:
    """Every fault is caught in both modes, and no right gradient is called wrong."""
    counts = tallied(checkers.OURS)
    assert [] == counts.missed
    assert [] == counts.alarms
    assert [] == counts.broken
    expected = {*wrongs.ELEMENTS, *wrongs.WHOLE, "conjugated", "duplicates lost", "inputs swapped", "transposed"}
    expected |= {"cotangent ignored", "cotangent squared", "wrong for strided cotangents", "rows reversed"}
    expected |= {"wrong for expanded cotangents", "broadcast not reduced: one row", "broadcast not reduced: mean"}
    expected |= {"smallest element * (1 + 1e-8)", "second derivative: lost", "claim: element * (1 + 1e-8)"}
    expected |= {wrongs.FROZEN}
    assert set() == expected - set(counts.cases)


def test_a_checker_that_passes_everything_is_noticed() -> None:
    """The corpus counts each fault that such a checker lets through, and nothing else."""
    counts = tally.Tally(["probe"])
    counts.add(judged("mul", "float64", {"probe": lambda case: PASS}))
    faulty = sum(count for fault, count in counts.cases.items() if not tally.is_right(fault))
    assert faulty == len(counts.missed) > 20
    assert [] == counts.alarms


def test_a_checker_that_fails_everything_is_noticed() -> None:
    """The corpus counts each right gradient that such a checker fails, and no miss."""
    counts = tally.Tally(["probe"])
    counts.add(judged("mul", "float64", {"probe": lambda case: FAIL}))
    assert [] == counts.missed
    expected = ["claim: right", "right", "second derivative: right"]
    assert expected == sorted(one.partition("]: ")[2] for one in counts.alarms)


def test_a_checker_that_crashes_has_caught_nothing() -> None:
    """An exception out of a check is a miss for a fault, and listed."""

    def crash(case: checkers.Case) -> str:
        raise ZeroDivisionError("planted")

    counts = tally.Tally(["probe"])
    counts.add(judged("nn.functional.softplus", "float64", {"probe": crash}))
    assert sum(counts.cases.values()) == len(counts.broken)
    assert "crashed: ZeroDivisionError: planted" in counts.broken[0]
    assert counts.missed


@pytest.mark.parametrize("name", FLOAT32)
def test_float32_claims(name: str) -> None:
    """Off by four tolerances of one element is caught, as are all coarser claims; torch's own gradient passes."""
    counts = tally.Tally(["probe", "full"]).add(low.records(name, {}))
    assert [] == counts.missed + counts.alarms + counts.broken
    assert 1 == counts.cases[low.FINEST] == counts.cases["right"]
    assert counts.tolerances[0] < 1000, "four times a tolerance that wide is no fine fault"


def test_derivatives_of_other_functions() -> None:
    """A backward that is the derivative of a neighbouring function is caught."""
    records = [{"operator": one.operator, "sample": 0, **checkers.asked(one, checkers.OURS)} for one in others.cases()]
    counts = tally.Tally(list(checkers.OURS)).add(records)
    assert [] == counts.missed + counts.alarms + counts.broken
    assert len(others.PAIRS) == counts.cases["derivative of another function"]


@pytest.mark.parametrize("name", ["amax", "relu"])
def test_kinks(name: str) -> None:
    """No gradient is passed at a kink; what no one-sided slope allows is outside, and a fault elsewhere fails."""
    said = {one.fault: kinks.said(one) for one in kinks.cases() if one.operator == name}
    assert {"NON_DIFFERENTIABLE, inside"} == set(said["kink: torch's own choice"].values())
    for fault in ("kink: twice the larger slope", "kink: minus twice the larger slope"):
        assert set(said[fault].values()) <= {"NON_DIFFERENTIABLE, outside", "FAIL"}
    assert {"FAIL"} == set(said["kink: right at the kink, wrong beside it"].values())


@pytest.mark.parametrize("name", RIGHTS)
def test_right_gradients(name: str) -> None:
    """torch's own gradients are not called wrong, nor left without an answer."""
    records = list(rights.records(name, "float64", Mode.PROBE, 3))
    _, found = alarms.counted("float64", records)
    assert records
    assert [] == found["false alarms"] + found["no answer"]


def test_what_is_known_to_be_wrong_in_torch_is_no_false_alarm() -> None:
    """It stands in a list of its own, in the dtypes and orders for which it is known."""
    record = {"operator": "nn.functional.hardsigmoid", "sample": 0, "verdict": "FAIL", "said": "slope"}
    row, found = alarms.counted("float64", [record])
    assert (["1", "0"], []) == (row[-2:], found["false alarms"])
    row, found = alarms.counted("float32", [record])
    assert (["0", "1"], ["nn.functional.hardsigmoid[0]: slope"]) == (row[-2:], found["false alarms"])
    assert known.why("nn.functional.hardsigmoid", "float32", 1) is None


def test_a_check_without_an_answer_is_listed() -> None:
    """What is refused, crashes or takes too long is no verdict, and stands in a list of its own."""
    record = {"operator": "mul", "sample": 3, "verdict": "CRASHED", "said": "ZeroDivisionError: planted"}
    row, found = alarms.counted("float64 order 2", [record])
    assert ["float64", "2", "1", "1", "0", "0", "0", "0", "0", "1", "0", "0"] == row
    assert ["mul[3]: crashed: ZeroDivisionError: planted"] == found["no answer"]


def test_kinds_of_an_earlier_run_stay_in_the_table() -> None:
    """The table has a line for each kind that was ever swept, in the same order, and what it found below."""
    kinds = {}
    for kind in ("float64 order 2", "float64"):
        row, listed = alarms.counted(kind, [{"operator": "mul", "sample": 1, "verdict": "FAIL", "said": "planted"}])
        kinds[kind] = {"date": "today", "row": row, **listed}
    lines = alarms.written(kinds, alarms.Sweep("probe")).splitlines()
    rows = [line for line in lines if line.startswith("| float64")]
    assert [
        "| float64 | 1 | 1 | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 1 | today |",
        "| float64 | 2 | 1 | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 | 1 | today |",
    ] == rows
    assert ["- float64: mul[1]: planted", "- float64 order 2: mul[1]: planted"] == [
        line for line in lines if line.startswith("- ")
    ]


def test_what_an_operator_has_often_is_one_line() -> None:
    """A sweep over all samples is a page to read still; false alarms are listed each by itself."""
    samples = [("normal", 12), ("mul", 2)]
    records = [
        {"operator": name, "sample": k, "verdict": "FAIL", "said": "no"} for name, n in samples for k in range(n)
    ]
    row, found = alarms.counted("float64", records)
    assert ["12", "2"] == row[-2:]
    (line,) = found["wrong in torch"]
    assert line.startswith("normal[0; 1; 2; 3; 8 more]: ")
    assert ["mul[0]: no", "mul[1]: no"] == found["false alarms"]


def test_a_sweep_says_how_it_is_repeated() -> None:
    """Each kind of sweep has a section of its own, with the command that made it."""
    sweep = alarms.Sweep("probe", alarms.ALL, 4)
    assert ("--mode probe --samples all --seeds 4", "right gradients, all samples, 4 seeds") == (
        sweep.options,
        sweep.section,
    )
    assert ("--mode full", "right gradients") == (alarms.Sweep("full").options, alarms.Sweep("full").section)


def subject_of(name: str) -> Subject:
    """An operator's first subject."""
    return next(subjects(name, torch.float64))


def test_faults_change_what_they_are_planted_in() -> None:
    """What does not change the gradient is no fault and no case."""
    subject = subject_of("trace")
    assert not wrongs.bites(subject, lambda inputs, cotangent, right: right)
    assert "transposed" not in wrongs.faults(subject), "trace's gradient is its own transpose"
    assert wrongs.bites(subject, wrongs.faults(subject)["element * (1 + 1e-8)"])


def test_lost_duplicates() -> None:
    """Only the last copy of an element counts, so what is copied once keeps its gradient."""
    x = torch.arange(3.0, dtype=torch.float64)
    index = torch.tensor([0, 2, 0])
    subject = Subject("gather", 0, lambda x: x.gather(0, index), (x,), lambda x: ((x,), {}))
    wrong = wrongs.duplicates_lost(subject, 0)
    assert wrong is not None
    u = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert [4.0, 0.0, 2.0] == wrong((x,), u, subject.gradients(u))[0].tolist()
    assert wrongs.duplicates_lost(Subject("sin", 0, torch.sin, (x,), lambda x: ((x,), {})), 0) is None


def test_unreduced_broadcasts() -> None:
    """One row's contribution, or the mean of all, where the sum is right."""
    x, y = torch.ones(3, 2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    subject = Subject("mul", 0, torch.mul, (x, y), lambda *both: (both, {}))
    u = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], dtype=torch.float64)
    found = {name: wrong((x, y), u, subject.gradients(u))[1].tolist() for name, wrong in wrongs.unreduced(subject)}
    assert {"broadcast not reduced: one row": [1.0, 2.0], "broadcast not reduced: mean": [3.0, 5.0]} == found


def test_what_is_not_broadcast_has_no_unreduced_fault() -> None:
    """Neither does what makes a batch of an expanded input, nor one whose backward does not take it."""

    def stubborn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if y.dim() > 1 and y.requires_grad:
            raise RuntimeError("expected 1 dimension")
        return x * y

    x, y = torch.rand(3, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    batched = Subject("diag_embed", 0, torch.diag_embed, (y,), lambda one: ((one,), {}))
    refused = Subject("stubborn", 0, stubborn, (x, y), lambda *both: (both, {}))
    assert [] == [*wrongs.unreduced(batched), *wrongs.unreduced(refused)]


@pytest.mark.parametrize(("name", "has"), [("nn.functional.softmin", False), ("log_softmax", True)])
def test_rounding_times_a_factor_is_no_fault(name: str, has: bool) -> None:
    """A softmin's gradient is nothing but rounding for a constant cotangent; that of its logarithm is something."""
    assert ("wrong for expanded cotangents" in wrongs.faults(subject_of(name))) is has


@pytest.mark.skipif(not jax_peer.installed(), reason="jax is an optional peer, and is not installed")
def test_jax_judges_the_same_cases() -> None:
    """check_grads passes a right gradient and rejects a coarse fault; it is not asked where jax lacks the operator."""
    subject = subject_of("tanh")
    found = wrongs.faults(subject)
    assert PASS == jax_peer.judge(subject, lambda inputs, cotangent, right: right)
    assert FAIL == jax_peer.judge(subject, found["sign"])
    assert jax_peer.judge(subject_of("nn.functional.selu"), found["sign"]) is None


def test_finished_operators_are_kept(tmp_path: Path) -> None:
    """Those in the file are not judged again, but counted."""
    keep = tmp_path / "kept.jsonl"
    said = {"verdicts": {"probe": "PASS"}, "seconds": {}, "raised": {}}
    record = {"operator": "mul", "sample": 0, "fault": "sign", **said}
    keep.write_text(json.dumps({"dtype": "float64", "operator": "mul", "records": [record]}) + "\n")
    found = list(faults.judged("float64", ["mul"], [], 1, keep))
    assert [("mul", [record])] == found
    counts, done = faults.counted("float64", ["probe"], iter(found), 1)
    assert 1 == done
    assert ["probe: mul[0]: sign: PASS"] == counts.missed


def test_sections_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run replaces its own dtype's section and figures, and leaves all else as it is."""
    monkeypatch.setattr(faults, "HERE", tmp_path)
    marks = {dtype: [mark.format(dtype) for mark in faults.MARKS] for dtype in ("float64", "float32")}
    text = "".join(f"words\n{start}\nold {dtype}\n{end}\n" for dtype, (start, end) in marks.items())
    (tmp_path / "faults.md").write_text(text)
    (tmp_path / "faults.json").write_text('{"float32": 1}')
    faults.write({"float64": "new\n"}, {"float64": 2})
    written = (tmp_path / "faults.md").read_text()
    assert "new" in written
    assert "old float64" not in written
    assert "old float32" in written
    assert {"float32": 1, "float64": 2} == json.loads((tmp_path / "faults.json").read_text())
