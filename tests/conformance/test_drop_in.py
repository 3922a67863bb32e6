"""Where ours would fail a test-suite that torch's gradcheck passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from conformance import drop_in
from conformance.drop_in import Answers

NAMES = [
    "broadcast_tensors",  # hands on an argument, which is frozen now and then
    "add",  # the gradients by its arguments are the cotangent
    "atleast_2d",
    "nn.functional.pad.constant",
    "nn.functional.layer_norm",
    "nn.functional.relu",
    "linalg.solve",
    "index_add",
    "where",
    "cumsum",
    "nn.functional.hardsigmoid",
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
def test_ours_say_what_torchs_say(name: str) -> None:
    found = list(drop_in.answers([name]))
    assert [one.check for one in found] == ["gradcheck", "gradgradcheck"]
    for one in found:
        assert one.is_known == (name == "nn.functional.hardsigmoid" and one.check == "gradcheck")
        assert one.is_known or not one.differ, one.text


def test_differences_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails, and one that raises, where torch's passes."""

    def fails(*_: Any, **__: Any) -> bool:
        return False

    def raises(*_: Any, **__: Any) -> bool:
        raise TypeError("no tensor")

    checks: dict[str, tuple[Callable[..., bool], Callable[..., bool]]] = {
        "gradcheck": (torch.autograd.gradcheck, fails),
        "gradgradcheck": (torch.autograd.gradgradcheck, raises),
    }
    monkeypatch.setattr(drop_in, "CHECKS", checks)
    first, second = drop_in.answers(["sin"])
    assert first == Answers("sin", "gradcheck", "passes", "fails", "")
    assert second == Answers("sin", "gradgradcheck", "passes", "raises", "TypeError('no tensor')")
    assert first.differ
    assert second.differ
    assert not first.is_known
