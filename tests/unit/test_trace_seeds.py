"""The random numbers of runs that tracing makes."""

import pytest
import torch

from gradoracle.tracing import trace
from gradoracle.tracing.seeds import SEED, seed


def test_every_run_draws_the_same_numbers_as_after_torch_manual_seed():
    torch.manual_seed(SEED)
    wanted = torch.randn(5)
    for _ in range(2):
        seed()
        assert torch.initial_seed() == SEED
        assert torch.equal(torch.randn(5), wanted)


@pytest.mark.parametrize("backend", [torch.cuda, torch.xpu, torch.mtia], ids=lambda one: one.__name__)
def test_devices_that_nobody_uses_are_left_alone(backend, monkeypatch):
    """torch.manual_seed leaves word for each of them, with a stack trace that takes longer than a small function."""
    if backend.is_initialized():
        pytest.skip("the device is in use")
    left: list[object] = []
    monkeypatch.setattr(backend, "manual_seed_all", left.append)
    trace(lambda x: torch.nn.functional.dropout(x.sin()), torch.ones(3))
    assert left == []
    torch.manual_seed(0)
    assert left == [0]  # that would have shown
