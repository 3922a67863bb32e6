"""Batches against a real server: bits, crashes, interruptions, restarts."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_cases import case, write

import gradoracle as go
from gradoracle import cli
from gradoracle.batch.array_files import ArrayFiles
from gradoracle.batch.cases import Requests, parse
from gradoracle.batch.packing import kind_of, packed, unpacked
from gradoracle.batch.records import Record, read_results

Batch = Callable[..., tuple[int, str]]

CHECKS = [
    {"id": "good", "expression": "softmax(x, dim=-1)", "inputs": {"x": {"random": "normal", "shape": [3, 4]}}},
    {"id": "wrong", "expression": "sum(x**3)", "inputs": {"x": [1, 2, 3]}, "claimed": {"x": [3, 12, 27.027]}},
    {"id": "kink", "expression": "relu(x)", "inputs": {"x": [0.0, 1.0]}},
]


@pytest.fixture
def batch(server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Runs `gradoracle batch` in this process: exit code, stderr."""
    monkeypatch.setenv("GRADORACLE_ADDRESS", server)

    def run(*arguments: str | Path) -> tuple[int, str]:
        code = cli.main(["batch", *map(str, arguments)])
        return code, capsys.readouterr().err

    return run


def results(path: Path) -> dict[str, Record]:
    """The records by id, each of which is there once."""
    records = list(read_results(path))
    found = {one.id: one for one in records}
    assert len(found) == len(records)
    return found


# ---- What comes out


@pytest.mark.parametrize(
    ("names", "options", "code"),
    [
        (("good",), (), 0),
        (("good", "wrong", "kink"), (), 1),
        (("good", "kink"), (), 4),
        (("good", "kink"), ("--allow-inconclusive",), 0),
    ],
)
def test_exit_codes(tmp_path: Path, batch: Batch, names: tuple[str, ...], options: tuple[str, ...], code: int) -> None:
    """0 all good, 1 a gradient is wrong, 4 no verdict; and the last line counts."""
    cases = write(tmp_path / "c.jsonl", *(one for one in CHECKS if one["id"] in names))
    found, text = batch(cases, "--out", tmp_path / "r.jsonl", *options)
    assert code == found
    assert text.splitlines()[-1].startswith(f"{len(names)} of {len(names)} cases in ")
    assert set(names) == set(results(tmp_path / "r.jsonl"))


def test_a_case_that_cannot_be_run_is_told_and_gives_2(tmp_path: Path, batch: Batch) -> None:
    """A broken line and torch's own error are results; the rest runs."""
    bad = {"id": "mm", "method": "evaluate", "expression": "x @ w", "inputs": {"x": [[1, 2]], "w": [[1, 2]]}}
    cases = write(tmp_path / "c.jsonl", CHECKS[0], "{oops", bad)
    code, text = batch(cases, "--out", tmp_path / "r.jsonl")
    assert 2 == code
    assert "ERROR line 2: line 2: expected a JSON object, got '{oops'" in text
    assert 'ERROR mm: node "matmul": aten.matmul.default: mat1 and mat2 shapes cannot be multiplied' in text
    assert {"good": "PASS", "line 2": "ERROR", "mm": "ERROR"} == {
        name: one.outcome for name, one in results(tmp_path / "r.jsonl").items()
    }


def test_nothing_is_sent_where_files_are_missing_or_ids_double(tmp_path: Path, batch: Batch) -> None:
    """Both are told, with their lines, and no file is touched."""
    missing = case("m", inputs={"x": {"npy": "none.npy"}})
    cases = write(tmp_path / "c.jsonl", case("a"), case("a"), missing)
    code, text = batch(cases, "--out", tmp_path / "r.jsonl")
    assert 2 == code
    assert f'{cases}, line 2: the id "a" stands already in line 1\n' in text
    assert f'{cases}, line 3: inputs["x"]: expected a file, got none.npy, which is not there' in text
    assert text.endswith(f"error: {cases}: 2 problems; nothing was sent\n")
    assert not (tmp_path / "r.jsonl").exists()


def test_every_kind_of_report_is_written(tmp_path: Path, batch: Batch) -> None:
    """The page, JUnit's XML and the summary are made of the same results."""
    cases = write(tmp_path / "c.jsonl", *CHECKS)
    files = [tmp_path / name for name in ("r.html", "j.xml", "s.json")]
    flags = [part for pair in zip(("--report", "--junit", "--json-summary"), files, strict=True) for part in pair]
    code, _ = batch(cases, "--out", tmp_path / "r.jsonl", *flags)
    assert 1 == code
    assert "wrong" in files[0].read_text()
    assert "wrong" in files[1].read_text()
    assert 1 == json.loads(files[2].read_text())["exit_code"]


def test_parquet_and_protobuf(tmp_path: Path, batch: Batch) -> None:
    """Cases may come as a stream's messages, and results go into a Parquet file."""
    import io

    from google.protobuf.proto import serialize_length_prefixed

    from gradoracle.v1 import service_pb2

    request = service_pb2.CheckGradientsRequest(graph=go.Graph.parse("sum(x**3)").message)
    request.primals.add(name="x", tensor=go.normal((3,)))
    file = io.BytesIO()
    calls = [service_pb2.StreamCall(id=number, check_gradients=request) for number in (4, 5)]
    serialize_length_prefixed(service_pb2.StreamRequest(calls=calls), file)
    (tmp_path / "c.pb").write_bytes(file.getvalue())
    code, _ = batch(tmp_path / "c.pb", "--out", tmp_path / "r.parquet")
    found = results(tmp_path / "r.parquet")
    assert (0, {"4": "PASS", "5": "PASS"}) == (code, {name: one.outcome for name, one in found.items()})
    assert json.loads(go.Graph.parse("sum(x**3)").to_json()) == (found["4"].graph or {})["graph"]


def test_shards_select_and_repeat(tmp_path: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes' variables choose the shard, whose number is put into the name of the file."""
    cases = write(tmp_path / "c.jsonl", *(case(f"c{k}", labels={"odd": str(k % 2)}) for k in range(8)))
    monkeypatch.setenv("GRADORACLE_SHARDS", "2")
    for index in range(2):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(index))
        assert 0 == batch(cases, "--out", tmp_path / "r{shard}.jsonl", "--select", "odd == 1", "--repeat", "2")[0]
    found = [set(results(tmp_path / f"r{index}.jsonl")) for index in range(2)]
    assert [{f"c{k} [{r}/2]" for k in half for r in (1, 2)} for half in ((1, 5), (3, 7))] == found


def test_a_server_that_is_not_there_is_told_at_once(tmp_path: Path, batch: Batch) -> None:
    """Nothing is tried again and again at an address that never answered."""
    cases = write(tmp_path / "c.jsonl", case("a"))
    code, text = batch(cases, "--out", tmp_path / "r.jsonl", "--address", "127.0.0.1:1", "--timeout", "2")
    assert 3 == code
    assert "127.0.0.1:1" in text


def test_retrying_errors_needs_results_to_resume(tmp_path: Path, batch: Batch) -> None:
    """It is told, before a file is touched."""
    cases = write(tmp_path / "c.jsonl", case("a"))
    code, text = batch(cases, "--out", tmp_path / "r.jsonl", "--retry-errors")
    assert (2, False) == (code, (tmp_path / "r.jsonl").exists())
    assert text == "error: --retry-errors: expected --resume too; a run that starts anew has no errors to retry\n"


# ---- Packs


EXPRESSIONS = [
    "(sin(x * y) + x**2).sum()",
    "(x @ y.t()).relu().sum() + log_softmax(x, dim=-1).sum()",
    "(x / y).cumsum(dim=0).prod()",
    "x.sum()",
]


@pytest.mark.parametrize("method", ["vjp", "evaluate"])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_packs_have_the_bits_of_cases_alone(client: go.Client, method: str, expression: str) -> None:
    """Outputs and gradients of each case in a pack are bit for bit those of its own request, None gradients too."""
    generator = np.random.default_rng(0)
    lines = [
        {
            "id": str(k),
            "method": method,
            "expression": expression,
            "inputs": {
                "x": generator.normal(size=(3, 4)).tolist(),
                "y": {"random": "normal", "shape": [3, 4], "seed": k},
            },
        }
        for k in range(7)
    ]
    if expression == "x.sum()":
        lines = [{**line, "inputs": {"x": line["inputs"]["x"]}} for line in lines]  # type: ignore[index]
    cases = [parse(json.dumps(line).encode(), 1) for line in lines]
    make = Requests(ArrayFiles(Path()))
    parts = [make.make(one) for one in cases]
    kinds = {kind_of(method, make.graph(one), part, one.options) for one, part in zip(cases, parts, strict=True)}
    (kind,) = kinds
    assert kind is not None
    alone = list(client.map(parts))
    (together,) = client.map([packed(kind, parts)])
    for one, other in zip(alone, unpacked(together, len(parts)), strict=True):
        for group in ("outputs", "gradients") if method == "vjp" else ("outputs",):
            mine, its = getattr(one, group), getattr(other, group)
            assert list(mine) == list(its)
            assert [(a.dtype, a.shape, a.tobytes()) for a in mine.values()] == [
                (a.dtype, a.shape, a.tobytes()) for a in its.values()
            ]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"expression": "dropout(x, 0.5, True).sum()"}, "random"),
        ({"method": "check"}, "a check"),
        ({"options": {"batched": ["x"]}, "inputs": {"x": [1.0, 2.0]}}, "batched"),
        ({"expression": "x" + " + x" * 40}, "many nodes"),
        ({"inputs": {"x": {"data": [0.0] * 5000}}}, "a large tensor"),
        ({"inputs": {"x": {"random": "normal", "shape": [5000]}}}, "a large tensor, drawn"),
        ({"expression": "x" * 195 + "**2", "inputs": {"x" * 195: 1.0}}, "a long name"),
    ],
)
def test_what_is_not_packed(fields: dict[str, Any], why: str) -> None:
    """Where a pack could change a result or save nothing, a case travels alone."""
    one = parse(json.dumps(case("a", **fields)).encode(), 1)
    make = Requests(ArrayFiles(Path()))
    assert kind_of(one.method, make.graph(one), make.make(one), one.options) is None, why


def test_an_error_in_a_pack_is_that_of_its_case_alone(tmp_path: Path, batch: Batch) -> None:
    """The others have their results, and the message names the case's own node."""
    good = [case(f"c{k}", expression="(x @ y).sum()", inputs={"x": [[1.0]], "y": [[k]]}) for k in range(5)]
    bad = case("bad", expression="(x @ y).sum()", inputs={"x": [[1.0]], "y": [[1.0], [2.0]]})
    cases = write(tmp_path / "c.jsonl", *good[:3], bad, *good[3:])
    code, _ = batch(cases, "--out", tmp_path / "r.jsonl")
    found = results(tmp_path / "r.jsonl")
    assert (2, "ERROR", 5) == (code, found["bad"].outcome, sum(one.outcome == "OK" for one in found.values()))
    assert found["bad"].error is not None
    assert "matmul" == found["bad"].error.node


# ---- Crashes, interruptions, restarts


# Where tests run in the background, SIGINT is ignored, by their children too.
_MAIN = """
import signal, sys
from gradoracle.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


@contextlib.contextmanager
def process(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`gradoracle batch` in a process of its own, which does not outlive the test."""
    command = [sys.executable, "-c", _MAIN, "batch", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[str]) -> None:
    """Waits until the file has so many lines; they must come while the process runs."""
    ends = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < ends
        assert running.poll() is None, running.stderr and running.stderr.read()
        time.sleep(0.002)


def many(path: Path, count: int) -> Path:
    """Checks enough to be interrupted in the middle."""
    return write(path, *({**CHECKS[0], "id": f"c{k}"} for k in range(count)))


@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_kill_9_in_the_middle_loses_nothing(tmp_path: Path, server: str, batch: Batch, name: str) -> None:
    """After as many kills as it takes, each case has one result."""
    cases, out = many(tmp_path / "c.jsonl", 400), tmp_path / name
    lines = out if name == "r.jsonl" else tmp_path / "r.parquet.jsonl"
    for count in (1, 8, 20):
        with process(cases, "--out", out, "--resume", "--address", server) as running:
            wait_for_lines(lines, count, running)
            running.kill()
    code, text = batch(cases, "--out", out, "--resume", "--select", "line <= 60")
    assert 0 == code, text
    assert {f"c{k}" for k in range(60)} <= set(results(out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_was_finished(
    tmp_path: Path, server: str, batch: Batch, number: signal.Signals
) -> None:
    """Ctrl-C, and the signal with which pods are stopped, end with 128 + their number and a file that resumes."""
    cases, out = many(tmp_path / "c.jsonl", 200), tmp_path / "r.jsonl"
    summary = tmp_path / "s.json"
    with process(cases, "--out", out, "--address", server, "--json-summary", summary) as running:
        wait_for_lines(out, 3, running)
        running.send_signal(number)
        _, text = running.communicate(timeout=60)
    assert 128 + number == running.returncode, text
    assert f"interrupted; {out} has what was finished; --resume goes on" in text
    finished = set(results(out))
    assert 3 <= len(finished) < 200
    assert {"PASS"} == {one.outcome for one in results(out).values()}, "what was under way is no result"
    assert len(finished) == json.loads(summary.read_text())["cases"]
    code, _ = batch(cases, "--out", out, "--resume", "--select", "line <= 60")
    assert (0, finished | {f"c{k}" for k in range(60)}) == (code, set(results(out)))


@contextlib.contextmanager
def own_server(port: int) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, which may be killed."""
    command = [sys.executable, "-m", "gradoracle_server", "--listen", f"127.0.0.1:{port}", "--workers", "1"]
    command += ["--metrics-listen", "127.0.0.1:0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        try:
            assert running.stdout is not None
            yield running.stdout.readline().split()[3], running
        finally:
            running.kill()


@pytest.mark.timeout(300)  # two servers start one after the other, each of which loads torch
def test_a_server_that_dies_and_comes_back_costs_only_time(tmp_path: Path) -> None:
    """While it is away nothing is lost, and afterwards each case has one result."""
    cases, out = many(tmp_path / "c.jsonl", 16), tmp_path / "r.jsonl"
    with contextlib.ExitStack() as started:
        with own_server(0) as (address, server):
            running = started.enter_context(process(cases, "--out", out, "--address", address, "--concurrency", "2"))
            wait_for_lines(out, 2, running)
            server.kill()
        assert 16 > out.read_bytes().count(b"\n")
        with own_server(int(address.rpartition(":")[2])):
            _, text = running.communicate(timeout=250)
    assert 0 == running.returncode, text
    assert {f"c{k}" for k in range(16)} == set(results(out))
