"""Takes the graph out of a serialized request without parsing it, so that its bytes can look up the plan."""

from __future__ import annotations

_GRAPH_KEY = 0x0A  # field 1, length-delimited: the graph, in every request that has one


def split(payload: bytes | memoryview) -> tuple[bytes | None, bytes | memoryview]:
    """(the graph's bytes, the request without it).

    The graph is None, and the request whole, where the graph is not the first field or its length does not add up.
    Every protobuf library writes fields in their order, so that is the rare case, and then protobuf itself decides.
    """
    if len(payload) < 2 or payload[0] != _GRAPH_KEY:
        return None, payload
    size = shift = 0
    place = 1
    while True:
        if place >= len(payload) or shift > 28:
            return None, payload
        byte = payload[place]
        place += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    end = place + size
    # A second graph would have to be merged with the first.
    if end > len(payload) or (end < len(payload) and payload[end] == _GRAPH_KEY):
        return None, payload
    return bytes(payload[place:end]), payload[end:]
