"""Overload choice: for every operator call that the samples of torch's own database make, `go.ops` takes the overload
that torch took."""

from __future__ import annotations

import collections
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import gradoracle as go
from conformance import samples
from gradoracle import binding
from gradoracle.operators import Operator, table
from gradoracle.v1 import graph_pb2, tensor_pb2
from gradoracle.values import Value

VECTOR = "torch's interpolate names this overload itself; both take output sizes, and compute the same"
CORRECTION = "without arguments both mean a correction of 1 over all dimensions"
EQUIVALENT = {
    "aten.linalg_pinv.atol_rtol_tensor": ("aten.linalg_pinv.atol_rtol_float", "both tolerances are None"),
    "aten.std.default": ("aten.std.correction", CORRECTION),
    "aten.std_mean.default": ("aten.std_mean.correction", CORRECTION),
    "aten.var.default": ("aten.var.correction", CORRECTION),
    "aten.var_mean.default": ("aten.var_mean.correction", CORRECTION),
    "aten.upsample_nearest1d.vec": ("aten.upsample_nearest1d.default", VECTOR),
    "aten.upsample_linear1d.vec": ("aten.upsample_linear1d.default", VECTOR),
    "aten.upsample_bilinear2d.vec": ("aten.upsample_bilinear2d.default", VECTOR),
    "aten.upsample_bicubic2d.vec": ("aten.upsample_bicubic2d.default", VECTOR),
    "aten.upsample_trilinear3d.vec": ("aten.upsample_trilinear3d.default", VECTOR),
    "aten._upsample_bilinear2d_aa.vec": ("aten._upsample_bilinear2d_aa.default", VECTOR),
    "aten._upsample_nearest_exact1d.vec": ("aten._upsample_nearest_exact1d.default", VECTOR),
}
"""Recorded overload: (the one that is chosen, why that is the same)."""


class UnwritableError(Exception):
    """An argument that a caller of go.ops does not write: a whole list of a node, a layout, a memory format."""


def written(argument: graph_pb2.Argument, graph: go.Graph, lists: set[str]) -> Any:
    """An argument of a recorded node as a caller of go.ops writes it."""
    kind = argument.WhichOneof("kind")
    if kind == "value" and argument.value not in lists:
        return Value(graph, argument.value)
    if kind == "none":
        return None
    if kind in ("integer", "real", "boolean", "text"):
        return getattr(argument, kind)
    if kind == "complex":
        return complex(argument.complex.real, argument.complex.imag)
    if kind == "integers":
        return list(argument.integers.values)
    if kind == "list":
        return [written(item, graph, lists) for item in argument.list.items]
    if kind == "dtype":
        return tensor_pb2.Dtype.Name(argument.dtype).removeprefix("DTYPE_").lower()
    raise UnwritableError


def calls(operator: Any) -> Iterator[tuple[Operator, list[Any], dict[str, Any]]]:
    """The operator calls in the trace of the first sample, with arguments as a caller writes them."""
    for case in samples.cases(operator, torch.float64, 1):
        graph = go.trace(case.fn, *case.args, **case.kwargs)
        lists: set[str] = set()
        for node in graph.message.nodes:
            if not node.target.startswith("aten."):
                continue
            recorded = table().overload(node.target)
            if recorded.schema.returns[0].is_list:
                lists.add(node.name)
            try:
                args = [written(one, graph, lists) for one in node.args]
                kwargs = {one.name: written(one.argument, graph, lists) for one in node.kwargs}
            except UnwritableError:
                continue
            yield recorded, args, kwargs


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """The tensors are small: several threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.filterwarnings("ignore")  # torch deprecates some of what its own samples use
def test_go_ops_takes_torchs_overload() -> None:
    """The overload is the recorded one, or one that is known to be the same for those arguments."""
    count, others = 0, collections.Counter[tuple[str, str]]()
    for operator in samples.operators(torch.float64)[::3]:  # all of them take a minute, and showed no other pair
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for recorded, args, kwargs in calls(operator):
                base = recorded.name.split(".")[1]
                chosen, _ = binding.choose(base, table().family(base), args, kwargs)
                count += 1
                if chosen.name not in (recorded.name, EQUIVALENT.get(recorded.name, ("", ""))[0]):
                    others[recorded.name, chosen.name] += 1
    assert not others
    assert count > 250


def test_a_wrong_choice_would_be_seen() -> None:
    """The comparison tells overloads of one operator apart: a number is not a tensor here."""
    g = go.Graph()
    x = g.input("x")
    assert binding.choose("pow", table().family("pow"), [x, 2], {})[0].name == "aten.pow.Tensor_Scalar"
    assert binding.choose("pow", table().family("pow"), [x, x], {})[0].name == "aten.pow.Tensor_Tensor"
    assert binding.choose("pow", table().family("pow"), [2, x], {})[0].name == "aten.pow.Scalar"
