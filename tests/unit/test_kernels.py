"""Candidates: how they are run, and when an output is right."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradoracle.checks import Diagnosis, Verdict
from gradoracle.kernels import candidates, child, handover, outputs
from gradoracle.kernels.candidates import CandidateError, Task
from gradoracle.kernels.outputs import Reference

X = np.array([[1.0, 2.0], [3.0, 4.0]])
TASK = Task(inputs={"x": X, "k": np.array(3)}, cotangents={"out": np.ones((2, 2))}, wanted=("x",))

FORWARD_BACKWARD = """
import numpy as np
def forward(x, k): return x ** k
def backward(g, x, k): return g * k * x ** (k - 1), None
"""


def candidate(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_forward_and_backward_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    """Outputs and gradients come back bit for bit, and what the candidate prints disturbs nothing."""
    path = candidate(tmp_path, FORWARD_BACKWARD + "print('hello')\n")
    found = candidates.results(path, TASK)
    assert "forward and backward" == found.kind
    assert (X**3).tolist() == found.outputs["out"].tolist()  # type: ignore[union-attr]
    assert (3 * X**2).tolist() == found.gradients["x"].tolist()  # type: ignore[union-attr]


FUNCTION = """
import torch
class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, k):
        ctx.save_for_backward(x)
        return x ** 3
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * g * x * x, None
"""


def test_a_torch_candidate_gets_torch_tensors(tmp_path: Path) -> None:
    """An autograd.Function is run and differentiated where torch is the candidate's own."""
    found = candidates.results(candidate(tmp_path, FUNCTION), TASK)
    assert "torch.autograd.Function" == found.kind
    assert np.allclose(3 * X**2, found.gradients["x"], rtol=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (FUNCTION, "torch.autograd.Function"),
        ("def mine(x, k): return {'out': x ** 3}\n", "function"),
        ("def _help(x): return x ** 3\ndef anything(x, k): return _help(x)\n", "function"),
        ("def other(x): pass\ndef forward(x, k): return (x ** 3,)\n", "function"),
        (FORWARD_BACKWARD, "forward and backward"),
    ],
)
def test_what_a_candidate_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: str) -> None:
    """Whatever it is, its outputs and gradients are named."""
    import torch

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "mine", ModuleType("mine"))
    module = child.load(candidate(tmp_path, text))
    inputs = {"x": torch.from_numpy(X), "k": torch.tensor(3)}
    found = child.run(module, "mine", inputs, {"out": torch.ones(2, 2)}, ["x"])
    assert (kind, (X**3).tolist()) == (found[0], found[1]["out"].tolist())
    assert np.allclose(3 * X**2, found[2]["x"], rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n", "CANDIDATE_CRASHED", "mine.py: SIGSEGV ended it"),
        ("import sys\nsys.exit(0)\n", "CANDIDATE_CRASHED", "mine.py: it ended before it gave results"),
        ("def forward(x, k): return x[5]\ndef backward(g, x, k): pass\n", "CANDIDATE_FAILED", "IndexError: index 5"),
        (
            "def forward(x, k): return x, x\ndef backward(*a): pass\n",
            "CANDIDATE_FAILED",
            "expected 1 outputs (out), got 2",
        ),
        (
            "def forward(x, k): return x\ndef backward(*a): return 1, 2, 3\n",
            "CANDIDATE_FAILED",
            "2 gradients (x, k), got 3",
        ),
        ("def f(x, k): return x\n", "CANDIDATE_FAILED", "to define forward and backward, or to import torch"),
        ("x = (\n", "CANDIDATE_FAILED", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_candidate_without_results_is_told(tmp_path: Path, text: str, reason: str, message: str) -> None:
    """Crashes, exceptions and wrong returns, with what the candidate said last."""
    with pytest.raises(CandidateError) as told:
        candidates.results(candidate(tmp_path, text), TASK)
    assert reason == told.value.reason
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def forward(x, k)\n    return x\n", "File \"{folder}/mine.py\", line 1: SyntaxError: expected ':'"),
        ("\nimport helper\n", "File \"{folder}/helper.py\", line 2: SyntaxError: '(' was never closed"),
        (
            "import no_such_module\n",
            "File \"{folder}/mine.py\", line 1: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "def forward(x, k):\n    return f(x)\ndef f(x):\n    raise ValueError('no')\ndef backward(*a): pass\n",
            'File "{folder}/mine.py", line 4: ValueError: no',
        ),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
        ("import torch\n", "TypeError: expected mine.py to define forward and backward, one torch.autograd.Function, "),
        ("import sys\nsys.exit('no')\n", "no"),
        ("import sys\nsys.exit(3)\n", "exit code 3"),
    ],
)
def test_what_a_candidate_raised_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    """The file and line where the traceback ends; none where Python or the judge itself raised it."""
    (tmp_path / "helper.py").write_text("y = 1\nx = (\n")
    with pytest.raises(CandidateError) as told:
        candidates.results(candidate(tmp_path, text), TASK)
    assert str(told.value).startswith(f"mine.py: {said.format(folder=tmp_path)}")


def test_a_candidate_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    """The time is told, and no process is left."""
    pid = tmp_path / "pid"
    text = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\nchild.wait()\n"
    )
    for timeout in (2, 10, 60):  # until it was long enough for the candidate to begin
        task = Task(inputs=TASK.inputs, cotangents=TASK.cotangents, wanted=("x",), timeout=timeout)
        with pytest.raises(CandidateError, match=f"results within {timeout} s, got none; --candidate-timeout gives it"):
            candidates.results(candidate(tmp_path, text), task)
        if pid.exists() and pid.read_text():
            break
    ends = time.monotonic() + 60
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < ends
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not just waiting to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_saved_results(tmp_path: Path) -> None:
    """Arrays by group and name; one that is missing is told."""
    np.savez(tmp_path / "s.npz", **{"outputs.out": X, "gradients.x": 2 * X})
    found = candidates.results(tmp_path / "s.npz", TASK)
    assert ("saved", X.tolist(), (2 * X).tolist()) == (
        found.kind,
        found.outputs["out"].tolist(),  # type: ignore[union-attr]
        found.gradients["x"].tolist(),  # type: ignore[union-attr]
    )
    np.savez(tmp_path / "t.npz", **{"outputs.out": X})
    with pytest.raises(CandidateError, match=r'expected an array "gradients.x", got outputs.out'):
        candidates.results(tmp_path / "t.npz", TASK)


def test_the_folder_gives_candidates_alone(tmp_path: Path) -> None:
    """Helpers begin with an underscore; other files are none."""
    for name in ("b.py", "a.npz", "_helper.py", "notes.txt", ".hidden.py", "c.safetensors"):
        (tmp_path / name).touch()
    assert ["a.npz", "b.py", "c.safetensors"] == [path.name for path in candidates.found(tmp_path)]


def test_arrays_keep_their_dtypes_between_processes(tmp_path: Path) -> None:
    """bfloat16 too, and None stays None."""
    arrays: dict[str, Any] = {"a": np.array([1.5], ml_dtypes.bfloat16), "b": None, "c": np.array(2 + 1j)}
    handover.write(tmp_path / "h.npz", {"g": arrays}, note="n")
    groups, notes = handover.read(tmp_path / "h.npz")
    found = groups["g"]
    assert ({"note": "n"}, None, np.dtype(ml_dtypes.bfloat16), 2 + 1j) == (
        notes,
        found["b"],
        found["a"].dtype,  # type: ignore[union-attr]
        found["c"],
    )


# ---- Outputs


def reference(own: np.ndarray, exact: np.ndarray | None = None, moved: float = 0.0) -> Reference:
    return Reference({"y": own}, {"y": own.astype(float) if exact is None else exact}, {"y": np.full(own.shape, moved)})


SMALL = np.linspace(1, 2, 40)


@pytest.mark.parametrize(
    ("candidate", "diagnosis"),
    [
        (-SMALL, Diagnosis.SIGN_FLIPPED),
        (1.001 * SMALL, Diagnosis.SCALED),
        (np.zeros(40), Diagnosis.ZEROED),
        (np.where(np.arange(40) == 7, SMALL + 1e-9, SMALL), Diagnosis.SINGLE_ELEMENTS),
        (np.where(np.arange(40) == 7, np.nan, SMALL), Diagnosis.NAN),
        (SMALL[::-1].copy(), Diagnosis.UNKNOWN),
    ],
)
def test_wrong_outputs_are_found_and_named(candidate: np.ndarray, diagnosis: Diagnosis) -> None:
    """The worst element stands first, with what it should be."""
    found = outputs.judge("y", candidate, reference(SMALL))
    assert (Verdict.FAIL, diagnosis, "output y") == (found.verdict, found.diagnosis, found.name)
    assert found.worst[0].claimed != found.worst[0].numerical


def test_the_rule_for_outputs() -> None:
    """Twice torch's own error, eight times the movement, sixteen units of the last place: within is right."""
    eps = np.finfo(np.float32).eps
    exact = SMALL + 1e-3
    own = SMALL.astype(np.float32)
    rms = float(np.sqrt(np.mean(exact**2)))
    torchs = float(np.max(np.abs(own - exact)))
    bound = 2 * torchs + 8 * 1e-3 + 16 * eps * (np.abs(exact) + rms)
    for factor, verdict in ((0.999, Verdict.PASS), (1.001, Verdict.FAIL)):
        mine = (exact + factor * bound).astype(np.float32)
        found = outputs.judge("y", mine, Reference({"y": own}, {"y": exact}, {"y": np.full(40, 1e-3)}))
        assert verdict is found.verdict, factor


@pytest.mark.parametrize(
    ("candidate", "text"),
    [
        (SMALL.astype(np.float32), "Expected float64 [40], got float32 [40]."),
        (SMALL[:3], "Expected float64 [40], got float64 [3]."),
        (None, "Expected float64 [40], got none."),
    ],
)
def test_shape_and_dtype_must_be_the_references(candidate: Any, text: str) -> None:
    """Nothing is cast or broadcast."""
    found = outputs.judge("y", candidate, reference(SMALL))
    assert (Verdict.FAIL, text) == (found.verdict, found.explanation)


def test_nan_and_infinity_must_stand_where_the_references_do() -> None:
    """The same infinity passes, the other one or a number fails."""
    own = np.array([np.inf, np.nan, 1.0])
    verdicts = [
        outputs.judge("y", np.array(mine), reference(own)).verdict
        for mine in ([np.inf, np.nan, 1.0], [-np.inf, np.nan, 1.0], [np.inf, 0.0, 1.0], [1e308, np.nan, 1.0])
    ]
    assert [Verdict.PASS, Verdict.FAIL, Verdict.FAIL, Verdict.FAIL] == verdicts


def test_whole_numbers_must_be_equal() -> None:
    """An index that is off by one is wrong."""
    own = np.array([1, 2])
    assert [Verdict.PASS, Verdict.FAIL] == [
        outputs.judge("y", np.array([1, k]), reference(own, own)).verdict for k in (2, 3)
    ]
