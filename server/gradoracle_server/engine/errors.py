"""What the engine raises when a request is at fault."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200  # characters of a name that another is compared with


class Fault(Exception):  # noqa: N818 - the request is at fault, the engine has no error
    """A request that cannot be carried out.

    `reason` is a name of the proto's ErrorReason, without its prefix. The message gives location, expected and got;
    `field` is the place in the request, "graph.nodes[3].args[1]"; `metadata` holds the message's values once more.
    """

    def __init__(self, reason: str, message: str, *, field: str = "", **metadata: object) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = {key: str(value) for key, value in metadata.items() if value is not None and value != ""}


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The known names that look most like an unknown one, the likeliest first."""
    if len(name) > _LONGEST:
        return []  # to compare is quadratic in the length
    return difflib.get_close_matches(name, [one for one in names if len(one) <= _LONGEST], n=count, cutoff=0.6)


def suggestion(candidates: list[str]) -> str:
    """The end of a message that offers the nearest names: '; did you mean "a" or "b"?', or nothing."""
    if not candidates:
        return ""
    return "; did you mean " + " or ".join(f'"{candidate}"' for candidate in candidates) + "?"


def listed(names: Iterable[str]) -> str:
    """Names for a message, in quotes: '"a", "b"'; 'none' where there are none."""
    return ", ".join(f'"{name}"' for name in names) or "none"
