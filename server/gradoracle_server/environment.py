"""What is said of the environment beside the settings' own values.

Variables that look like settings and are none are told of once, when the server starts. A misspelt variable is no
error, since the same ConfigMap may serve another version of the server, and Kubernetes puts variables of its own there
for a Service of this name (unless enableServiceLinks is false).
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping

from gradoracle_server.settings import OPTIONS

_NOT_SERVE = ("GRADORACLE_ADDRESS", "GRADORACLE_SHARDS", "GRADORACLE_TRACEBACK")
"""Variables that other commands read."""

_SERVICE_LINK = re.compile(r"GRADORACLE(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://")
"""What Kubernetes puts into the environment for a Service whose name begins with gradoracle."""


def unknown_variables(given: Mapping[str, str] = os.environ) -> list[str]:
    """What to say of variables that nothing reads although they are named like settings, a line for each.

    Never their values: one that should have been GRADORACLE_TOKEN_FILE may hold a token.
    """
    known = [option.variable for option in OPTIONS]
    made = []
    for name in sorted(given):
        if not name.startswith("GRADORACLE_") or name in known or name in _NOT_SERVE or _links(name, given[name]):
            continue
        likest = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {likest[0]}?" if likest else "; --help lists the settings"
        made.append(f"{name} is set, which is no setting, and is ignored{hint}")
    return made


def refused_by_opentelemetry(said: str, given: Mapping[str, str] = os.environ) -> str:
    """What to say where OpenTelemetry cannot use one of its variables: which one, and its own words.

    Where the words tell neither the variable's name nor its value, all are named that are set. Headers may hold a key,
    so that nothing that may quote them is repeated.
    """
    ours = sorted(name for name in given if name.startswith("OTEL_") and given[name])
    named = [name for name in ours if name.removeprefix("OTEL_").removeprefix("BSP_") in said.upper()]
    quoted = [name for name in ours if re.search(rf"(?<!\w){re.escape(given[name])}(?!\w)", said)]
    meant = [max(named, key=len)] if named else quoted or ours or ["--otlp-endpoint"]
    if any(name.endswith("_HEADERS") for name in meant):
        said = "its value cannot be read"
    return f"{' or '.join(meant)}: OpenTelemetry says: {said}"


def _links(name: str, text: str) -> bool:
    """Whether a variable is one of Kubernetes' own."""
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_PORT.match(text)))
