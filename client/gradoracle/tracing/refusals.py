"""What tracing raises: for good, or to try the next way of tracing."""

from __future__ import annotations

from gradoracle.errors import TraceError
from gradoracle.tracing.blame import UNKNOWN, Place


def refusal(what: str, place: Place, next_step: str, *, construct: str) -> TraceError:
    """The error for a construct that no graph can express faithfully: what it is, where it stands, what to do."""
    where = "" if place.file == UNKNOWN.file else f"{place}: "
    metadata = {"construct": construct, "location": str(place) if where else ""}
    return TraceError(f"{where}{what}; {next_step}", metadata={key: value for key, value in metadata.items() if value})


class Unfaithful(Exception):  # noqa: N818 - not an error yet: another way of tracing may do
    """One way of tracing does not express the function. `refusal` is what to raise when no other does."""

    def __init__(self, what: str, place: Place, next_step: str, *, construct: str) -> None:
        self.refusal = refusal(what, place, next_step, construct=construct)
        super().__init__(str(self.refusal))
