"""Custom autograd.Functions and gradient hooks, each as an operator of its own within the graph.

While the caller's function is recorded, the forward of each custom Function that it is known to use is replaced: it
runs unseen, and one node stands for the call. A hook becomes a Function too: the identity, whose gradient is the hook.
Afterwards each of them is traced by itself, values and gradient.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental import proxy_tensor

from gradoracle.tracing import blame
from gradoracle.tracing.arguments import Call
from gradoracle.tracing.joint import function_of
from gradoracle.tracing.progress import Reporter
from gradoracle.tracing.refusals import Unfaithful
from gradoracle.tracing.watch import INPUT, Hook, Mark, Watch, mark_of
from gradoracle.v1 import graph_pb2 as pb


@dataclasses.dataclass(slots=True)
class Occurrence:
    """One call of a custom Function, or one hook."""

    name: str
    run: Callable[..., Any]
    """The call, as a function of its tensors."""
    tensors: list[torch.Tensor]
    """What it was called with, as it was then."""
    tracked: list[bool]
    place: blame.Place
    results: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """The very results, to see which of them carry a gradient in the end."""
    node: fx.Node | None = None
    target: str = ""
    """Its name in the graph."""

    def is_cut(self, index: int) -> bool:
        """Whether a result carries no gradient although the call has one."""
        tracked = any(one.requires_grad for one in self.results)
        return tracked and index < len(self.results) and not self.results[index].requires_grad


class Apart:
    """Collects the occurrences of one run."""

    def __init__(self, classes: Sequence[type[torch.autograd.Function]]) -> None:
        self._classes = classes
        self.occurrences: list[Occurrence] = []

    @contextlib.contextmanager
    def intercepting(self) -> Iterator[None]:
        """Replaces the forwards, and puts them back."""
        with contextlib.ExitStack() as stack:
            for cls in self._classes:
                stack.enter_context(_forward_replaced(cls, self._called))
            yield

    def _called(self, cls: type[torch.autograd.Function], forward: Callable[..., Any], args: Sequence[Any]) -> Any:
        """Stands for a forward: runs it unseen, and records a node for the whole call."""
        mode = proxy_tensor.get_innermost_proxy_mode()
        if mode is None:  # within another one's forward
            return forward(*args)
        given = args if _has_setup_context(cls) else args[1:]
        tensors = [one for one in given if isinstance(one, torch.Tensor)]
        if any(torch._C._functorch.is_functorch_wrapped_tensor(one) for one in tensors):
            raise _not_apart(cls.__qualname__, "it is called under a transform of torch.func")
        versions = [one._version for one in tensors]
        occurrence = Occurrence(
            cls.__name__,
            _applied(cls, given),
            [one.detach().clone() for one in tensors],
            [one.requires_grad for one in tensors],
            blame.place(),
        )
        with proxy_tensor.disable_proxy_modes_tracing():
            occurrence.tensors = [one.detach().clone() for one in tensors]
            result = forward(*args)
            if [one._version for one in tensors] != versions:
                raise _not_apart(cls.__qualname__, "it changes its argument in place")
            several = isinstance(result, tuple)
            results = [_fresh(one, tensors) for one in (result if several else (result,))]
        if not all(isinstance(one, torch.Tensor) for one in results):
            raise _not_apart(cls.__qualname__, "it returns something that is no tensor")
        tracer: Any = mode.tracer
        proxies = [proxy_tensor.get_proxy_slot(one, tracer, one, lambda slot: slot.proxy) for one in tensors]
        proxy = tracer.create_proxy("call_function", _marker(len(self.occurrences)), tuple(proxies), {})
        self.occurrences.append(occurrence)
        occurrence.results, occurrence.node = results, proxy.node
        returned: Any = tuple(results) if several else results[0]
        with proxy_tensor.disable_proxy_modes_tracing():
            proxy_tensor.track_tensor_tree(returned, proxy, constant=None, tracer=tracer)
        return returned

    def add_hooks(self, graph: fx.Graph, hooks: Sequence[Hook]) -> None:
        """Puts a node behind each value that has hooks, in the place of the value. The last hook's comes first, so that
        the first one registered is the first to see the gradient."""
        for hook in hooks:
            node = hook.node
            if not hook.is_active or node._erased:
                continue
            occurrence = Occurrence("hook", _hooked(hook.function), [hook.value], [True], hook.place)
            with graph.inserting_after(node):
                behind = graph.call_function(_marker(len(self.occurrences)), (node,))
            behind.meta["gradoracle"] = Mark(True, INPUT, hook.place)
            node.replace_all_uses_with(behind, delete_user_cb=functools.partial(operator.is_not, behind))
            self.occurrences.append(occurrence)

    def of(self, target: Any) -> Occurrence | None:
        """What an fx node stands for that calls `target`; None where it is an ordinary one."""
        index = getattr(target, "occurrence", None)
        return None if index is None else self.occurrences[index]

    def functions(self, reporter: Reporter, watch: Watch) -> list[pb.Function]:
        """The functions that the graph needs; each occurrence then has the name of its own. Raises Unfaithful."""
        found: list[pb.Function] = []
        names: set[str] = set()
        for occurrence in self.occurrences:
            if occurrence.node is not None:  # recorded within the forward, where autograd never records
                mark_of(occurrence.node).tracked = any(one.requires_grad for one in occurrence.results)
            call = Call(occurrence.run, occurrence.tensors, {})
            for place, tracked in enumerate(occurrence.tracked):
                call.differentiable_by(place, tracked)
            function = function_of(call, reporter, foreign=watch.created)
            same = [one for one in found if (one.forward, one.backward) == (function.forward, function.backward)]
            if same:
                occurrence.target = same[0].name
                continue
            base = re.sub(r"\W", "_", occurrence.name) or "function"
            counted = (f"{base}_{count}" if count else base for count in itertools.count())
            function.name = occurrence.target = next(name for name in counted if name not in names)
            names.add(function.name)
            found.append(function)
        return found


@contextlib.contextmanager
def _forward_replaced(
    cls: type[torch.autograd.Function], called: Callable[[Any, Callable[..., Any], Sequence[Any]], Any]
) -> Iterator[None]:
    forward: Callable[..., Any] = cls.forward
    own = cls.__dict__.get("forward")

    @functools.wraps(forward)
    def replaced(*args: Any) -> Any:
        return called(cls, forward, args)

    cls.forward = staticmethod(replaced)  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del cls.forward
        else:
            cls.forward = own  # type: ignore[method-assign]


def _has_setup_context(cls: type[torch.autograd.Function]) -> bool:
    defined: bool = torch.autograd.function._is_setup_context_defined(cls.setup_context)  # type: ignore[no-untyped-call]
    return defined


def _applied(cls: type[torch.autograd.Function], given: Sequence[Any]) -> Callable[..., Any]:
    """A call of a custom Function as a function of its tensors alone."""
    places = [place for place, one in enumerate(given) if isinstance(one, torch.Tensor)]
    template = [None if isinstance(one, torch.Tensor) else one for one in given]

    def run(*tensors: torch.Tensor) -> Any:
        args = list(template)
        for place, tensor in zip(places, tensors, strict=True):
            args[place] = tensor
        return cls.apply(*args)  # type: ignore[no-untyped-call]

    return run


def _hooked(hook: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
    """The identity whose gradient is the hook."""

    class Hooked(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
            changed = hook(g)
            return g if changed is None else changed

    def run(x: torch.Tensor) -> Any:
        return Hooked.apply(x)  # type: ignore[no-untyped-call]

    return run


def _fresh(result: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """A result that can be told from the arguments, also where a forward returns one of those."""
    return result.view_as(result) if any(result is one for one in tensors) else result


def _marker(index: int) -> Callable[..., Any]:
    """What an fx node calls that stands for an occurrence."""

    def occurrence(*tensors: Any) -> Any:
        raise NotImplementedError  # never run: it only stands in a recording until the node's Function takes its place

    occurrence.occurrence = index  # type: ignore[attr-defined]
    return occurrence


def _not_apart(name: str, why: str) -> Unfaithful:
    return Unfaithful(
        f"{name} is no operator of its own: {why}",
        blame.place(),
        "write it so that it takes and returns tensors and changes none",
        construct=f"the custom autograd.Function {name}",
    )
