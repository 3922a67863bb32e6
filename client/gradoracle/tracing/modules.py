"""Runs modules on other tensors than their own, and leaves them as they were."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

_OWN_DICTS = ("_parameters", "_buffers", "_modules")


@contextlib.contextmanager
def swapped(roots: Iterable[torch.nn.Module], tensors: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Puts tensors in the place of those parameters and buffers whose id() is a key, in the modules below `roots`.

    Afterwards each module has its own again, and its other attributes as they were: a step count, a list of losses.
    Only what a container holds is put back, not what happened inside the objects in it.
    """
    every = list({id(module): module for root in roots for module in root.modules()}.values())
    saved = [_Snapshot(module) for module in every]
    try:
        for module in every:
            _replace(module, tensors)
        yield
    finally:
        for snapshot in saved:
            snapshot.restore()


def _replace(module: torch.nn.Module, tensors: Mapping[int, torch.Tensor]) -> None:
    """Past Module.__setattr__, which wants Parameters."""
    for own in (module._parameters, module._buffers):
        for name, tensor in own.items():
            if id(tensor) in tensors:
                own[name] = tensors[id(tensor)]  # type: ignore[assignment]
    for name, value in module.__dict__.items():
        # Some modules keep their parameters a second time: RNNs have a list of weights.
        if isinstance(value, torch.Tensor) and id(value) in tensors:
            module.__dict__[name] = tensors[id(value)]
        elif isinstance(value, list | tuple) and any(id(one) in tensors for one in value):
            module.__dict__[name] = type(value)([tensors.get(id(one), one) for one in value])


class _Snapshot:
    """A module's attributes, and what those that are containers hold."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._attributes = dict(module.__dict__)
        self._contents = {
            name: value.copy()
            for name, value in module.__dict__.items()
            if type(value) in (list, dict, set, deque) or name in _OWN_DICTS
        }

    def restore(self) -> None:
        current = self._module.__dict__
        current.clear()
        current.update(self._attributes)
        for name, content in self._contents.items():
            container: Any = current[name]
            container.clear()
            if isinstance(container, list | deque):
                container.extend(content)
            else:
                container.update(content)
