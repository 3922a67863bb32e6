"""Variables that are no settings: which are warned of, and with which words."""

from __future__ import annotations

import pytest

from gradoracle_server.environment import unknown_variables
from gradoracle_server.settings import OPTIONS


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("GRADORACLE_MAX_QUEU", "did you mean GRADORACLE_MAX_QUEUE?"),
        ("GRADORACLE_DRAIN_TIME_OUT", "did you mean GRADORACLE_DRAIN_TIMEOUT?"),
        ("GRADORACLE_OTEL_ENDPOINT", "did you mean GRADORACLE_OTLP_ENDPOINT?"),
        ("GRADORACLE_METRICS_PORT", "did you mean GRADORACLE_METRICS_LISTEN?"),
        ("GRADORACLE_XYZZY_PLUGH_FROTZ_NITFOL_GNUSTO", "--help lists the settings"),
    ],
)
def test_a_misspelt_variable_is_warned_of(name: str, hint: str) -> None:
    """The warning names the variable and the likest setting, never the value, which may be a secret."""
    assert [f"{name} is set, which is no setting, and is ignored; {hint}"] == unknown_variables({name: "9464"})


def test_settings_and_foreign_variables_are_not_warned_of() -> None:
    """Settings, variables of the other commands, and whatever begins otherwise."""
    mine = [option.variable for option in OPTIONS]
    others = [
        "GRADORACLE_ADDRESS",
        "GRADORACLE_SHARDS",
        "GRADORACLE_TRACEBACK",
        "PATH",
        "MY_GRADORACLE_X",
        "GRADORACLE",
    ]
    assert [] == unknown_variables(dict.fromkeys([*mine, *others], "x"))


@pytest.mark.parametrize("service", ["GRADORACLE", "GRADORACLE_GPU"])
def test_service_links_are_not_warned_of(service: str) -> None:
    """What Kubernetes sets for a Service named gradoracle, or gradoracle-gpu, with its named ports."""
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "50051",
        f"{service}_SERVICE_PORT_GRPC": "50051",
        f"{service}_PORT": "tcp://10.0.0.1:50051",
        f"{service}_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        f"{service}_PORT_50051_TCP_PROTO": "tcp",
        f"{service}_PORT_50051_TCP_PORT": "50051",
        f"{service}_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert [] == unknown_variables(links)


def test_what_only_resembles_a_service_link_is_warned_of() -> None:
    """A port that is no URL is a person's, not Kubernetes'."""
    names = ["GRADORACLE_PORT", "GRADORACLE_PORT_TCP", "GRADORACLE_SERVICE", "GRADORACLE_SERVICE_HOSTS"]
    assert names == [line.partition(" ")[0] for line in unknown_variables(dict.fromkeys(names, "50051"))]
