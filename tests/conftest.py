"""What every test may use: one server for the session, a client of it, and the skips of tests that need a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import gradoracle as go

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server in a process of its own, with two workers."""
    with go.local_server(workers=2, shared_memory=False) as address:  # as any other server, over gRPC alone
        yield address


@pytest.fixture(scope="session")
def client(server: str) -> Iterator[go.Client]:
    """A client of that server."""
    with go.Client(server) as client:
        yield client


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of torch that wait for each other on a busy machine take longer than the work."""
    import torch  # not above: tests of the client run without it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests marked `cuda` where there is no CUDA device."""
    wanting = [item for item in items if item.get_closest_marker("cuda")]
    if not wanting:
        return
    import torch  # only now: a run without such tests need not wait for it

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
