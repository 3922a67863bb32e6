"""What the server says of its environment when it starts, and what its workers have of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_server
from front_server import start


def test_a_misspelt_variable_is_one_warning() -> None:
    """It starts all the same; one line of the log has the likest setting and no value; none is of Kubernetes'."""
    environment = {
        "GRADORACLE_TOKEN_FIEL": "sesame",
        "GRADORACLE_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "GRADORACLE_ADDRESS": "localhost:1",
    }
    with start(environment=environment) as server:
        assert 0 == server.stop()
        [line] = [line for line in server.log.splitlines() if "GRADORACLE_" in line]
        assert "sesame" not in server.log
    assert " WARNING gradoracle_server.main: GRADORACLE_TOKEN_FIEL is set, " in line
    assert line.endswith("did you mean GRADORACLE_TOKEN_FILE?")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {b"GOMP_SPINCOUNT=10000"}),
        ({"GOMP_SPINCOUNT": "7"}, {b"GOMP_SPINCOUNT=7"}),
        ({"OMP_WAIT_POLICY": "active"}, {b"OMP_WAIT_POLICY=active"}),
    ],
    ids=["nothing", "a count", "a policy"],
)
def test_idle_threads_of_workers_let_go_of_their_core(
    given: dict[str, str], expected: set[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenMP's default is to wait for the next operator in a loop. Who sets how long in the environment is heard."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):  # another test may have started a fork server in this process
        monkeypatch.delenv(name, raising=False)
    with real_server.start("--workers", "1", "--threads", "2", environment=given) as server:
        (worker,) = real_server.workers(server)[:1]
        found = set(Path(f"/proc/{worker}/environ").read_bytes().split(b"\0"))
    assert expected == {one for one in found if one.startswith((b"GOMP_", b"OMP_WAIT"))}
