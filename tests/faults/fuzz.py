"""Every served overload, called with arguments that follow its schema in kind and little else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

from faults.answers import is_contained, over_stream
from faults.callers import calling
from faults.operator_calls import Call
from faults.outcome import Outcome
from faults.servers import connection_to_stream, serving
from gradoracle.operators import Operator, table
from gradoracle.schema import Parameter

SHORT = {"calls": 776, "seed": 1, "request_timeout": "500ms"}
LONG = {"calls": 33 * 1552, "seed": 2, "request_timeout": "1s"}

_SHAPES = [[], [1], [3], [4], [0], [2, 3], [3, 3], [3, 0], [4, 4], [1, 2, 3], [2, 3, 3], [1, 1, 4, 4], [2, 3, 4, 4]]
_MORE_SHAPES = [[1, 2, 3, 4, 4], [1, 1, 1, 1, 1, 1, 1, 2], [1000], [1, 100_000], [64, 64]]
_DTYPES = ["float64"] * 6 + ["float32", "int64", "int64", "int32", "bool", "complex128"]
_MORE_DTYPES = ["uint8", "int8", "int16", "float16", "bfloat16", "complex64", "uint64", "float8_e4m3fn"]
_INTS = [0, 1, 1, 2, 2, 3, 4, -1, -1, -2]
_MORE_INTS = [5, 7, 100, -3, 2**15, 2**31 - 1, 2**31, -(2**31), 2**40, 2**53, 2**62, 2**63 - 1, -(2**63), 10**6, 10**9]
_REALS = [0.0, 1.0, 0.5, -1.0, 2.0, 1e-5]
_MORE_REALS = [float("nan"), float("inf"), float("-inf"), 1e308, -1e308, 1e-320, 1e15, -0.0, 3.7]
_TEXTS = ["mean", "sum", "none", "max", "reflect", "bilinear", "ij,jk->ik", "trunc", "floor", "tanh", "linear"]
_MORE_TEXTS = ["", "x" * 300, "\N{SNOWMAN}", "ii->", "...", "%s%n"]
_VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "int": (_INTS, _MORE_INTS),
    "float": (_REALS, _MORE_REALS),
    "Scalar": ([*_INTS, *_REALS, True], [*_MORE_INTS, *_MORE_REALS, 1 + 2j]),
    "bool": ([False, True], []),
    "str": (_TEXTS, _MORE_TEXTS),
    "dtype": ([{"dtype": name} for name in _DTYPES], [{"dtype": name} for name in _MORE_DTYPES]),
    "device": ([{"device": "cpu"}], []),
    "layout": ([{"layout": "strided"}], [{"layout": "sparse_coo"}, {"layout": "sparse_csr"}]),
    "memory_format": ([{"memory_format": name} for name in ("contiguous", "preserve", "channels_last")], []),
}
"""The usual values and the odd ones of each kind of parameter but tensors."""

_STEP = 1009  # prime, so that a short run comes by operators of all names too
_ODD = 0.25  # how often a value is of the second kind
_NO_KIND = {"Generator", "Storage", "Stream", "Any"}  # nothing on the wire stands for such a parameter


def run(calls: int, seed: int, request_timeout: str) -> Outcome:
    """Makes calls in turn over all overloads, half of them with a gradient, beside a caller whose answers are known."""
    operators = list(table().served.values())
    outcome = Outcome(
        "schema-directed fuzz",
        f"{calls} calls over {len(operators)} overloads, half of them with gradients, a caller beside them",
        "each answered; the caller's answers right, none lost",
    )
    counts: Counter[str] = Counter()
    made: dict[int, str] = {}
    started = time.monotonic()

    def source() -> Iterator[tuple[str, bytes]]:
        for number in range(calls):
            operator = operators[number * _STEP % len(operators)]
            made[number] = operator.name
            yield request(operator, Random(seed * 10**9 + number))  # noqa: S311

    flags = ["--workers", "2", "--max-memory-bytes", "1GiB", "--request-timeout", request_timeout]
    with serving(*flags) as server, calling(server.address, pause=0.05) as other:
        with connection_to_stream(server.address) as converse:
            for number, what, message in over_stream(converse, source(), window=3):
                counts[what] += 1
                name = made.pop(number)
                outcome.require(
                    is_contained(what), f"{name} (call {number}): {what}: {message}{server.incident(message)}"
                )
        seconds = time.monotonic() - started
        other.finish()
        outcome.figures = {
            "answered": sum(counts.values()),
            **dict(counts.most_common()),
            "workers lost": server.restarts("crash", "killed", "deadline"),
            "other answered": other.answered,
            "other wrong": len(other.wrong),
            "other lost": other.lost,
            "seconds": seconds,
        }
        outcome.require(calls == sum(counts.values()), f"{calls - sum(counts.values())} calls were not answered")
        outcome.require(server.process.poll() is None, "the front has ended")
        outcome.require(not other.wrong and not _lost(other.failed), f"{other.wrong[:3]} {other.failed}")
        outcome.require(0 < counts["OK"] < calls, "either all or none of the calls were fine: nothing was tried")
    return outcome


def _lost(failed: Counter[str]) -> list[str]:
    """What the caller beside lost for another reason than the server's short --request-timeout."""
    return [text for text in failed if not text.startswith("DEADLINE_EXCEEDED")]


def request(operator: Operator, chosen: Random) -> tuple[str, bytes]:
    """A call of an operator: the method, and the request."""
    made = Call()
    kwargs = {
        parameter.name: value(parameter, chosen)
        for parameter in operator.schema.parameters
        if parameter.kind not in _NO_KIND and (parameter.required or chosen.random() < 0.6)
    }
    last = made.node(operator.name, [], kwargs)
    returns = operator.schema.returns
    if not returns:
        made.output(last)
        return "Evaluate", made.evaluate()
    if not operator.schema.returns_tensor:
        last = made.node("getitem", [{"value": last}, 0], {})
    if chosen.random() < 0.5:
        made.output(last)
        return "Evaluate", made.evaluate()
    last = made.node("aten.sum.default", [{"value": last}], {})
    made.output(last)
    return "ComputeVjp", made.vjp()


def value(parameter: Parameter, chosen: Random) -> Any:
    """An argument of a parameter's kind."""
    if (parameter.optional and chosen.random() < 0.3) or parameter.kind in _NO_KIND:
        return None
    if not parameter.is_list:
        return _one(parameter, chosen)
    length = parameter.size if parameter.size and chosen.random() < 0.7 else chosen.choice([0, 1, 2, 3, 4])
    return [
        None if parameter.optional_items and chosen.random() < 0.3 else _one(parameter, chosen) for _ in range(length)
    ]


def _one(parameter: Parameter, chosen: Random) -> Any:
    if parameter.kind == "Tensor":
        return _tensor(chosen)
    usual, odd = _VALUES[parameter.kind]
    return chosen.choice(odd if odd and chosen.random() < _ODD else usual)


def _tensor(chosen: Random) -> dict[str, Any]:
    shape = chosen.choice(_MORE_SHAPES if chosen.random() < 0.1 else _SHAPES)
    dtype = chosen.choice(_MORE_DTYPES if chosen.random() < 0.1 else _DTYPES)
    if dtype.startswith(("float", "bfloat", "complex")) and not dtype.startswith("float8"):
        if chosen.random() < 0.8:
            return {"normal": shape, "of": dtype}
        return {"fill": chosen.choice(_MORE_REALS if chosen.random() < _ODD else _REALS), "shape": shape, "of": dtype}
    if dtype in ("int64", "int32") and chosen.random() < 0.3:
        bits = 63 if dtype == "int64" else 31
        fits = [number for number in _MORE_INTS if -(2**bits) <= number < 2**bits]
        return {"fill": chosen.choice(fits), "shape": shape, "of": dtype}
    return {"fill": chosen.choice([0, 1]), "shape": shape, "of": dtype}
