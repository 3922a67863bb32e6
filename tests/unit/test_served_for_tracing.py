"""What tracing needs of the server beyond the plain operators."""

from __future__ import annotations

import pytest
import torch
from engine_cases import CPU, graph, node, phases

from gradoracle_server.engine import evaluate, operators, plan
from gradoracle_server.engine.errors import Fault
from gradoracle_server.worker.tensors import row_major


@pytest.mark.parametrize(
    "name",
    [
        "aten.segment_reduce.default",
        "aten.as_strided_copy.default",
        "aten.as_strided_scatter.default",
        "aten._unsafe_masked_index.default",
        "aten._unsafe_masked_index_put_accumulate.default",
        "aten.sparse_compressed_tensor.comp_plain_value_size",
        "aten.sparse_coo_tensor.indices_size",
    ],
)
def test_served(name):
    """Operators of PyTorch's own database, and what makes sparse tensors of dense ones, are served."""
    assert operators.find(name).refused == ""


@pytest.mark.parametrize(
    "name", ["aten.as_strided_.default", "aten._unsafe_index.Tensor", "aten._sparse_coo_tensor_unsafe.default"]
)
def test_still_refused(name):
    """Their neighbours that check nothing are not."""
    assert operators.find(name).refused


def test_indices_of_sparse_tensors_are_checked():
    """A request cannot make a sparse tensor whose indices leave it."""
    made = plan.build(
        graph(
            "i v",
            [
                node("s", "sparse_coo_tensor.indices_size", "%i", "%v", [2, 2]),
                node("d", "to_dense.default", "%s"),
            ],
            "d",
        ),
        CPU,
    )
    values = torch.ones(2)
    inside = evaluate.evaluate(made, {"i": torch.tensor([[0, 1], [1, 0]]), "v": values}, phases())
    assert inside[0].tolist() == [[0, 1], [1, 0]]
    with pytest.raises(Fault, match="size is inconsistent with indices"):
        evaluate.evaluate(made, {"i": torch.tensor([[0, 99], [1, 0]]), "v": values}, phases())


def test_zeros_without_memory():
    """Gradients that autograd knows to be zero have no memory, and are zeros on the wire."""
    zeros = torch._efficientzerotensor((2, 3), dtype=torch.float64)
    assert row_major(zeros).tolist() == [[0, 0, 0], [0, 0, 0]]
