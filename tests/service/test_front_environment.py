"""What the server says of its environment when it starts."""

from __future__ import annotations

from front_server import start


def test_a_misspelt_variable_is_one_warning() -> None:
    """It starts all the same; one line of the log has the likest setting and no value; none is of Kubernetes'."""
    environment = {
        "GRADORACLE_TOKEN_FIEL": "sesame",
        "GRADORACLE_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "GRADORACLE_ADDRESS": "localhost:1",
    }
    with start(environment=environment) as server:
        assert 0 == server.stop()
        [line] = [line for line in server.log.splitlines() if "GRADORACLE_" in line]
        assert "sesame" not in server.log
    assert " WARNING gradoracle_server.main: GRADORACLE_TOKEN_FIEL is set, " in line
    assert line.endswith("did you mean GRADORACLE_TOKEN_FILE?")
