"""torch's schemas and the table of operators."""

from __future__ import annotations

import pytest

from gradoracle import operators, schema
from gradoracle.errors import UnsupportedOperatorError
from gradoracle.schema import Parameter, Return


def test_parameters_are_read_in_order() -> None:
    """Kind, default, and what stands behind the star are read from the text."""
    found = schema.parse("aten::add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor")
    assert found.target == "aten.add.Tensor"
    assert found.parameters == (
        Parameter("self", "Tensor"),
        Parameter("other", "Tensor"),
        Parameter("alpha", "Scalar", required=False, keyword_only=True),
    )
    assert found.returns == (Return(None, is_tensor=True, is_list=False),)
    assert found.returns_tensor
    assert not found.returns_list


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tensor(a -> *) p", Parameter("p", "Tensor")),
        ("Tensor?[] p", Parameter("p", "Tensor", is_list=True, optional_items=True)),
        ("SymInt[1]? p=None", Parameter("p", "int", is_list=True, size=1, optional=True, required=False)),
        ("ScalarType? p=None", Parameter("p", "dtype", optional=True, required=False)),
        ("int[2] p=[0, 1]", Parameter("p", "int", is_list=True, size=2, required=False)),
        ('str p="a, b"', Parameter("p", "str", required=False)),
        ("bool[3] p", Parameter("p", "bool", is_list=True, size=3)),
        ("MemoryFormat p", Parameter("p", "memory_format")),
    ],
)
def test_types(text: str, expected: Parameter) -> None:
    """Lists, sizes, options and aliases are told apart; commas in brackets and quotes do not part parameters."""
    assert schema.parse(f"aten::f({text}, int last=0) -> Tensor").parameters[0] == expected


def test_returns() -> None:
    """Tuples keep the names of their elements; a list is one result."""
    found = schema.parse("aten::max.dim(Tensor self, int dim, bool keepdim=False) -> (Tensor values, Tensor indices)")
    assert [one.name for one in found.returns] == ["values", "indices"]
    assert not found.returns_tensor
    assert schema.parse("aten::split.Tensor(Tensor(a -> *) self, SymInt n) -> Tensor(a)[]").returns_list


def test_bad_schema() -> None:
    """What is no schema is refused by its text."""
    with pytest.raises(ValueError, match="expected a schema such as"):
        schema.parse("add(Tensor self)")


def test_every_schema_of_the_table() -> None:
    """Each operator's schema can be read, and names the operator under which it stands."""
    for name, operator in operators.table().served.items():
        assert operator.schema.target == name
        assert operator.schema.returns


def test_families_hold_every_overload() -> None:
    """An operator's overloads stand together, those with a correction before those without, as torch tries them."""
    table = operators.table()
    assert sum(map(len, table.families.values())) == len(table.served)
    assert [one.name for one in table.family("std")] == ["aten.std.dim", "aten.std.correction", "aten.std.default"]


def test_unknown_operator() -> None:
    """An unknown name gets the nearest public ones."""
    with pytest.raises(UnsupportedOperatorError) as caught:
        operators.table().family("sofmax")
    assert str(caught.value) == 'no operator "sofmax"; did you mean "softmax" or "fmax" or "log_softmax"?'
    assert caught.value.reason == "UNKNOWN_OPERATOR"
    assert caught.value.metadata == {"target": "sofmax", "nearest": "softmax, fmax, log_softmax"}


def test_unknown_overload() -> None:
    """An unknown overload of a known operator gets all the others."""
    with pytest.raises(UnsupportedOperatorError) as caught:
        operators.table().overload("aten.pow.Tensor")
    assert str(caught.value) == (
        'no overload "aten.pow.Tensor"; those of "pow" are '
        "aten.pow.Tensor_Tensor, aten.pow.Tensor_Scalar, aten.pow.Scalar"
    )


def test_refused_operator() -> None:
    """A refused operator says why."""
    with pytest.raises(UnsupportedOperatorError) as caught:
        operators.table().family("item")
    assert caught.value.reason == "OPERATOR_REFUSED"
    assert str(caught.value) == f'"item" is not served: it {caught.value.metadata["why"]}'
