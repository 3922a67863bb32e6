"""The event loop of the front."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import uvloop
from front_server import connect, start

from gradoracle.v1 import service_pb2
from gradoracle_server import main


def test_the_loop_is_uvloops_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And asyncio's own where it is not."""
    assert uvloop.new_event_loop is main._loop_factory()
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert main._loop_factory() is None


def test_a_server_serves_without_uvloop(tmp_path: Path) -> None:
    """It is no condition for anything: calls are answered, and the server ends as told."""
    (tmp_path / "uvloop.py").write_text("raise ImportError('left out')\n")
    with start(environment={"PYTHONPATH": str(tmp_path)}) as server:
        with connect(server) as stub:
            assert stub.DescribeServer(service_pb2.DescribeServerRequest(), timeout=60).devices
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_grpc_polls_by_itself_unless_told_otherwise() -> None:
    """The server chooses for its own process, and not over whom has chosen already."""
    chosen: dict[str, str] = {}
    main._choose_polling(chosen)
    assert chosen == {"GRPC_EXPERIMENTS": "-event_engine_listener"}
    chosen = {"GRPC_EXPERIMENTS": "all"}
    main._choose_polling(chosen)
    assert chosen == {"GRPC_EXPERIMENTS": "all"}


def test_grpc_knows_what_the_server_chooses() -> None:
    """A version of gRPC that no longer knows it says so in a line of the server's output."""
    with start() as server:
        with connect(server) as stub:
            assert stub.DescribeServer(service_pb2.DescribeServerRequest(), timeout=60).devices
        server.process.terminate()
        assert server.process.wait(60) == 0
        assert "xperiment" not in server.log
