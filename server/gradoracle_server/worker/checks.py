"""CheckGradients: a request in, a judgement out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch

from gradoracle.v1 import check_pb2, tensor_pb2
from gradoracle.v1 import service_pb2 as pb
from gradoracle_server.engine import check
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.plan import Plan
from gradoracle_server.engine.report import InputReport, Mode, Number, Opinion, Report
from gradoracle_server.worker.tensors import Outgoing

_MODES = {
    check_pb2.CHECK_MODE_UNSPECIFIED: Mode.PROBE,
    check_pb2.CHECK_MODE_PROBE: Mode.PROBE,
    check_pb2.CHECK_MODE_FULL: Mode.FULL,
}


def options(request: pb.CheckGradientsRequest) -> check.Options:
    """What the request chose. Raises Fault where there is no such choice."""
    order = request.order if request.HasField("order") else 1
    if order not in (1, 2):
        raise _no_such("order", "1 or 2", order)
    if request.mode not in _MODES:
        raise _no_such("mode", "probe or full", f"number {request.mode}")
    if order == 2 and request.forward_mode:
        raise _no_such("forward_mode", "order 1 with it", "order 2")
    if order == 2 and request.batched_gradients:
        raise _no_such("batched_gradients", "order 1 with it", "order 2")
    if order == 2 and request.claimed:  # they would be weighted with numbers that no caller knows
        raise _no_such("claimed", "order 1 with it", "order 2")
    return check.Options(
        mode=_MODES[request.mode],
        order=order,
        seed=request.seed & 0x7FFF_FFFF_FFFF_FFFF,
        forward_mode=request.forward_mode,
        batched_gradients=request.batched_gradients,
    )


def run(
    request: pb.CheckGradientsRequest,
    plan: Plan,
    primals: Mapping[str, torch.Tensor],
    claimed: Mapping[str, torch.Tensor],
    cotangents: Mapping[str, torch.Tensor],
    phases: Phases,
) -> Report:
    """Checks what the request asks for."""
    chosen = options(request)
    with phases.measure("check"):
        return check.check(
            plan, primals, phases, claimed=claimed, cotangents=cotangents, wrt=request.wrt, options=chosen
        )


def write(report: Report, outgoing: Outgoing) -> pb.CheckGradientsResponse:
    """The report as a message."""
    response = pb.CheckGradientsResponse()
    message = response.report
    message.verdict = cast(check_pb2.Verdict, int(report.verdict))
    message.detection_power, message.evaluations = report.detection_power, report.evaluations
    message.random_cotangents = report.random_cotangents
    for one in report.inputs:
        _write_input(one, message.inputs.add(), outgoing)
    for rung in report.ladder:
        message.ladder.add(step=rung.step, error=rung.error, error_bound=rung.error_bound)
    for opinion in report.opinions:
        _write_opinion(opinion, message.opinions.add())
    return response


def _write_input(report: InputReport, message: check_pb2.InputReport, outgoing: Outgoing) -> None:
    message.name, message.explanation = report.name, report.explanation
    message.verdict = cast(check_pb2.Verdict, int(report.verdict))
    message.diagnosis = cast(check_pb2.Diagnosis, int(report.diagnosis))
    message.max_error, message.error_bound = report.max_error, report.error_bound
    message.detection_power = report.detection_power
    if report.factor is not None:
        message.factor = report.factor
    if report.kink is not None:
        message.kink.low, message.kink.high = report.kink
    if report.claim_inside is not None:
        message.claim_inside = report.claim_inside
    if report.errors is not None:
        outgoing.fill(message.errors, report.errors.to(torch.float32))
    for one in report.worst:
        mismatch = message.worst.add(error=one.error, error_bound=one.error_bound, output=one.output)
        mismatch.index.extend(one.index)
        mismatch.output_index.extend(one.output_index)
        _write_number(one.claimed, mismatch.claimed)
        _write_number(one.reference, mismatch.reference)
        _write_number(one.numerical, mismatch.numerical)


def _write_opinion(opinion: Opinion, message: check_pb2.Opinion) -> None:
    message.name, message.explanation = opinion.name, opinion.explanation
    message.verdict = cast(check_pb2.Verdict, int(opinion.verdict))
    message.error, message.error_bound = opinion.error, opinion.bound


def _write_number(number: Number, message: tensor_pb2.Scalar) -> None:
    if isinstance(number, complex):
        message.complex.real, message.complex.imag = number.real, number.imag
    else:
        message.real = number


def _no_such(field: str, expected: str, got: object) -> Fault:
    message = f"{field}: expected {expected}, got {got}"
    return Fault("INVALID_SELECTION", message, field=field, expected=expected, got=got)
