"""The process in which one candidate runs: `python -m gradoracle.kernels.child CANDIDATE.py TASK RESULT`.

It knows nothing of the reference. A candidate that imports torch gets torch tensors, another one numpy arrays. It is,
in this order,

    a function `forward`, and `backward`        backward(*cotangents, *inputs) gives the gradients, in the inputs' order
    a subclass of torch.autograd.Function       differentiated by torch
    a function: `forward`, one of the file's name, or the only public one       differentiated by torch

and is called with the inputs by position, in the graph's order. What it returns is one tensor, a tuple in the order of
the graph's outputs, or a dict by name.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gradoracle import tensors
from gradoracle.kernels import handover
from gradoracle.tensors import Array


def main(arguments: Sequence[str]) -> None:
    """Runs the candidate; what it raises ends the process."""
    source, task, result = map(Path, arguments)
    groups, notes = handover.read(task)
    module = load(source)
    inputs = groups.get("inputs", {})
    device = notes.get("device")
    to, back = _converters(str(device) if device else None)
    given = {name: to(array) for name, array in inputs.items()}
    cotangents = {name: to(array) for name, array in groups.get("cotangents", {}).items()}
    wanted = list(groups.get("wanted", {}))
    kind, outputs, gradients = run(module, source.stem, given, cotangents, wanted)
    handover.write(
        result,
        {
            "outputs": {name: back(one) for name, one in outputs.items()},
            "gradients": {name: None if one is None else back(one) for name, one in gradients.items()},
        },
        kind=kind,
    )


def load(path: Path) -> ModuleType:
    """The module in a file, whose folder it may import from."""
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def run(
    module: ModuleType, name: str, inputs: dict[str, Any], cotangents: dict[str, Any], wanted: list[str]
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What the candidate is, its outputs and its gradients by the inputs `wanted`."""
    own = {key: one for key, one in vars(module).items() if getattr(one, "__module__", None) == module.__name__}
    forward, backward = own.get("forward"), own.get("backward")
    if callable(forward) and callable(backward):
        outputs = _named(forward(*inputs.values()), list(cotangents), "forward")
        return (
            "forward and backward",
            outputs,
            _gradients(backward(*cotangents.values(), *inputs.values()), inputs, wanted),
        )
    torch = sys.modules.get("torch")
    if torch is None:
        raise TypeError(f"expected {name}.py to define forward and backward, or to import torch for its gradients")
    kind, function = _function(own, name, torch)
    leaves = {key: one.detach().clone().requires_grad_(key in wanted) for key, one in inputs.items()}
    outputs = _named(function(*leaves.values()), list(cotangents), name)
    roots = [(outputs[key], cotangents[key]) for key in cotangents if outputs[key].requires_grad]
    by = [leaves[key] for key in wanted]
    found: Any = [None] * len(by)
    if roots and by:
        found = torch.autograd.grad([one for one, _ in roots], by, [one for _, one in roots], allow_unused=True)
    return kind, outputs, dict(zip(wanted, found, strict=True))


def _function(own: Mapping[str, Any], name: str, torch: Any) -> tuple[str, Callable[..., Any]]:
    classes = [one for one in own.values() if inspect.isclass(one) and issubclass(one, torch.autograd.Function)]
    if len(classes) == 1:
        apply: Callable[..., Any] = classes[0].apply  # type: ignore[attr-defined]  # torch is not known here
        return "torch.autograd.Function", apply
    functions = {key: one for key, one in own.items() if inspect.isfunction(one) and not key.startswith("_")}
    for key in ("forward", name, *(functions if len(functions) == 1 else ())):
        if key in functions:
            return "function", functions[key]
    found = ", ".join([*functions, *(one.__name__ for one in classes)]) or "none"
    raise TypeError(
        f"expected {name}.py to define forward and backward, one torch.autograd.Function, or one function, got {found}"
    )


def _named(returned: Any, names: list[str], what: str) -> dict[str, Any]:
    if isinstance(returned, Mapping):
        missing = [name for name in names if name not in returned]
        if missing:
            raise TypeError(f"{what}: expected outputs {', '.join(names)}, got {', '.join(returned)}")
        return {name: returned[name] for name in names}
    several = list(returned) if isinstance(returned, tuple | list) else [returned]
    if len(several) != len(names):
        raise TypeError(f"{what}: expected {len(names)} outputs ({', '.join(names)}), got {len(several)}")
    return dict(zip(names, several, strict=True))


def _gradients(returned: Any, inputs: Mapping[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Gradients as backward gave them: by name, or in the order of the inputs, all of them or those wanted."""
    if isinstance(returned, Mapping):
        return {name: returned.get(name) for name in wanted}
    several = list(returned) if isinstance(returned, tuple | list) else [returned]
    for names in (list(inputs), wanted):
        if len(several) == len(names):
            by_name = dict(zip(names, several, strict=True))
            return {name: by_name[name] for name in wanted}
    raise TypeError(f"backward: expected {len(inputs)} gradients ({', '.join(inputs)}), got {len(several)}")


def _converters(device: str | None) -> tuple[Callable[[Any], Any], Callable[[Any], Array]]:
    """To the candidate's tensors and back."""
    torch = sys.modules.get("torch")  # there, if the candidate imported it; never imported here

    def to(array: Any) -> Any:
        if torch is None:
            return np.array(array)
        if array.dtype.kind == "V":  # of ml_dtypes, which torch takes for nothing
            bits = torch.from_numpy(array.view(f"u{array.dtype.itemsize}").copy())
            tensor = bits.view(getattr(torch, array.dtype.name))
        else:
            tensor = torch.from_numpy(array.copy())
        return tensor if device is None else tensor.to(device)

    def back(value: Any) -> Array:
        if hasattr(value, "cpu"):
            value = value.detach().cpu()
        return tensors.as_array(value, "the candidate's result", floating=True)

    return to, back


if __name__ == "__main__":
    main(sys.argv[1:])
