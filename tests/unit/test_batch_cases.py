"""Cases and their arrays: what they mean, and what is told of those that mean nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from batch_cases import case, write
from google.protobuf.proto import serialize_length_prefixed

import gradoracle as go
from gradoracle import tensors
from gradoracle.batch import arrays, cases
from gradoracle.batch.array_files import ArrayFileError, ArrayFiles
from gradoracle.batch.arrays import CaseError
from gradoracle.batch.case_files import CaseFile
from gradoracle.batch.ids import Ids, Index
from gradoracle.batch.shards import Plan
from gradoracle.batch.survey import BadCasesError, survey
from gradoracle.v1 import service_pb2, tensor_pb2


def array(value: Any, base: Path = Path()) -> Any:
    return arrays.array(value, 'inputs["x"]', ArrayFiles(base), "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"random": "normal", "shape": [2], "mean": 1.5, "seed": 3}, go.normal((2,), mean=1.5, seed=3)),
        ({"random": "uniform", "shape": [], "dtype": "float32", "low": -1}, go.uniform((), "float32", low=-1)),
        ({"random": "integers", "shape": [2], "high": 9}, go.integers((2,), 0, 9)),
        ({"fill": 2.5, "shape": [3]}, go.fill((3,), 2.5)),
        ({"fill": "-Infinity", "shape": [1]}, go.fill((1,), -np.inf)),
    ],
)
def test_tensors_that_the_server_makes(value: Any, expected: tensor_pb2.Tensor) -> None:
    """They mean what the functions of the client do."""
    assert expected == array(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"data": [1, 2], "dtype": "float32"}, np.array([1, 2], np.float32)),
        ({"data": [[1, 2], [3, -4]], "dtype": "complex64"}, np.array([1 + 2j, 3 - 4j], np.complex64)),
        ({"data": ["NaN", "Infinity"], "dtype": "bfloat16"}, np.array([np.nan, np.inf], ml_dtypes.bfloat16)),
        ({"data": [], "dtype": "float64", "shape": [0, 3]}, np.zeros((0, 3))),
        ({"data": [1, 2]}, np.array([1.0, 2.0])),
    ],
)
def test_numbers_in_a_dtype(value: Any, expected: np.ndarray) -> None:
    """Numbers with a dtype, complex ones as pairs, and what JSON cannot say as words."""
    found = array(value)
    assert (expected.dtype, expected.shape, expected.tobytes()) == (found.dtype, found.shape, found.tobytes())


def test_numbers_without_a_dtype_stay_as_they_are() -> None:
    """What a list becomes is the client's to say; words in it become numbers."""
    assert [[1, 2.5]] == array([[1, 2.5]])
    assert [1, float("inf")] == array([1, "Infinity"])
    assert np.isnan(array("NaN"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"random": "gauss", "shape": [1]}, "expected one of normal, uniform, integers as random, got 'gauss'"),
        ({"random": "normal"}, "expected a shape such as [8, 64], got None"),
        ({"random": "normal", "shape": [-1]}, "expected a shape such as [8, 64], got [-1]"),
        ({"random": "normal", "shape": [1], "sed": 1}, 'got "sed"; did you mean "seed"'),
        ({"random": "normal", "shape": [1], "seed": 1.5}, "expected a whole number as seed, got 1.5"),
        ({"random": "integers", "shape": [1]}, "expected high, one more than the largest number, got none"),
        ({"data": [1.5], "dtype": "int32"}, "expected whole numbers for int32, got [1.5]"),
        ({"data": [1], "dtype": "flaot32"}, 'did you mean "float32"'),
        ({"data": [1, 2, 3], "dtype": "complex128"}, "expected [real, imaginary] for each number of complex128"),
        ({"nyp": "x"}, "got an object of nyp"),
        ("1.5", "got '1.5'"),
        (None, "got None"),
        ({"npy": "none.npy"}, "expected a file, got none.npy, which is not there"),
    ],
)
def test_what_is_no_array_is_told(value: Any, message: str) -> None:
    """The place, what was expected, what came."""
    with pytest.raises((CaseError, ArrayFileError)) as told:
        array(value)
    assert message in str(told.value)


# ---- Files


def test_arrays_come_from_files_beside_the_cases(tmp_path: Path) -> None:
    """npy, npz by key, by the input's name or as the only one, and safetensors, bit for bit."""
    plain = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "a.npy", plain)
    np.savez(tmp_path / "two.npz", x=plain, y=plain * 2)
    np.savez(tmp_path / "one.npz", z=plain)
    safetensors.numpy.save_file({"x": plain, "c": plain.astype(np.complex64)}, tmp_path / "s.safetensors")
    for source in (
        {"npy": "a.npy"},
        {"npz": "two.npz"},
        {"npz": "two.npz", "key": "x"},
        {"npz": "one.npz"},
        {"safetensors": "s.safetensors"},
    ):
        found = array(source, tmp_path)
        assert (plain.dtype, plain.tolist()) == (found.dtype, found.tolist()), source
        ArrayFiles(tmp_path).check(source, "x")
    assert np.complex64 == array({"safetensors": "s.safetensors", "key": "c"}, tmp_path).dtype


def test_types_that_numpy_does_not_know(tmp_path: Path) -> None:
    """bfloat16 and float8 come out of safetensors as they are, and out of numpy's files where the case names them."""
    wanted = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    head = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    head["q"] = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [4, 6]}
    text = json.dumps(head).encode()
    (tmp_path / "s.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + wanted.tobytes() + b"\x38\x40")
    np.save(tmp_path / "w.npy", wanted)
    for source in ({"safetensors": "s.safetensors", "key": "w"}, {"npy": "w.npy", "dtype": "bfloat16"}):
        found = array(source, tmp_path)
        assert (wanted.dtype, wanted.tolist()) == (found.dtype, found.tolist())
    quarter = array({"safetensors": "s.safetensors", "key": "q"}, tmp_path)
    assert (np.dtype(ml_dtypes.float8_e4m3fn), [1.0, 2.0]) == (quarter.dtype, quarter.tolist())
    with pytest.raises(CaseError, match='holds 2 raw bytes an element; say which type they are with "dtype"'):
        array({"npy": "w.npy"}, tmp_path)
    with pytest.raises(CaseError, match="expected int32 in the file, got bfloat16"):
        array({"safetensors": "s.safetensors", "key": "w", "dtype": "int32"}, tmp_path)


def damaged(tmp_path: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Sources that cannot be read, and a piece of what is told."""
    np.save(tmp_path / "short.npy", np.zeros(100))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-8])
    np.save(tmp_path / "pickled.npy", np.array([object()]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("hello, this is no array")
    np.savez(tmp_path / "cut.npz", x=np.zeros(100))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:-20])
    np.savez(tmp_path / "keys.npz", weight=np.zeros(1), bias=np.zeros(1))
    safetensors.numpy.save_file({"x": np.zeros(9)}, tmp_path / "short.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "short.safetensors").read_bytes()[:-8])
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 2**60))
    return {
        "missing": ({"npy": "nowhere.npy"}, "got nowhere.npy, which is not there"),
        "short": ({"npy": "short.npy"}, "it is cut off: expected 928 bytes, got 920"),
        "pickled": ({"npy": "pickled.npy"}, "it holds Python objects, not numbers"),
        "text": ({"npy": "text.npy"}, "expected a readable npy file, got: the magic string is not correct"),
        "cut": ({"npz": "cut.npz"}, "expected a readable npz file, got: File is not a zip file"),
        "key": ({"npz": "keys.npz", "key": "wieght"}, 'expected an array "wieght", got weight, bias; did you mean'),
        "short s": ({"safetensors": "short.safetensors"}, '"x": expected 72 bytes of 64, got those from 0 to 72'),
        "long s": ({"safetensors": "long.safetensors"}, "the length of its header"),
    }


def test_unreadable_tensors_missing_files_and_duplicates_are_told_before_anything_is_sent(tmp_path: Path) -> None:
    """All of them at once, with their lines; a broken line is none of them."""
    bad = damaged(tmp_path)
    lines = [case(name, inputs={"x": source}) for name, (source, _) in bad.items()]
    path = write(tmp_path / "c.jsonl", "{broken", *lines, case("twice"), case("twice"), case("f", expression=None))
    broken = {"id": "g", "graph_file": "no.json", "inputs": {}}
    write(path, *path.read_text().splitlines(), broken)
    file = CaseFile(str(path))
    with pytest.raises(BadCasesError) as told:
        survey(file, Plan(), ArrayFiles(file.base), Index())
    problems = told.value.problems
    assert (len(bad) + 2, len(bad) + 2) == (told.value.count, len(problems))
    for place, (_, message) in enumerate(bad.values(), 2):
        (problem,) = [one for one in problems if one.startswith(f"line {place}: ")]
        assert f'line {place}: inputs["x"]: ' in problem
        assert message in problem
    assert 'line 11: the id "twice" stands already in line 10' in problems
    assert any("line 13: graph_file: expected a file, got no.json" in one for one in problems)


def test_a_set_of_ids_holds_what_was_added_and_nothing_else() -> None:
    """Whatever bytes the ids' digests end with; what was added twice is known."""
    found = Ids()
    for k in [*range(5000), 17, 4711]:
        found.add(f"c{k}")
    found.freeze()
    twice = found.twice()
    assert [] == [k for k in range(5000) if f"c{k}" not in found]
    assert [] == [k for k in range(5000, 10_000) if f"c{k}" in found]
    assert [17, 4711] == [k for k in range(5000) if f"c{k}" in twice]
    assert (2, False) == (len(twice), "c1" in Ids())


def test_a_sound_file_of_cases_is_counted(tmp_path: Path) -> None:
    """The number of results to come, and of those that are there."""
    done = Index()
    done.add("b")
    done.freeze()
    file = CaseFile(str(write(tmp_path / "c.jsonl", case("a"), "{broken", "", case("b"))))
    found = survey(file, Plan(), ArrayFiles(file.base), done)
    assert (3, 1, 2) == (found.cases, found.done, found.remaining)


# ---- Lines


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cotangent": {}}, 'line 3: no field "cotangent" in a case; did you mean "cotangents"'),
        ({"graph": {}}, "line 3: expected one of graph, expression, graph_file, got graph and expression"),
        ({"expression": 3}, "line 3: expected a text as expression, got 3"),
        ({"claimed": {"x": 1}}, "line 3: vjp takes no claimed"),
        ({"options": {"sede": 1}}, 'line 3: no option "sede" of vjp; did you mean "seed"?'),
        ({"options": {"seed": "1"}}, 'line 3: expected a whole number as options.seed, got "1"'),
        ({"options": {"wrt": [1]}}, "line 3: expected a name or a list of names as options.wrt, got [1]"),
        ({"options": {"order": 2}}, 'line 3: no option "order" of vjp'),
        ({"labels": ["a"]}, 'line 3: expected texts by name as labels, got ["a"]'),
        ({"id": ["a"]}, 'line 3: expected a text as id, got ["a"]'),
    ],
)
def test_what_is_no_case_is_told(fields: dict[str, Any], message: str) -> None:
    """The line, what was expected, what came; and the line is in the error too."""
    with pytest.raises(CaseError) as told:
        cases.parse(json.dumps(case("a", **fields)).encode(), 3)
    assert str(told.value).startswith(message)
    assert 3 == told.value.line


def test_a_case_without_an_id_has_its_line_for_one() -> None:
    """So has every result a name."""
    assert "line 9" == cases.parse(b'{"expression": "x"}', 9).id
    assert "5" == cases.parse(b'{"id": 5, "expression": "x"}', 9).id


@pytest.mark.parametrize("method", list(cases.METHODS))
def test_each_method_makes_the_request_of_the_client(method: str) -> None:
    """A case is the same bytes as the client's own call."""
    extra: dict[str, Any] = {"jvp": {"tangents": {"x": 1.0}}, "hvp": {"vectors": {"x": 1.0}}}.get(method, {})
    made = cases.Requests(ArrayFiles(Path())).make(
        cases.parse(json.dumps(case("a", method=method, options={"seed": 3}, **extra)).encode(), 1)
        if method not in ("jacobian", "hessian", "hvp", "vjp")
        else cases.parse(json.dumps(case("a", method=method, options={"wrt": "x"}, **extra)).encode(), 1)
    )
    options = {"wrt": "x"} if method in ("jacobian", "hessian", "hvp", "vjp") else {"seed": 3}
    wanted = go.request(method, "x**2", {"x": 3.0}, **extra, **options)
    assert (wanted.method, wanted.to_bytes()) == (made.method, made.to_bytes())


def test_graphs_come_as_expressions_json_and_files(tmp_path: Path) -> None:
    """Each gives the same request."""
    graph = go.Graph.parse("x**2")
    (tmp_path / "g.json").write_text(graph.to_json())
    (tmp_path / "g.pb").write_bytes(graph.to_bytes())
    make = cases.Requests(ArrayFiles(tmp_path)).make
    forms = [
        {"expression": "x**2"},
        {"graph": json.loads(graph.to_json())},
        {"graph_file": "g.json"},
        {"graph_file": "g.pb"},
    ]
    made = [make(cases.parse(json.dumps({"inputs": {"x": 3.0}, **form}).encode(), 1)).to_bytes() for form in forms]
    assert [made[0]] * 4 == made


# ---- Protobuf


def stream(*messages: service_pb2.StreamRequest) -> bytes:
    import io

    file = io.BytesIO()
    for message in messages:
        serialize_length_prefixed(message, file)
    return file.getvalue()


def call(number: int, **fields: Any) -> service_pb2.StreamCall:
    request = service_pb2.ComputeVjpRequest(graph=go.Graph.parse("x**2").message)
    tensor = tensors.message_of(tensors.encode(np.array(3.0), "primals", "x", floating=True))
    request.primals.add(name="x", tensor=tensor)
    return service_pb2.StreamCall(id=number, compute_vjp=request, **fields)


def test_protobuf_cases_are_the_calls_of_a_stream(tmp_path: Path) -> None:
    """Each call is a case whose request is that of the client; chunks become its tensors."""
    chunked = call(8, attachments=1)
    data = chunked.compute_vjp.primals[0].tensor.data
    chunked.compute_vjp.primals[0].tensor.attachment = 0
    chunks = [service_pb2.Chunk(call_id=8, data=data[:3]), service_pb2.Chunk(call_id=8, data=data[3:])]
    path = tmp_path / "c.pb"
    path.write_bytes(
        stream(
            service_pb2.StreamRequest(calls=[call(7)], chunks=chunks[:1]),
            service_pb2.StreamRequest(chunks=chunks[1:]),
            service_pb2.StreamRequest(calls=[chunked]),
        )
    )
    entries = list(CaseFile(str(path)).entries())
    assert [("7", 1, "vjp"), ("8", 2, "vjp")] == [(one.id, one.line, one.case.method) for one in entries if one.case]
    wanted = service_pb2.ComputeVjpRequest.FromString(go.request("vjp", "x**2", {"x": np.array(3.0)}).to_bytes())
    for entry in entries:
        assert entry.case is not None
        assert entry.case.request is not None
        assert wanted == service_pb2.ComputeVjpRequest.FromString(entry.case.request.to_bytes())


def test_broken_protobuf_is_told(tmp_path: Path) -> None:
    """A message that is none is a result; one that is cut off is the last."""
    other = service_pb2.StreamCall(id=3, describe_server=service_pb2.DescribeServerRequest())
    good = stream(service_pb2.StreamRequest(calls=[call(1), other, call(2, attachments=1)]))
    path = tmp_path / "c.binpb"
    path.write_bytes(good + b"\x03\xff\xff\xff" + good[:-5])
    entries = list(CaseFile(str(path)).entries())
    assert ["1", "line 2", "line 3", "line 4", "line 5"] == [one.id for one in entries]
    assert [
        "message 1, call 3: expected a request with a graph, got describe_server",
        "message 1, call 2: expected 1 attachments, got the chunks of 0",
        "message 2: expected a gradoracle.v1.StreamRequest, got 3 bytes that are none",
        f"message 3: expected {len(good) - 2} bytes, got {len(good) - 7} and the end of the file",
    ] == [str(one.error) for one in entries if one.error]
    path.write_bytes(b"\xff" * 20)
    assert ["message 1: expected its length, a varint of at most 2147483647; is this the file?"] == [
        str(one.error) for one in CaseFile(str(path)).entries()
    ]
