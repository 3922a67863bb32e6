"""Which cases a run takes: selections, shards, repetitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batch_cases import case, write

from gradoracle.batch import cases
from gradoracle.batch.case_files import CaseFile
from gradoracle.batch.selection import Selection
from gradoracle.batch.shards import Plan, Shard
from gradoracle.errors import InvalidRequestError

CASE = cases.parse(
    b'{"id": "Softmax-3", "expression": "x", "labels": {"dtype": "float32", "operator": "aten.mul.Tensor"}, '
    b'"options": {"device": "cuda:1"}}',
    7,
)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("softmax", True),
        ("softmax and not float32", False),
        ("float64 or mul", True),
        ("dtype == float32", True),
        ("dtype != float32", False),
        ("operator == aten.mul.Tensor", True),
        ("'mul' in operator", True),
        ("'add' not in operator", True),
        ("dtype in (float32, bfloat16)", True),
        ("dtype not in [float32]", False),
        ("id == 'Softmax-3' and method == check", True),
        ("device == 'cuda:1'", True),
        ("line < 7", False),
        ("line >= 7 and line <= 7", True),
        ("nothing == here", False),
        ('"cuda"', False),
    ],
)
def test_selections(text: str, taken: bool) -> None:
    """Words are found in ids and labels; fields are compared."""
    assert taken is Selection(text).matches(CASE)


@pytest.mark.parametrize(
    "text", ["", "dtype ==", "__import__('os')", "dtype < 3", "line == x", "a + b", "dtype is x", "1 < line < 3", "x()"]
)
def test_what_is_no_selection_is_told(text: str) -> None:
    """Nothing is evaluated, and the text stands in the error."""
    with pytest.raises(InvalidRequestError, match="select: expected words and comparisons, such as") as told:
        Selection(text)
    assert repr(text) in str(told.value)


def taken(path: Path, **plan: Any) -> list[str]:
    return [entry.id for entry in Plan(**plan).entries(CaseFile(str(path)))]


def test_shards_share_the_cases_out(tmp_path: Path) -> None:
    """Every case, and every broken line, is in exactly one shard, and shards differ by one case at most."""
    path = write(
        tmp_path / "c.jsonl", *(case(f"c{k}") for k in range(9)), "{broken", *(case(f"d{k}") for k in range(4))
    )
    for count in (1, 2, 3, 5, 20):
        parts = [taken(path, shard=Shard(index, count)) for index in range(count)]
        assert sorted(taken(path)) == sorted(name for part in parts for name in part)
        assert 1 >= max(map(len, parts)) - min(map(len, parts))


def test_shards_share_out_what_is_selected(tmp_path: Path) -> None:
    """A selection that takes every second case leaves no shard empty."""
    path = write(tmp_path / "c.jsonl", *(case(f"c{k}", labels={"half": str(k % 2)}) for k in range(8)))
    parts = [taken(path, shard=Shard(index, 2), selection=Selection("half == 0")) for index in range(2)]
    assert [["c0", "c4"], ["c2", "c6"]] == parts


@pytest.mark.parametrize("text", ["", "1", "1/1", "4/4", "-1/4", "a/b", "0/0", "1/2/3", "0x1/2"])
def test_what_is_no_shard_is_told(text: str) -> None:
    """i/n with i from 0 to n - 1."""
    with pytest.raises(InvalidRequestError, match="expected i/n with i from 0 to n - 1, such as 0/4, got"):
        Shard.parse(text)


def test_kubernetes_tells_the_shard() -> None:
    """Both variables give a shard, none of them everything, one alone an error that names the other."""
    both = {"JOB_COMPLETION_INDEX": "2", "GRADORACLE_SHARDS": "4"}
    assert (Shard(2, 4), Shard(0, 1)) == (Shard.of_environment(both), Shard.of_environment({}))
    for name, other in (tuple(both), tuple(reversed(both))):
        with pytest.raises(InvalidRequestError, match=f"{name} is set, expected {other} too"):
            Shard.of_environment({name: both[name]})
    with pytest.raises(InvalidRequestError, match="from JOB_COMPLETION_INDEX and GRADORACLE_SHARDS"):
        Shard.of_environment({**both, "GRADORACLE_SHARDS": "2"})


def test_repetitions_have_ids_and_checks_other_seeds(tmp_path: Path) -> None:
    """A check looks in other directions each time; other methods ask the same again; a broken line stands once."""
    path = write(tmp_path / "c.jsonl", case("a", method="check", options={"seed": 5}), case("b"), "[]")
    entries = list(Plan(repeat=2).entries(CaseFile(str(path))))
    assert ["a [1/2]", "a [2/2]", "b [1/2]", "b [2/2]", "line 3"] == [entry.id for entry in entries]
    assert [5, 6, None, None] == [entry.case.options.get("seed") for entry in entries if entry.case]
