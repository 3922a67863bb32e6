"""Variables that are no settings: which are warned of, and with which words."""

from __future__ import annotations

import pytest

from gradoracle_server.environment import refused_by_opentelemetry, unknown_variables
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


OPENTELEMETRY = {
    "OTEL_BSP_MAX_QUEUE_SIZE": "-3",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    "OTEL_TRACES_SAMPLER": "sometimes",
    "OTEL_TRACES_SAMPLER_ARG": "half",
    "OTEL_SERVICE_NAME": "",
}


@pytest.mark.parametrize(
    ("said", "variable"),
    [
        ("max_queue_size must be a positive integer.", "OTEL_BSP_MAX_QUEUE_SIZE"),
        ("Could not convert TRACES_SAMPLER_ARG to float.", "OTEL_TRACES_SAMPLER_ARG"),
        ("Couldn't recognize sampler sometimes.", "OTEL_TRACES_SAMPLER"),
        ("Invalid timeout value '1', using default of 10 seconds", "OTEL_EXPORTER_OTLP_TIMEOUT"),
    ],
)
def test_opentelemetry_refuses_a_variable(said: str, variable: str) -> None:
    """The line names the variable that is meant by name or by value, and no other; then come the words."""
    assert f"{variable}: OpenTelemetry says: {said}" == refused_by_opentelemetry(said, OPENTELEMETRY)


def test_opentelemetry_tells_not_which() -> None:
    """All variables are named that are set; where none is, it is the endpoint."""
    two = {"OTEL_B": "2", "PATH": "/bin", "OTEL_A": "1"}
    assert "OTEL_A or OTEL_B: OpenTelemetry says: no" == refused_by_opentelemetry("no", two)
    assert "--otlp-endpoint: OpenTelemetry says: no" == refused_by_opentelemetry("no", {"PATH": "no"})


@pytest.mark.parametrize("headers", ["a secret", "x=y,a secret"])
def test_what_headers_hold_is_not_repeated(headers: str) -> None:
    """OpenTelemetry quotes the header that it cannot read; the line does not."""
    given = {"OTEL_EXPORTER_OTLP_HEADERS": headers}
    expected = "OTEL_EXPORTER_OTLP_HEADERS: OpenTelemetry says: its value cannot be read"
    assert expected == refused_by_opentelemetry("Header format invalid! It is: a secret", given)
