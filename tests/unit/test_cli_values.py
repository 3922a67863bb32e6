"""How tensors are typed, and how arrays are shown."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradoracle.cli import output, values
from gradoracle.cli.failures import InputError
from gradoracle.v1 import tensor_pb2


def parse(text: str, **options: Any) -> Any:
    """The tensor that a text describes."""
    return values.parse("x", text, seeds=itertools.count(), **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", np.array(2.0)),
        ("-2.5e3", np.array(-2500.0)),
        ("[1,1,1]", np.ones(3)),
        ("[[1, 2], [3, 4]]", np.array([[1.0, 2.0], [3.0, 4.0]])),
        ("(1, 2)", np.array([1.0, 2.0])),
        ("[]", np.array([])),
        ("[nan, inf, -inf]", np.array([np.nan, np.inf, -np.inf])),
        ("[1+2j, -1-2j, 3]", np.array([1 + 2j, -1 - 2j, 3])),
        ("[true, False]", np.array([True, False])),
        ("[1,2]:int64", np.array([1, 2])),
        ("0.1:float32", np.array(0.1, dtype=np.float32)),
        ("[0.1,1]:bfloat16", np.array([0.1, 1], dtype=ml_dtypes.bfloat16)),
        ("[inf,nan]:float16", np.array([np.inf, np.nan], dtype=np.float16)),
        ("99999999999999999999:float32", np.array(1e20, dtype=np.float32)),
        ("1:complex64", np.array(1, dtype=np.complex64)),
        ("[1,0]:bool", np.array([True, False])),
        ("99999999999999999999", np.array(1e20)),
    ],
)
def test_numbers(text: str, expected: np.ndarray) -> None:
    """Numbers are float64, complex128 or bool as they are typed, or of the dtype that follows them."""
    got = parse(text)

    assert (expected.dtype, expected.shape) == (got.dtype, got.shape)
    assert np.array_equal(expected, got, equal_nan=expected.dtype.kind in "fc")


def test_whole_numbers_stay_whole_without_grad() -> None:
    """An input that asks for no gradient may be an index: whole numbers are int64, others are not touched."""
    assert np.dtype(np.int64) == parse("[1,2]", floating=False).dtype
    assert np.dtype(np.float64) == parse("[1,2.5]", floating=False).dtype
    assert np.dtype(np.float64) == parse("[1,2]").dtype


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal:8x64", "dtype: DTYPE_FLOAT64 shape: 8 shape: 64 random { normal { mean: 0 std: 1 } }"),
        (
            "normal:4:float32:seed=3:std=0.5:mean=-1",
            "dtype: DTYPE_FLOAT32 shape: 4 random { normal { mean: -1 std: 0.5 } seed: 3 }",
        ),
        ("uniform:scalar:low=-1", "dtype: DTYPE_FLOAT64 random { uniform { low: -1 high: 1 } }"),
        ("integers:-2:10:2x3", "dtype: DTYPE_INT64 shape: 2 shape: 3 random { integers { low: -2 high: 10 } }"),
        ("integers:0:10:3:float64", "dtype: DTYPE_FLOAT64 shape: 3 random { integers { low: 0 high: 10 } }"),
        ("ones:3x3", "dtype: DTYPE_FLOAT64 shape: 3 shape: 3 fill { integer: 1 }"),
        ("zeros:0x3:int8", "dtype: DTYPE_INT8 shape: 0 shape: 3 fill { integer: 0 }"),
        ("fill:2.5:3", "dtype: DTYPE_FLOAT64 shape: 3 fill { real: 2.5 }"),
        ("fill:-1:3", "dtype: DTYPE_FLOAT64 shape: 3 fill { integer: -1 }"),
        ("fill:true:2:bool", "dtype: DTYPE_BOOL shape: 2 fill { boolean: true }"),
        ("fill:1+2j:2:complex64", "dtype: DTYPE_COMPLEX64 shape: 2 fill { complex { real: 1 imag: 2 } }"),
    ],
)
def test_drawn(text: str, expected: str) -> None:
    """What the server shall make is described to it, and no tensor is sent."""
    from google.protobuf import text_format

    assert text_format.Parse(expected, tensor_pb2.Tensor()) == parse(text)


def test_random_tensors_without_a_seed_differ() -> None:
    """Random tensors that name no seed take 0, 1, 2, … in their order; one that names one takes none away."""
    seeds = itertools.count()
    drawn = [
        values.parse("x", text, seeds=seeds)
        for text in ("normal:3", "normal:3:seed=7", "uniform:3", "ones:3", "normal:3")
    ]

    assert [0, 7, 1, 0, 2] == [tensor.random.seed for tensor in drawn]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two", "x: expected numbers, @FILE, or one of normal, uniform, integers, ones, zeros, fill, got 'two'"),
        (
            "normall:3",
            "x: expected numbers, @FILE, or one of normal, uniform, integers, ones, zeros, fill, "
            "got 'normall:3'; did you mean \"normal\"?",
        ),
        (
            "__import__('os').getcwd()",
            "x: expected a number or nested lists of numbers, such as [[1,2],[3,4]], got \"__import__('os').getcwd()\"",
        ),
        ("[1,2", "x: expected a number or nested lists of numbers, such as [[1,2],[3,4]], got '[1,2'"),
        ("'a'", "x: expected a number or nested lists of numbers, such as [[1,2],[3,4]], got \"'a'\""),
        ("-[1]", "x: expected a number or nested lists of numbers, such as [[1,2],[3,4]], got '-[1]'"),
        ("[1,[2]]", "x: expected rows of equal length, got [1, [2]]"),
        ("[1.5]:int64", "x: expected whole numbers for int64, got [1.5]"),
        ("300:uint8", "x: expected numbers that uint8 can hold, got 300"),
        ("70000:float16", "x: expected numbers that float16 can hold, got 70000"),
        ("[0, 1e30]:float8_e4m3fn", "x: expected numbers that float8_e4m3fn can hold, got [0, 1e+30]"),
        ("1j:float64", "x: expected real numbers for float64, got 1j"),
        ("normal", "x: expected normal:SIZE[:DTYPE][:mean=MEAN][:std=STD][:seed=SEED], got 'normal'"),
        ("normal:axb", "x: expected a size such as 8x64, 5 or scalar, got 'axb'"),
        ("normal:-3", "x: expected a size such as 8x64, 5 or scalar, got '-3'"),
        (
            "normal:3:low=1",
            "x: expected normal:SIZE[:DTYPE][:mean=MEAN][:std=STD][:seed=SEED], got low=1 in 'normal:3:low=1'",
        ),
        ("normal:3:std=a", "x: expected normal:SIZE[:DTYPE][:mean=MEAN][:std=STD][:seed=SEED], got 'a' for std"),
        ("integers:0:3", "x: expected integers:LOW:HIGH:SIZE[:DTYPE][:seed=SEED], got 'integers:0:3'"),
        ("integers:0:1e3:3", "x: expected integers:LOW:HIGH:SIZE[:DTYPE][:seed=SEED], got '1e3' for high"),
        (
            "uniform:2:seed=18446744073709551616",
            "x: expected uniform:SIZE[:DTYPE][:low=LOW][:high=HIGH][:seed=SEED], "
            "got 'uniform:2:seed=18446744073709551616': "
            "uniform: expected a seed from 0 to 2**64 - 1, got 18446744073709551616",
        ),
    ],
)
def test_bad_values(text: str, message: str) -> None:
    """An error says which input, what was expected, and what came."""
    with pytest.raises(InputError) as caught:
        parse(text)

    assert message == caught.value.message


def test_unknown_dtype_names_the_nearest() -> None:
    """An unknown dtype is answered with the nearest."""
    for text in ("2:flot32", "ones:2:flot32"):
        with pytest.raises(InputError) as caught:
            parse(text)
        assert caught.value.message.startswith("x: expected a dtype, got 'flot32'; did you mean \"float32\"")


def test_long_values_are_cut_in_errors() -> None:
    """An error stays one readable line however long the value."""
    with pytest.raises(InputError) as caught:
        parse("[" * 3000)

    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["x"], "input: expected NAME=VALUE, such as x=2 or x=[1,2,3], got 'x'"),
        (["=2"], "input: expected NAME=VALUE, such as x=2 or x=[1,2,3], got '=2'"),
        (["x="], "input: expected NAME=VALUE, such as x=2 or x=[1,2,3], got 'x='"),
        (["x=1", "x=2"], "input x: expected one value, got '1' and '2'"),
    ],
)
def test_bad_assignments(texts: list[str], message: str) -> None:
    """Each input is NAME=VALUE, and once."""
    with pytest.raises(InputError) as caught:
        values.assignments(texts, "input")

    assert message == caught.value.message


def test_files(tmp_path: Path) -> None:
    """@FILE reads .npy and .npz, with a key where there are several arrays, with a dtype where the file knows none."""
    one = np.arange(6.0).reshape(2, 3)
    half = np.array([0.5, 2], dtype=ml_dtypes.bfloat16)
    np.save(tmp_path / "one.npy", one)
    np.save(tmp_path / "half.npy", half.view("V2"))
    np.savez(tmp_path / "single.npz", a=one)
    np.savez(tmp_path / "two.npz", a=one, b=one + 1)

    assert np.array_equal(one, parse(f"@{tmp_path}/one.npy"))
    assert np.dtype(np.float32) == parse(f"@{tmp_path}/one.npy:float32").dtype
    assert half.tolist() == parse(f"@{tmp_path}/half.npy:bfloat16").tolist()
    assert np.array_equal(one, parse(f"@{tmp_path}/single.npz"))
    assert np.array_equal(one + 1, parse(f"@{tmp_path}/two.npz:b"))


def test_bad_files(tmp_path: Path) -> None:
    """A missing file, a missing key, and a file that would have to be unpickled are each told in one line."""
    np.savez(tmp_path / "two.npz", a=np.ones(1), b=np.ones(1))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    path = tmp_path / "objects.npy"
    wanted = {
        "@nowhere.npy": "nowhere.npy: expected a .npy or .npz file, got no file of that name",
        f"@{tmp_path}/two.npz": f"x: expected @{tmp_path}/two.npz:KEY with KEY one of a, b, got @{tmp_path}/two.npz",
        f"@{path}": f"{path}: expected a .npy or .npz file of numbers, got one that numpy refuses",
    }

    for text, message in wanted.items():
        with pytest.raises(InputError) as caught:
            parse(text)
        assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array(330.0), "330"),
        (np.array([0.1 * 6, 6.0, 60.0]), "[0.6, 6, 60]"),
        (np.array([[6.0, 8.0], [10.0, 12.0]]), "[[6, 8],\n    [10, 12]]"),
        (np.array([1e300, 1e-9, -0.0, np.nan, np.inf]), "[1e+300, 1e-09, -0, nan, inf]"),
        (np.array([0.1, 16777216.0, 1e20, 1e-9], dtype=np.float32), "[0.1, 16777216, 1e+20, 1e-09]"),
        (np.array([2048, 0.1], dtype=np.float16), "[2048, 0.1]"),
        (np.array([0.5, 256], dtype=ml_dtypes.bfloat16), "[0.5, 256]"),
        (np.array([1 + 2j, complex(0, -0.5)]), "[1+2j, 0-0.5j]"),
        (np.array([1, -2]), "[1, -2]"),
        (np.array([True, False]), "[true, false]"),
        (np.zeros((0, 3)), "[] (shape 0x3)"),
        (np.ones((40, 40)), "[[1, 1, 1, ..., 1, 1, 1],\n    [1, 1, 1, ..., 1, 1, 1],\n"),
    ],
)
def test_text(array: np.ndarray, text: str) -> None:
    """Text shows 15 digits of a double, the shortest spelling of a float, whole floats without a point."""
    assert output.text(array, indent=3, width=80)[: len(text)] == text


def test_json_is_exact_and_valid() -> None:
    """JSON keeps every bit; what it cannot say is a string or a pair."""
    document = output.arrays_json(
        outputs={"a": np.array([0.1 * 6, np.nan, -np.inf]), "b": np.array(1 + 2j)},
        gradients={"c": np.array([1.5], dtype=ml_dtypes.bfloat16), "d": None},
    )

    assert {
        "outputs": {"a": [0.6000000000000001, "NaN", "-Infinity"], "b": [1.0, 2.0]},
        "gradients": {"c": [1.5], "d": None},
        "dtypes": {"outputs": {"a": "float64", "b": "complex128"}, "gradients": {"c": "bfloat16"}},
    } == document
