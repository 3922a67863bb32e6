"""The served vocabulary: read from torch's dispatcher, refusals with reasons, and shipped to the client as data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradoracle_server.engine import operators

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "client" / "gradoracle" / "operators.json"


def test_the_shipped_table_is_this_torchs(tmp_path: Path) -> None:
    """The table in the repository is what the generator writes with the torch release that it names; a table that
    lacks one operator differs."""
    shipped = json.loads(TABLE.read_text())
    release = torch.__version__.partition("+")[0]
    if shipped["torch"] != release:
        pytest.skip(f"the table is of torch {shipped['torch']}, and this is {release}")
    fresh = tmp_path / "operators.json"
    subprocess.run([sys.executable, str(ROOT / "server" / "generate_operators.py"), str(fresh)], check=True)
    assert TABLE.read_text() == fresh.read_text()
    planted = json.loads(fresh.read_text())
    del planted["operators"]["aten.add.Tensor"]
    assert planted != shipped


def test_nothing_outside_the_dispatcher_is_known() -> None:
    """Overloads that torch.ops resolves but the dispatcher does not list (the JIT's own) do not exist here."""
    assert torch.ops.aten.save.default is not None
    assert operators.find("aten.save.default") is None
    assert operators.find("aten.manual_seed.default") is None
    assert operators.find("quantized.add.default") is None


REFUSED = {
    "aten.from_file.default": "reads files, writes to the console or ends the process",
    "aten._print.default": "reads files, writes to the console or ends the process",
    "aten.set_.source_Tensor": "swaps a tensor's storage or reaches past its bounds",
    "aten._reshape_alias.default": "swaps a tensor's storage or reaches past its bounds",
    "aten.resize_.default": "swaps a tensor's storage or reaches past its bounds",
    "aten.empty.memory_format": "returns uninitialised memory; use zeros",
    "aten.new_empty.default": "returns uninitialised memory; use zeros",
    "aten._test_optional_intlist.default": "is one of torch's self-tests",
    "aten.quantize_per_tensor.default": "works on quantized or packed tensors, which have no wire form",
    "aten._fused_adam.default": "is a fused optimiser step",
    "aten.record_stream.default": "manages a device, not values",
    "aten._pin_memory.default": "manages a device, not values",
    "aten._remove_batch_dim.default": "is autograd's or vmap's own bookkeeping",
    "aten.add.out": "writes its result into an argument; use the functional form",
    "aten.rand.generator": 'needs a Optional[Generator] for "generator", which has no wire form',
    "aten.size.int": "returns no tensor",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_have_their_reason(name: str) -> None:
    """Each class of operators that is not served is refused with the reason of its class."""
    operator = operators.find(name)
    assert operator is not None
    assert operator.refused == REFUSED[name]


@pytest.mark.parametrize(
    "name",
    ["aten.add.Tensor", "aten.add_.Tensor", "aten.zero_.default", "aten.detach_.default", "aten.clamp_.default",
     "aten._batch_norm_with_update.default", "aten._softmax.default", "aten.max.dim", "aten.split.Tensor"],
)  # fmt: skip
def test_what_tracing_yields_is_served(name: str) -> None:
    """Functional overloads, private ones that traces hold, and in-place ones are served."""
    operator = operators.find(name)
    assert operator is not None
    assert operator.refused == ""


def test_flags_are_torchs() -> None:
    """differentiable and random say what autograd and torch's tags say."""
    rows = {row["name"]: row for row in operators.table()}
    assert len(rows) == len(operators.names())

    def flags(name: str) -> tuple[object, object]:
        return rows[name]["differentiable"], rows[name]["random"]

    assert flags("aten.mul.Tensor") == (True, False)
    assert flags("aten._safe_softmax.default") == (True, False)
    assert flags("aten.relu_.default") == (True, False)
    assert flags("aten.dropout.default") == (True, True)
    assert flags("aten.bernoulli.p") == (True, True)
    assert flags("aten.randn.default") == (False, True)
    assert flags("aten.eq.Tensor") == (False, False)
    assert flags("aten.detach.default") == (False, False)
    assert flags("aten.argmax.default") == (False, False)
