"""Sweeps and candidates against a real server."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gradoracle import cli
from gradoracle.batch.records import read_results

CANDIDATES = {
    "right.py": "import numpy as np\ndef forward(x, w): return np.tanh(x @ w)\n"
    "def backward(g, x, w):\n    d = g * (1 - np.tanh(x @ w) ** 2)\n    return d @ w.T, x.T @ d\n",
    "wrong_gradient.py": "import numpy as np\ndef forward(x, w): return np.tanh(x @ w)\n"
    "def backward(g, x, w):\n    d = g * (1 - np.tanh(x @ w) ** 2)\n    return {'x': d @ w.T, 'w': 2 * (x.T @ d)}\n",
    "wrong_output.py": "import numpy as np\ndef forward(x, w): return np.tanh(x @ w) + 1e-6\n"
    "def backward(g, x, w):\n    d = g * (1 - np.tanh(x @ w) ** 2)\n    return d @ w.T, x.T @ d\n",
    "crash.py": "import os\nos.abort()\n",
}


def test_a_sweep_runs_from_one_command_to_the_next(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gradoracle sweep … | gradoracle batch -`: right operators pass, and one that torch has wrong is found."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)
    assert 0 == cli.main(
        ["sweep", "aten.tanh_.default", "linalg_cholesky", "hardsigmoid", "--layouts", "strided,contiguous"]
    )
    text = capsys.readouterr().out
    (tmp_path / "stdin").write_text(text)
    with (tmp_path / "stdin").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert 1 == cli.main(["batch", "-", "--out", str(tmp_path / "r.jsonl")])
    found = {one.id: one for one in read_results(tmp_path / "r.jsonl")}
    assert {json.loads(line)["id"] for line in text.splitlines()} == set(found)
    wrong = {name for name, one in found.items() if one.outcome == "FAIL"}
    # torch's hardsigmoid multiplies by 1/6 in single precision, whatever the dtype.
    assert {name for name in found if "hardsigmoid" in name} == wrong
    assert {"PASS"} == {one.outcome for name, one in found.items() if name not in wrong}


def told() -> Counter[str]:
    """The operators that fail in the shipped cases, as the corpus' README tells them: overloads with their counts."""
    text = resources.files("gradoracle").joinpath("corpus/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \| (\d+) \| ", text, re.MULTILINE)
    found: Counter[str] = Counter()
    for names, count in rows:
        operators = re.findall("`(.*?)`", names)
        found |= Counter({name: int(count) // len(operators) for name in operators})
    return +found


def test_what_fails_in_the_corpus_is_what_its_readme_tells(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the operators in its table, as many cases fail as it says; and of their neighbours in the corpus, none."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)
    listed = told()
    assert (9, 16) == (len(listed), listed.total())
    words = ("hardsigmoid", "celu", "ldexp", "ctc_loss", "conv_tbc", "as_strided", "hardtanh", "elu")
    out = str(tmp_path / "r.jsonl")
    assert 1 == cli.main(["batch", "corpus:float64", "--out", out, "--select", " or ".join(words), "--quiet"])
    records = list(read_results(out))
    failed = Counter(one.labels["operator"].split(".")[1] for one in records if one.outcome == "FAIL")
    assert listed == failed
    assert {"PASS", "FAIL"} == {one.outcome for one in records}
    assert len(records) > 2 * listed.total()


def test_candidates_are_judged_and_ranked(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right one first; wrong outputs and gradients are named, and a crash is a result."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)
    folder = tmp_path / "candidates"
    folder.mkdir()
    for name, text in CANDIDATES.items():
        (folder / name).write_text(text)
    inputs = {"x": np.linspace(-1, 1, 6).reshape(2, 3), "w": np.linspace(0.2, 1, 6).reshape(3, 2)}
    np.savez(tmp_path / "inputs.npz", **inputs)
    out, page = tmp_path / "r.jsonl", tmp_path / "r.html"
    arguments = ["judge", "tanh(x @ w)", str(folder), "--inputs", str(tmp_path / "inputs.npz")]
    assert 1 == cli.main([*arguments, "--out", str(out), "--report", str(page), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [(1, "right.py"), (4, "crash.py")] == [(one["rank"], one["id"]) for one in (document[0], document[-1])]
    found = {one.id: one for one in read_results(out)}
    assert ["PASS", "FAIL", "FAIL", "ERROR"] == [found[name].outcome for name in CANDIDATES]
    assert found["wrong_gradient.py"].report is not None
    assert found["wrong_output.py"].report is not None
    gradient, output = found["wrong_gradient.py"].report.inputs, found["wrong_output.py"].report.inputs
    assert {"output out": None, "x": None, "w": "SCALED"} == {name: one.diagnosis for name, one in gradient.items()}
    assert ["FAIL", "PASS", "PASS"] == [one.verdict for one in output.values()]
    assert "crash.py: SIGABRT ended it" == found["crash.py"].error.message  # type: ignore[union-attr]
    assert "wrong_gradient.py" in page.read_text()


def test_candidates_may_be_given_drawn_inputs(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server draws them once, and every candidate gets the same; single precision has its own bounds."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)
    (tmp_path / "right.py").write_text(CANDIDATES["right.py"])
    assert 0 == cli.main(["judge", "tanh(x @ w)", str(tmp_path), "x=normal:4x3:float32", "w=normal:3x2:float32"])
    assert "right.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "x", "no-folder", "x=1"], "no-folder: expected a folder of candidates, got: No such file"),
        (["judge", "x", ".", "x=1"], ".: expected candidates (.py, .npz, .safetensors), got none"),
    ],
)
def test_a_folder_without_candidates_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Exit code 2, before a server is asked."""
    monkeypatch.chdir(tmp_path)
    assert 2 == cli.main(arguments)
    assert message in capsys.readouterr().err
