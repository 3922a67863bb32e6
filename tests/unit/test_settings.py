"""Settings: where a value comes from, what is refused, and with which words."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gradoracle_server.settings import OPTIONS, Address, Settings, SettingsError, as_given, load


def test_defaults() -> None:
    """Without flags and variables the server is what the documentation says."""
    settings = load([], {})

    assert "127.0.0.1:50051" == str(settings.listen)
    assert "127.0.0.1:9464" == str(settings.metrics_listen)
    assert ("auto",) == settings.device
    assert (None, None) == (settings.workers, settings.threads)
    assert (1024, 256 * 2**20) == (settings.max_queue, settings.max_message_bytes)
    assert (None, None) == (settings.max_queue_bytes, settings.max_tensor_bytes)  # shares of the machine's memory
    assert (600.0, 30.0, 0.0) == (settings.request_timeout, settings.drain_timeout, settings.max_connection_age)
    assert (None, "auto") == (settings.max_memory_bytes, settings.sandbox)
    assert not settings.stop_on_stdin_eof


def test_flag_wins_over_environment_wins_over_default() -> None:
    """A flag beats its variable, a variable beats the default."""
    environment = {"GRADORACLE_MAX_QUEUE": "5", "GRADORACLE_WORKERS": "3"}

    settings = load(["--max-queue", "7"], environment)

    assert (7, 3, 256 * 2**20) == (settings.max_queue, settings.workers, settings.max_message_bytes)


def test_every_option_has_a_field_flag_and_variable() -> None:
    """Options and fields are the same list, and each can be given by its variable."""
    assert [option.name for option in OPTIONS] == [field.name for field in dataclasses.fields(Settings)]
    for option in OPTIONS:
        if option.expected == "the path of a file":
            assert Path("x") == option.parse("x")
            continue
        with pytest.raises(SettingsError, match=f"^{option.variable}: expected "):
            load([], {option.variable: "never right"})


def test_settings_cannot_be_changed() -> None:
    """They are frozen."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        load([], {}).workers = 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:50051", Address("127.0.0.1", 50051)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:9", Address("::1", 9)),
        ("unix:/run/g.sock", Address("", 0, "/run/g.sock")),
        ("unix:///run/g.sock", Address("", 0, "/run/g.sock")),
        ("unix:g.sock", Address("", 0, "g.sock")),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    """An address is a host and a port, or the path of a Unix socket."""
    assert expected == load(["--listen", text], {}).listen


@pytest.mark.parametrize("url", ["http://collector:4318", "https://[::1]:4318/otlp/", "http://127.0.0.1/v1/traces"])
def test_collectors(url: str) -> None:
    """A collector's URL is taken as it is typed; without one nothing is traced."""
    assert url == load(["--otlp-endpoint", url], {}).otlp_endpoint
    assert load([], {}).otlp_endpoint is None


@pytest.mark.parametrize(
    "text",
    ["collector:4318", "grpc://collector:4317", "http://", "http://c:x", "http://c:0", "http://c/?a=b", "http://a b"],
)
def test_what_is_no_collector(text: str) -> None:
    """What no span could be sent to over HTTP is refused at the start."""
    with pytest.raises(SettingsError, match=r'^--otlp-endpoint: expected a URL like "http://localhost:4318", got "'):
        load(["--otlp-endpoint", text], {})


@pytest.mark.parametrize("address", ["[::1]:9", "unix:/run/g.sock", "0.0.0.0:1"])
def test_address_prints_as_it_is_typed(address: str) -> None:
    """What the ready line says can be given to a client."""
    assert address == str(load(["--listen", address], {}).listen)


@pytest.mark.parametrize(
    ("flag", "text", "got"),
    [
        ("--listen", "50051", "expected an address like"),
        ("--listen", "host:65536", "expected an address like"),
        ("--listen", "::1:5", "expected an address like"),
        ("--listen", "unix:", "expected an address like"),
        ("--metrics-listen", "unix:/x", 'expected an address like "127.0.0.1:9464", or "off"'),
        ("--device", "tpu", 'expected "auto", "cpu", "cuda" or "cuda:N"'),
        ("--device", "cuda:", 'expected "auto", "cpu", "cuda" or "cuda:N"'),
        ("--workers", "0", "expected a whole number from 1"),
        ("--threads", "-1", "expected a whole number from 1"),
        ("--max-queue", "1.5", "expected a whole number from 0"),
        ("--max-tensor-bytes", "1 parsec", 'expected a number of bytes, or one with a unit like "64MiB"'),
        ("--max-message-bytes", "2GiB", "expected a number of bytes"),
        ("--max-message-bytes", "1", "expected a number of bytes"),
        ("--request-timeout", "soon", "expected a number of seconds"),
        ("--request-timeout", "nan", "expected a number of seconds"),
        ("--log-format", "xml", 'expected "text" or "json"'),
        ("--sandbox", "maybe", 'expected "auto", "on" or "off"'),
        ("--max-memory-bytes", "all", 'expected a number of bytes, or one with a unit like "64MiB"'),
        ("--health-without-token", "perhaps", 'expected "true" or "false"'),
    ],
)
def test_bad_value_is_one_clear_line(flag: str, text: str, got: str) -> None:
    """An error names the flag, what was expected, and what came."""
    with pytest.raises(SettingsError) as caught:
        load([f"{flag}={text}"], {})

    message = str(caught.value)
    assert message.startswith(f"{flag}: {got}")
    assert message.endswith(f', got "{text}"')
    assert "\n" not in message


def test_bad_variable_is_named_as_such() -> None:
    """Where the value came from the environment, the error names the variable, and shows no control characters."""
    with pytest.raises(SettingsError) as caught:
        load([], {"GRADORACLE_MAX_QUEUE": "many\n"})

    assert r'GRADORACLE_MAX_QUEUE: expected a whole number from 0, got "many\n"' == str(caught.value)


def test_unknown_flag_is_one_line() -> None:
    """An unknown flag is refused, not guessed, and --help is pointed to."""
    with pytest.raises(SettingsError, match=r"^unrecognized arguments: --max-que 5; --help lists the flags$"):
        load(["--max-que", "5"], {})


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("17", 17), ("64MiB", 64 * 2**20), ("2k", 2000), ("1 GB", 10**9), ("3Ki", 3072)]
)
def test_sizes(text: str, expected: int) -> None:
    """Sizes are bytes, or have a unit, of 1000s or of 1024s."""
    assert expected == load(["--max-tensor-bytes", text], {}).max_tensor_bytes


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0.0), ("1.5", 1.5), ("250ms", 0.25), ("5m", 300.0), ("1h", 3600.0)]
)
def test_durations(text: str, expected: float) -> None:
    """Durations are seconds, or have a unit."""
    assert expected == load(["--request-timeout", text], {}).request_timeout


def test_devices_repeat() -> None:
    """--device can be given again, and a variable takes a list."""
    assert ("cuda:1", "cpu") == load(["--device", "cuda:1", "--device", "cpu"], {}).device
    assert ("cpu", "cuda") == load([], {"GRADORACLE_DEVICE": "cpu, cuda"}).device


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tls-cert", "c"], "--tls-key: expected the path of a file beside --tls-cert, got none"),
        (["--tls-key", "k"], "--tls-cert: expected the path of a file beside --tls-key, got none"),
        (["--tls-client-ca", "a"], "--tls-cert: expected the path of a file beside --tls-client-ca, got none"),
    ],
)
def test_half_of_tls_is_refused(arguments: list[str], expected: str) -> None:
    """A certificate needs its key, and client certificates need TLS."""
    with pytest.raises(SettingsError) as caught:
        load(arguments, {})

    assert expected == str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ()),
        (["--listen", "[::1]:1"], ()),
        (["--listen", "unix:/x"], ()),
        (["--listen", "0.0.0.0:1"], ("TLS", "tokens")),
        (["--listen", "example.com:1", "--token-file", "t"], ("TLS",)),
        (["--listen", "[::]:1", "--tls-cert", "c", "--tls-key", "k"], ("tokens",)),
        (["--listen", "[::]:1", "--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"], ()),
    ],
)
def test_what_is_missing_where_others_can_reach_it(arguments: list[str], expected: tuple[str, ...]) -> None:
    """On loopback nothing is; elsewhere encryption, and tokens or client certificates."""
    assert expected == load(arguments, {}).unguarded


def test_paths() -> None:
    """Files are paths, whether they exist or not; that is found out when they are read."""
    assert Path("/nowhere/tokens") == load(["--token-file", "/nowhere/tokens"], {}).token_file


@pytest.mark.parametrize(("arguments", "expected"), [([], False), (["--stop-on-stdin-eof"], True)])
def test_switches(arguments: list[str], expected: bool) -> None:
    """A switch is off, or on when it is given; a variable says which."""
    assert expected is load(arguments, {}).stop_on_stdin_eof
    assert load([], {"GRADORACLE_STOP_ON_STDIN_EOF": "yes"}).stop_on_stdin_eof


@pytest.mark.parametrize(
    ("environment", "arguments", "message", "shown"),
    [
        ({"TLS_CERT": "c"}, [], "--tls-key: beside --tls-cert", "GRADORACLE_TLS_KEY: beside GRADORACLE_TLS_CERT"),
        ({}, ["--tls-cert", "c"], "--tls-key: beside --tls-cert", "--tls-key: beside --tls-cert"),
        ({"TLS_CERT": "c"}, ["--tls-key", "k"], "--tls-key, --tls-cert", "--tls-key, GRADORACLE_TLS_CERT"),
        ({"TLS_CERT": "c"}, [], "--tls-certificate is no flag", "--tls-certificate is no flag"),
        ({"TLS_CERT": "c"}, [], "--workers: too many", "--workers: too many"),
        ({"TLS_CERT": "c"}, ["--nonsense"], "--nonsense; near: --tls-cert", "--nonsense; near: --tls-cert"),
    ],
)
def test_variables_are_named_where_they_gave_the_value(
    environment: dict[str, str], arguments: list[str], message: str, shown: str
) -> None:
    """Flags that were typed stay; those that variables stood for, or that are missing beside such, are variables."""
    given = {f"GRADORACLE_{name}": value for name, value in environment.items()}
    assert shown == as_given(message, arguments, given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("auto", "auto"),
        ("true", True),
        ("off", False),
        ("/run/g.memory", Path("/run/g.memory")),
        ("./memory", Path("./memory")),
    ],
)
def test_shared_memory_is_on_or_off_or_has_a_path(given: str, expected: bool | Path | str) -> None:
    """A path has a slash, so that no word is taken for one."""
    arguments = ["--listen", "unix:/run/g.sock", "--shared-memory", given]
    assert expected == load(arguments, {}).shared_memory
    with pytest.raises(SettingsError) as caught:
        load(["--shared-memory", "memory"], {})
    assert str(caught.value) == (
        '--shared-memory: expected "auto", "true", "false" or the path of a socket like "/run/gradoracle.memory", '
        'got "memory"'
    )
