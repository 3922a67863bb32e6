"""Which of its tensors a function can be differentiated by, where torch refuses some."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from gradoracle.tracing.arguments import Call
from gradoracle.tracing.autograd import gradients
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.seeds import seed
from gradoracle.tracing.watch import Watch

T = TypeVar("T")

_NOT_BY_THIS = re.compile(
    r"not differentiable with respect to argument|derivative for '.*' is not implemented"
    r"|does not support automatic differentiation for outputs with complex dtype"
)
_IN_PLACE = re.compile(r"leaf Variable that requires grad|view of a leaf Variable")


def settled(call: Call, reporter: Reporter, attempt: Callable[[], T]) -> T:
    """What the attempt returns, once the call's leaves are such that torch lets the function run.

    Gradients that torch refuses to compute are given up: by the target of a loss, by running statistics. Where the
    caller marked some tensors with requires_grad, it is the others that are given up. And where the function changes a
    tensor in place that requires grad, it gets copies. Errors of the function's own come out as they are.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if _IN_PLACE.search(str(error)) and not call.copies:
                call.copies = True
            elif not (_NOT_BY_THIS.search(str(error)) and _give_up(call, reporter)):
                raise


def _give_up(call: Call, reporter: Reporter) -> bool:
    """Gives up the gradients by one leaf, or by all that the caller did not mark. False where that changes nothing."""
    reporter.stage("looking for what it can be differentiated by")
    error = _error(call, reporter)
    tracked = [place for place, leaf in enumerate(call.leaves) if leaf.requires_grad]
    marked = [place for place in tracked if call.leaves[place].tensor.requires_grad]
    for group in ([place for place in tracked if place not in marked] if marked else [], *([one] for one in tracked)):
        if not group:
            continue
        for place in group:
            call.differentiable_by(place, False)
        if _error(call, reporter) != error:
            return True
        for place in group:
            call.differentiable_by(place, True)
    return False


def _error(call: Call, reporter: Reporter) -> str:
    """What the function raises now, "" where nothing."""
    leaves = call.fresh()
    tensors = call.started(leaves)
    watch = Watch(call, tensors, reporter)
    seed()
    with warnings.catch_warnings(), watch.observing(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            outputs = [one for _, one in call.run(tensors)]
            gradients(outputs, [torch.ones_like(one) for one in outputs], leaves)
        except Exception as error:
            return str(error)
    return ""
