"""Judges candidates: their outputs by `outputs`, their gradients by the service's check of claimed gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradoracle.batch.record_json import heat
from gradoracle.batch.records import Fault, Record
from gradoracle.batch.runner import fault
from gradoracle.batch.text import whole
from gradoracle.checks import CheckReport, Verdict
from gradoracle.client import Client
from gradoracle.errors import GradOracleError, InvalidRequestError
from gradoracle.graph import Graph
from gradoracle.kernels import candidates, outputs
from gradoracle.kernels.candidates import CandidateError, Task
from gradoracle.results import Timing
from gradoracle.tensors import Array, ArrayLike
from gradoracle.v1 import tensor_pb2

_ORDER = (
    Verdict.PASS,
    Verdict.NON_DIFFERENTIABLE,
    Verdict.INCONCLUSIVE,
    Verdict.NON_DETERMINISTIC,
    Verdict.FAIL,
)


class Judge:
    """Judges candidates against one reference graph at one point.

    Raises GradOracleError where the reference itself cannot be run there.
    """

    def __init__(
        self,
        client: Client,
        graph: Graph,
        inputs: Mapping[str, ArrayLike],
        cotangents: Mapping[str, ArrayLike] | None = None,
        *,
        seed: int | None = None,
        device: str | None = None,
        candidate_timeout: float = 60.0,
        candidate_device: str | None = None,
    ) -> None:
        self._client = client
        self._graph = graph
        self._seed = seed
        self._device = device
        drawn = _drawn(client, graph, inputs)
        self._reference = outputs.reference(client, graph, drawn, seed, device)
        floating = {name: one for name, one in self._reference.torch.items() if one.dtype.kind not in "biu"}
        given = self._cotangents(floating, cotangents)
        self._task = Task(
            inputs=drawn,
            cotangents={name: given.get(name, np.zeros_like(one)) for name, one in self._reference.torch.items()},
            wanted=tuple(
                name for name, one in drawn.items() if graph.requires_grad(name) and one.dtype.kind not in "biu"
            ),
            timeout=candidate_timeout,
            device=candidate_device,
        )
        self._given = given

    def _cotangents(self, floating: Mapping[str, Array], given: Mapping[str, ArrayLike] | None) -> dict[str, Array]:
        """Those that are given, else 1 for scalars and normal numbers for the rest, the same for every candidate."""
        if given is not None:
            for name in given:
                if name not in floating:
                    raise InvalidRequestError(f"cotangents: expected one of {', '.join(floating)}, got {name!r}")
            typed = {name: np.asarray(one).astype(floating[name].dtype) for name, one in given.items()}
            return {name: typed.get(name, np.zeros_like(one)) for name, one in floating.items()}
        generator = np.random.default_rng(0)
        return {
            name: np.ones_like(one) if not one.shape else generator.standard_normal(one.shape).astype(one.dtype)
            for name, one in floating.items()
        }

    def judge(self, path: Path, line: int) -> Record:
        """The record of one candidate, whose `line` is its place."""
        record = Record(id=whole(path.name), line=line, method="check", graph={"expression": ""})
        record.graph = None
        try:
            found = candidates.results(path, self._task)
            record.labels = {"candidate": whole(path.name), "kind": found.kind}
            record.report = self._report(found)
            record.timing = record.report.timing
        except CandidateError as error:
            record.error = Fault("CandidateError", error.reason, str(error), line=line)
        except GradOracleError as error:
            record.error = fault(error, line)
            record.error = dataclasses.replace(record.error, message=f"{path.name}: {record.error.message}")
        if record.report is not None:
            for name, one in record.report.inputs.items():
                if one.errors is not None and one.errors.size:
                    record.shapes[name] = one.errors.shape
                    record.report.inputs[name] = dataclasses.replace(one, errors=heat(one.errors))
        return record

    def _report(self, found: candidates.Results) -> CheckReport:
        claimed = {name: self._claim(name, found.gradients.get(name)) for name in self._task.wanted}
        if claimed:
            report = self._client.check(
                self._graph,
                self._task.inputs,
                claimed=claimed,
                cotangents=self._given,
                wrt=list(claimed),
                seed=self._seed or 0,
                device=self._device,
            )
        else:
            report = CheckReport(
                verdict=Verdict.PASS,
                inputs={},
                detection_power=0.0,
                evaluations=0,
                ladder=[],
                opinions=[],
                timing=Timing(),
            )
        judged = [outputs.judge(name, found.outputs.get(name), self._reference) for name in self._task.cotangents]
        report.inputs = {**{one.name: one for one in judged}, **report.inputs}
        if any(one.verdict is Verdict.FAIL for one in judged):
            report.verdict = Verdict.FAIL
        return report

    def _claim(self, name: str, gradient: Array | None) -> Array:
        """A gradient on trial; none at all claims zeros."""
        wanted = self._task.inputs[name]
        if gradient is None:
            return np.zeros_like(wanted)
        if gradient.shape != wanted.shape or gradient.dtype != wanted.dtype:
            raise CandidateError(
                f'gradient of "{name}": expected {wanted.dtype.name} {list(wanted.shape)}, '
                f"got {gradient.dtype.name} {list(gradient.shape)}",
                "CANDIDATE_FAILED",
            )
        return gradient


def _drawn(client: Client, graph: Graph, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """The inputs as arrays, in the graph's order; those that the server makes, made."""
    identity = Graph()
    made: dict[str, ArrayLike] = {}
    for name in graph.inputs:
        if name not in inputs:
            raise InvalidRequestError(f"inputs: expected a tensor for {name!r}, got none")
        value = inputs[name]
        floating = graph.requires_grad(name) and isinstance(value, bool | int | list | tuple)
        made[name] = np.asarray(value, np.float64) if floating else value
        identity.output(name, identity.input(name))
    if not any(isinstance(one, tensor_pb2.Tensor) for one in made.values()):
        return {name: np.asarray(one) for name, one in made.items()}
    return client.evaluate(identity, made).outputs


def rank(records: list[Record]) -> list[Record]:
    """The best first: by verdict, then by the largest error over its bound. Those without results come last."""

    def place(record: Record) -> tuple[int, float, str]:
        if record.report is None:
            return len(_ORDER), 0.0, record.id
        ratio = worst_ratio(record)
        verdict = Verdict.FAIL if record.report.wrong else record.report.verdict
        return _ORDER.index(verdict), math.inf if math.isnan(ratio) else ratio, record.id

    return sorted(records, key=place)


def worst_ratio(record: Record, *, of_outputs: bool | None = None) -> float:
    """The largest error over its bound: of outputs, of gradients, or of both."""
    assert record.report is not None  # noqa: S101  # asked only where there is one
    ratios = [
        one.max_error / one.error_bound if one.error_bound > 0 else math.inf if one.max_error else 0.0
        for name, one in record.report.inputs.items()
        if of_outputs is None or of_outputs is name.startswith("output ")
    ]
    return max(ratios, default=0.0)
