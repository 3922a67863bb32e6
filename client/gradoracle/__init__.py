"""Gradients of op graphs, and judgements of gradients, from a gradoracle server.

    import gradoracle as go

    with go.Client("localhost:50051") as client:
        client.vjp("9*x**4 + 2*x**3 + 3*x**2 + 6*x + 1", {"x": 2.0}).gradients["x"]  # 330.0

Names are imported when they are first used, so that what needs one part of the package loads no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradoracle.aio import AsyncClient as AsyncClient
    from gradoracle.calls import ops as ops
    from gradoracle.checks import CheckReport as CheckReport
    from gradoracle.checks import Diagnosis as Diagnosis
    from gradoracle.checks import InputReport as InputReport
    from gradoracle.checks import Mismatch as Mismatch
    from gradoracle.checks import Verdict as Verdict
    from gradoracle.client import Client as Client
    from gradoracle.errors import AuthenticationError as AuthenticationError
    from gradoracle.errors import ComputationError as ComputationError
    from gradoracle.errors import DeadlineExceededError as DeadlineExceededError
    from gradoracle.errors import DeviceUnavailableError as DeviceUnavailableError
    from gradoracle.errors import GradOracleError as GradOracleError
    from gradoracle.errors import InvalidGraphError as InvalidGraphError
    from gradoracle.errors import InvalidRequestError as InvalidRequestError
    from gradoracle.errors import OverloadedError as OverloadedError
    from gradoracle.errors import ResourceLimitError as ResourceLimitError
    from gradoracle.errors import ServerUnavailableError as ServerUnavailableError
    from gradoracle.errors import TensorError as TensorError
    from gradoracle.errors import TraceError as TraceError
    from gradoracle.errors import UnsupportedOperatorError as UnsupportedOperatorError
    from gradoracle.errors import WorkerCrashedError as WorkerCrashedError
    from gradoracle.graph import Graph as Graph
    from gradoracle.judging import GradcheckWarning as GradcheckWarning
    from gradoracle.judging import check as check
    from gradoracle.local import local_server as local_server
    from gradoracle.requests import Request as Request
    from gradoracle.requests import request as request
    from gradoracle.results import EvaluateResult as EvaluateResult
    from gradoracle.results import HessianResult as HessianResult
    from gradoracle.results import HvpResult as HvpResult
    from gradoracle.results import Inspection as Inspection
    from gradoracle.results import JacobianResult as JacobianResult
    from gradoracle.results import JvpResult as JvpResult
    from gradoracle.results import OperatorInfo as OperatorInfo
    from gradoracle.results import ServerInfo as ServerInfo
    from gradoracle.results import Timing as Timing
    from gradoracle.results import ValueInfo as ValueInfo
    from gradoracle.results import VjpResult as VjpResult
    from gradoracle.tensors import fill as fill
    from gradoracle.tensors import integers as integers
    from gradoracle.tensors import normal as normal
    from gradoracle.tensors import uniform as uniform
    from gradoracle.tls import TLS as TLS
    from gradoracle.tracing import trace as trace
    from gradoracle.tracing.gradcheck import GradcheckError as GradcheckError
    from gradoracle.tracing.gradcheck import gradcheck as gradcheck
    from gradoracle.tracing.gradcheck import gradgradcheck as gradgradcheck
    from gradoracle.values import Value as Value
    from gradoracle.values import ValueList as ValueList

_MODULES = {
    "aio": ("AsyncClient",),
    "calls": ("ops",),
    "checks": ("CheckReport", "Diagnosis", "InputReport", "Mismatch", "Verdict"),
    "client": ("Client",),
    "errors": (
        "AuthenticationError",
        "ComputationError",
        "DeadlineExceededError",
        "DeviceUnavailableError",
        "GradOracleError",
        "InvalidGraphError",
        "InvalidRequestError",
        "OverloadedError",
        "ResourceLimitError",
        "ServerUnavailableError",
        "TensorError",
        "TraceError",
        "UnsupportedOperatorError",
        "WorkerCrashedError",
    ),
    "graph": ("Graph",),
    "judging": ("GradcheckWarning", "check"),
    "local": ("local_server",),
    "requests": ("Request", "request"),
    "results": (
        "EvaluateResult",
        "HessianResult",
        "HvpResult",
        "Inspection",
        "JacobianResult",
        "JvpResult",
        "OperatorInfo",
        "ServerInfo",
        "Timing",
        "ValueInfo",
        "VjpResult",
    ),
    "tensors": ("fill", "integers", "normal", "uniform"),
    "tls": ("TLS",),
    "tracing": ("trace",),
    "tracing.gradcheck": ("GradcheckError", "gradcheck", "gradgradcheck"),
    "values": ("Value", "ValueList"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports a name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib import metadata

        value: Any = metadata.version("gradoracle")
    elif name in _HOMES:
        from importlib import import_module

        try:
            value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            text = f"gradoracle.{name} needs torch, which is not installed; install gradoracle[torch]"
            raise ModuleNotFoundError(text, name="torch") from error
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
