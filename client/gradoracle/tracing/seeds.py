"""The seed of the random numbers that torch draws in every run that tracing makes."""

from __future__ import annotations

import torch

SEED = 0x5EED


def seed() -> None:
    """What torch.manual_seed does for the devices in use. It leaves word for those that are not, too, with a stack
    trace for each, and that takes longer than a small function does."""
    torch.default_generator.manual_seed(SEED)
    for backend in (torch.cuda, torch.xpu, torch.mtia):
        if backend.is_initialized():
            backend.manual_seed_all(SEED)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(SEED)
