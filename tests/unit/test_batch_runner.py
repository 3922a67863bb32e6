"""Runs: every case a result, whatever the server does."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
from batch_cases import FakeClient, Lost, case, run, vjp_result, write

from gradoracle.batch.records import Record, read_results
from gradoracle.errors import (
    AuthenticationError,
    ComputationError,
    OverloadedError,
    ServerUnavailableError,
    WorkerCrashedError,
)


def results(path: Path) -> dict[str, Record]:
    """The records of a file by id, each of which must be there once."""
    records = list(read_results(path))
    found = {one.id: one for one in records}
    assert len(records) == len(found)
    return found


def test_a_broken_line_is_a_result_and_stops_nothing(tmp_path: Path) -> None:
    """It tells its line and reason; the cases after it run."""
    broken = ["{oops", "[1]", '{"id": "m", "expression": "x", "method": "chekc"}', '{"id": "g", "expression": "x +"}']
    cases = write(tmp_path / "c.jsonl", case("first"), *broken, case("last"))
    job = run(FakeClient(), cases, tmp_path / "r.jsonl")
    found = results(tmp_path / "r.jsonl")
    assert {"OK": 2, "ERROR": 4} == job.tally.counts
    assert [2, 3, 4, 5] == [found[name].error.line for name in ("line 2", "line 3", "m", "g")]  # type: ignore[union-attr]
    messages = [found[name].error.message for name in ("line 2", "line 3", "m")]  # type: ignore[union-attr]
    assert [
        "line 2: expected a JSON object, got '{oops' (Expecting property name enclosed in double quotes, column 2)",
        "line 3: expected a JSON object, got [1]",
        "line 4: expected one of check, vjp, evaluate, jvp, jacobian, hessian, hvp, inspect as method, got 'chekc'; "
        'did you mean "check"?',
    ] == messages
    assert 2 == job.tally.exit_code()


def test_a_case_that_fails_is_a_result(tmp_path: Path) -> None:
    """The error's type, reason, node and message are kept."""
    error = ComputationError('node "n": no', reason="COMPUTATION_FAILED", node="n")
    run(FakeClient(lambda _: error), write(tmp_path / "c.jsonl", case("a")), tmp_path / "r.jsonl")
    fault = results(tmp_path / "r.jsonl")["a"].error
    assert ("ComputationError", "COMPUTATION_FAILED", "n", 'node "n": no') == (
        (fault.type, fault.reason, fault.node, fault.message) if fault else None
    )


def test_a_server_that_goes_away_costs_only_time(tmp_path: Path) -> None:
    """What was sent and not answered is sent again, also where the server refuses because it shuts down."""
    cases = write(tmp_path / "c.jsonl", *(case(f"c{k}") for k in range(10)))
    troubles: list[Any] = [
        vjp_result(),
        Lost(ServerUnavailableError("gone")),
        vjp_result(),
        ServerUnavailableError("shutting down"),
        OverloadedError("full"),
    ]
    client = FakeClient(lambda _: troubles.pop(0) if troubles else vjp_result())
    job = run(client, cases, tmp_path / "r.jsonl", patience=60.0)
    assert {"OK": 10} == job.tally.counts
    assert {f"c{k}" for k in range(10)} == set(results(tmp_path / "r.jsonl"))
    assert (3, 13) == (client.streams, len(client.sent))


def test_patience_ends(tmp_path: Path) -> None:
    """A server that stays away ends the run with its error; what was finished is kept."""
    answers: list[Any] = [vjp_result()]
    client = FakeClient(lambda _: answers.pop() if answers else Lost(ServerUnavailableError("gone")))
    with pytest.raises(ServerUnavailableError, match="gone"):
        run(client, write(tmp_path / "c.jsonl", case("a"), case("b")), tmp_path / "r.jsonl", patience=0.0)
    assert {"a"} == set(results(tmp_path / "r.jsonl"))


def test_a_request_that_always_loses_the_server_becomes_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ten losses its error is its result, and the others run."""
    monkeypatch.setattr("gradoracle.batch.sending._PAUSES", (0.0,))
    cases = write(tmp_path / "c.jsonl", case("bad", inputs={"x": 1.0}), case("good"))
    bad = {}

    def answer(request: Any) -> Any:
        bad[request.tag.cases[0].id] = bad.get(request.tag.cases[0].id, 0) + 1
        return ServerUnavailableError("lost") if request.tag.cases[0].id == "bad" else vjp_result()

    job = run(FakeClient(answer), cases, tmp_path / "r.jsonl", patience=60.0)
    assert ({"OK": 1, "ERROR": 1}, 3) == (job.tally.counts, job.tally.exit_code())
    assert 11 >= bad["bad"]


def test_credentials_end_a_run_at_once(tmp_path: Path) -> None:
    """There is no sense in trying again."""
    client = FakeClient(lambda _: Lost(AuthenticationError("no token")))
    with pytest.raises(AuthenticationError, match="no token"):
        run(client, write(tmp_path / "c.jsonl", case("a")), tmp_path / "r.jsonl", patience=60.0)
    assert 1 == client.streams


def test_fail_fast_sends_nothing_more(tmp_path: Path) -> None:
    """The first error is the last request."""
    cases = write(tmp_path / "c.jsonl", *(case(f"c{k}") for k in range(10)))
    answers: list[Any] = [vjp_result(), ComputationError("no")]
    client = FakeClient(lambda _: answers.pop(0))
    job = run(client, cases, tmp_path / "r.jsonl", fail_fast=True)
    assert ({"OK": 1, "ERROR": 1}, 2) == (job.tally.counts, len(client.sent))


def test_resuming_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    """A case with a result is not sent again."""
    cases = write(tmp_path / "c.jsonl", case("a"), case("b"))
    run(FakeClient(), cases, tmp_path / "r.jsonl")
    write(cases, case("a"), case("b"), case("c"))
    client = FakeClient()
    run(client, cases, tmp_path / "r.jsonl", resume=True)
    assert (1, {"a", "b", "c"}) == (len(client.sent), set(results(tmp_path / "r.jsonl")))


def test_a_pack_that_fails_is_taken_apart(tmp_path: Path) -> None:
    """Its cases run again, each alone, and only the guilty one has an error."""
    cases = write(tmp_path / "c.jsonl", *(case(f"c{k}", inputs={"x": float(k)}) for k in range(5)))

    def answer(request: Any) -> Any:
        names = [one.id for one in request.tag.cases]
        return WorkerCrashedError("crash") if "c3" in names else vjp_result()

    client = FakeClient(answer)
    job = run(client, cases, tmp_path / "r.jsonl", pack=5)
    assert ({"OK": 4, "ERROR": 1}, 6) == (job.tally.counts, len(client.sent))
    assert "crash" == results(tmp_path / "r.jsonl")["c3"].error.message  # type: ignore[union-attr]


@pytest.mark.parametrize("trouble", [False, True])
@pytest.mark.parametrize("given", [(700, 10, 10), (0, 5, 5), (500_000, 10, 10)])
def test_garbage_is_looked_for_less_often_while_cases_run(
    tmp_path: Path, given: tuple[int, int, int], trouble: bool
) -> None:
    """And as often as before afterwards, however the run ends; nobody's own setting is undone."""
    seen = []

    def answer(_: Any) -> Any:
        seen.append((gc.get_threshold(), gc.get_freeze_count() > 0))
        return Lost(AuthenticationError("no token")) if trouble else vjp_result()

    cases = write(tmp_path / "c.jsonl", case("a"))
    before = gc.get_threshold()
    gc.set_threshold(*given)
    try:
        if trouble:
            with pytest.raises(AuthenticationError):
                run(FakeClient(answer), cases, tmp_path / "r.jsonl")
        else:
            run(FakeClient(answer), cases, tmp_path / "r.jsonl")
        assert [((given[0] and max(given[0], 100_000), *given[1:]), True)] == seen
        assert (given, 0) == (gc.get_threshold(), gc.get_freeze_count())
    finally:
        gc.set_threshold(*before)
