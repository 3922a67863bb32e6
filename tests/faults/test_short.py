"""Every fault, injected for some seconds; `python tests/faults/run.py` does it at length.

How quick things are is not asked here but there: these tests run on machines that are busy with others.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from faults.run import EXPERIMENTS, experiment


@pytest.mark.timeout(300)  # seconds; some of them start several servers
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_fault(name: str) -> None:
    """What is promised holds under this fault."""
    found = experiment(name, short=True)

    assert [] == found.broken, found.line
    assert found.figures


def test_every_experiment_is_run() -> None:
    """Each module that has a `run` is one of the experiments, and can be run at length."""
    folder = Path(__file__).parent
    modules = {path.stem: importlib.import_module(f"faults.{path.stem}") for path in folder.glob("*.py")}
    runs = {name for name, module in modules.items() if hasattr(module, "SHORT")}

    assert set(EXPERIMENTS) == runs
    assert all(modules[name].SHORT.keys() == modules[name].LONG.keys() for name in runs)
