"""Variables of the environment that look like settings and are none: said once, when the server starts.

A misspelt variable is no error, since the same ConfigMap may serve another version of the server, and Kubernetes puts
variables of its own there for a Service of this name (unless enableServiceLinks is false).
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


def _links(name: str, text: str) -> bool:
    """Whether a variable is one of Kubernetes' own."""
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_PORT.match(text)))
