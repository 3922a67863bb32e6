"""Checks of Python callables, in the process that calls: the entry point "callables" of "gradoracle.engine".

The answer is the one that a server would give, as bytes, so that whoever calls needs no second way to read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gradoracle.v1 import service_pb2 as pb
from gradoracle_server.engine import inprocess
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import InputSpec
from gradoracle_server.engine.phases import Phases
from gradoracle_server.worker import checks
from gradoracle_server.worker.statuses import reply_for
from gradoracle_server.worker.tensors import Outgoing

is_smooth_in_float64 = inprocess.is_smooth_in_float64


def check(
    function: inprocess.Function,
    inputs: Mapping[str, tuple[torch.Tensor, bool]],
    outputs: Sequence[str],
    request: bytes,
    *,
    claimed: Mapping[str, torch.Tensor],
    cotangents: Mapping[str, torch.Tensor],
    raisable: bool,
    raising: bool = False,
) -> tuple[int, bytes]:
    """Judges a function of tensors: (0, a serialized CheckGradientsResponse) or (gRPC's code, a google.rpc.Status).

    `inputs` holds, in the order in which the function takes them, each tensor and whether it requires grad. `request`
    is a serialized CheckGradientsRequest, for its options. `raisable` and `raising` as in CallablePlan. What the
    function itself raises, in its forward or its backward, is raised.
    """
    pairs = [(InputSpec(name, tracked), tensor) for name, (tensor, tracked) in inputs.items()]
    plan = inprocess.CallablePlan(function, pairs, outputs, raisable=raisable, raising=raising)
    phases = Phases(plan.device)
    message = pb.CheckGradientsRequest.FromString(request)
    primals = {name: tensor.detach() for name, (tensor, _) in inputs.items()}
    try:
        report = checks.run(message, plan, primals, claimed, cotangents, phases)
    except Fault as fault:
        if fault.reason == "COMPUTATION_FAILED" and fault.__cause__ is not None:
            raise fault.__cause__ from None
        reply = reply_for(fault, "CheckGradients")
        return reply.code, bytes(reply.payload)
    response = checks.write(report, Outgoing(False))
    response.timing.check = phases.seconds.get("check", 0.0)
    return 0, response.SerializeToString()
