"""`check`: one call for people who have a function and, perhaps, gradients that they claim for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gradoracle import channel, claims, private, requests
from gradoracle.checks import CheckReport
from gradoracle.client import Client
from gradoracle.errors import InvalidRequestError
from gradoracle.graph import Graph
from gradoracle.tensors import ArrayLike
from gradoracle.v1 import tensor_pb2


class GradcheckWarning(UserWarning):
    """`gradcheck` or `gradgradcheck` returned True although not every gradient was shown to be right.

    Either the function has a kink at the point, and the gradient lies between the one-sided slopes; or the numerics
    cannot tell at the point; or the gradient is off, by less than a tolerance that was asked for and is wider than
    torch's default; or nothing there could have a gradient. The message is the report, or says so.
    `warnings.simplefilter("error", gradoracle.GradcheckWarning)`, or pytest's
    `filterwarnings = ["error::gradoracle.GradcheckWarning"]`, makes each of them an error.
    """


def check(
    fn: Callable[..., Any] | Graph | str,
    /,
    *inputs: ArrayLike,
    claimed: Any = None,
    cotangents: Any = None,
    client: Client | None = None,
    order: int = 1,
    mode: str = "probe",
    seed: int | None = 0,
    forward_mode: bool = False,
    batched_gradients: bool = False,
    device: str | None = None,
    timeout: float | None = None,
) -> CheckReport:
    """Judges the gradients of a function at a point: autograd's own, or those that are claimed.

        go.check("sum(x**3)", [1.0, 2.0, 3.0], claimed=[3.0, 12.0, 27.027])  # FAIL, names x[2]
        go.check(my_kernel, torch.randn(8, dtype=torch.float64, requires_grad=True))

    `fn` is a torch callable, a Graph or an expression. The inputs are numpy arrays, numbers, nested lists, torch
    tensors or anything with `__dlpack__`, in the order of the callable's parameters or of the graph's inputs, and have
    their names. A callable gets torch tensors, of float64 for what has no dtype of its own. Beside an array it gets
    numbers, lists of whole numbers and tuples, which may be dimensions, as they are; flags, texts and None always.

    On trial are the inputs that require grad, as in torch: torch tensors if they say so, what is no torch tensor in any
    case; a module's parameters too. Where nothing says so, every floating and complex input is. Integer and bool
    inputs, which have no gradient to claim, are named beside autograd's own gradients.

    `claimed` holds gradients of the shapes and dtypes of the inputs on trial: a dict by name, a sequence in the order
    of the inputs on trial with None where nothing is claimed, one array where there is one input, or a function that
    returns such, a hand-written backward, which is called with the inputs, arrays for lists. They may come from any
    library: they are taken by `__dlpack__`. `cotangents`, in the same forms but by output, are what they are pulled
    back from; they can be left out where every output is a real scalar, and where autograd's own gradients are on
    trial.

    What is made of torch's operators is traced, and judged by the server of `client`, or else by a private one on this
    machine, which is started at the first call and stopped when the process ends. What cannot be traced, and what
    brings a backward of its own while that is on trial, is judged in this process, where it is run as it is. What is
    in low precision is held against a run in float64, for which the tensors that a function closes over or makes are
    raised, too; where it rounds on the way all the same, by code that torch does not see, against its own values. Of a
    function that takes no torch tensors, or gives none, one of numpy's or jax's for instance, a claim is judged in this
    process by differences alone: it gets arrays as the caller gave them, and may return arrays and numbers. The other
    options are those of `Client.check`.

    Raises InvalidRequestError for arguments that do not fit, TraceError for a function that can be judged neither way,
    as one of numpy's without a claim, and whatever the function raises at the point itself. A wrong gradient is a
    verdict, not an exception.
    """
    if client is not None and not isinstance(client, Client):
        raise TypeError(f"client: expected a gradoracle.Client, got {type(client).__name__}")
    channel.seconds(timeout)  # a function that is judged in this process has no use for it
    options: dict[str, Any] = {
        "order": order,
        "mode": mode,
        "seed": seed,
        "forward_mode": forward_mode,
        "batched_gradients": batched_gradients,
        "device": device,
    }

    def ask(graph: Graph, primals: dict[str, Any], claimed: Any, cotangents: Any) -> CheckReport:
        def call(one: Client) -> CheckReport:
            return one.check(graph, primals, claimed=claimed, cotangents=cotangents, timeout=timeout, **options)

        return call(client) if client is not None else private.call(call)

    if isinstance(fn, str | Graph):
        return _of_graph(requests.graph_of(fn), inputs, claimed, cotangents, ask)
    if not callable(fn):
        raise TypeError(f"fn: expected a callable, a Graph or an expression, got {type(fn).__name__}")
    try:
        from gradoracle.tracing import callables
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        text = (
            "checking a Python function needs torch, which is not installed; install gradoracle[torch], "
            "or give a Graph or an expression"
        )
        raise ModuleNotFoundError(text, name="torch") from error
    return callables.check(fn, inputs, claimed, cotangents, options, ask)


Ask = Callable[[Graph, dict[str, Any], Any, Any], CheckReport]


def _of_graph(graph: Graph, inputs: Sequence[ArrayLike], claimed: Any, cotangents: Any, ask: Ask) -> CheckReport:
    if len(inputs) != len(graph.inputs):
        listed = ", ".join(f'"{name}"' for name in graph.inputs) or "none"
        expected, got = f"{len(graph.inputs)} ({listed})", str(len(inputs))
        raise InvalidRequestError(
            f"inputs: expected {expected}, got {got}",
            reason="INPUT_MISMATCH",
            metadata={"field": "primals", "expected": expected, "got": got},
        )
    given = dict(zip(graph.inputs, inputs, strict=True))
    marked = {name for name, one in given.items() if getattr(one, "requires_grad", False)}
    if marked:
        unable = {name for name, one in given.items() if not _can_require_grad(one)}
        graph = on_trial(graph, {name for name in marked | unable if graph.requires_grad(name)})
    primals = {
        name: one if isinstance(one, tensor_pb2.Tensor) else _primal(one, name, graph.requires_grad(name))
        for name, one in given.items()
    }
    arrays = [primals[name] if isinstance(one, list | tuple) else one for name, one in given.items()]
    return judge(graph, primals, claims.claimed_by(claimed, arrays), cotangents, ask)


def judge(graph: Graph, primals: dict[str, Any], claimed: Any, cotangents: Any, ask: Ask) -> CheckReport:
    """Asks for a judgement on the graph at the primals, numpy arrays by name; claims and cotangents in any form."""
    shapes = {name: tuple(one.shape) for name, one in primals.items()}
    tried = [name for name in graph.inputs if graph.requires_grad(name) and _is_floating(primals[name])]
    if claimed is not None:
        named = claims.by_name(claimed, tried, shapes, "claimed", "input")
        arrays = {name: one for name, one in primals.items() if not isinstance(one, tensor_pb2.Tensor)}
        claimed = claims.like(named, arrays, "claimed")
    if cotangents is not None:
        named = claims.by_name(cotangents, graph.outputs, {}, "cotangents", "output")
        cotangents = {name: claims.host_array(one, f'cotangents["{name}"]') for name, one in named.items()}
    return ask(graph, primals, claimed, cotangents)


def on_trial(graph: Graph, names: set[str]) -> Graph:
    """The same graph, in which only these inputs require grad."""
    message = graph.message
    for one in message.inputs:
        one.requires_grad = one.name in names
    return Graph.from_message(message)


def _can_require_grad(value: Any) -> bool:
    """Whether it is a torch tensor that could say that it requires grad."""
    kind = getattr(value, "dtype", None)
    return hasattr(value, "requires_grad") and any(
        getattr(kind, one, True) for one in ("is_floating_point", "is_complex")
    )


def _primal(value: ArrayLike, name: str, floating: bool) -> Any:
    numbers = isinstance(value, bool | int | float | complex | list | tuple)
    if numbers and not floating:
        from gradoracle import tensors

        return tensors.as_array(value, f'primals["{name}"]', floating=False)
    return claims.host_array(value, f'primals["{name}"]')


def _is_floating(value: Any) -> bool:
    if isinstance(value, tensor_pb2.Tensor):
        return True
    return value.dtype.kind in "fcV"
