"""Who may call: TLS, client certificates and tokens."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import grpc
import pytest
from front_server import Server, command, connect, eventually, failing, refused, start
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradoracle.v1 import service_pb2

CERTIFICATES = Path(__file__).with_name("certificates")
Code = grpc.StatusCode


def pem(name: str) -> bytes:
    """A test certificate or key."""
    return (CERTIFICATES / name).read_bytes()


def trusting(authority: str = "authority", client: str = "") -> grpc.ChannelCredentials:
    """A client that trusts an authority, and has a certificate or none."""
    own = (pem(f"{client}.key"), pem(f"{client}.pem")) if client else (None, None)
    return grpc.ssl_channel_credentials(pem(f"{authority}.pem"), *own)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two tokens."""
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("# for tests\nfirst-token\n\n  second-token  \n")
    return path


@pytest.fixture(scope="module")
def guarded(tokens: Path) -> Iterator[Server]:
    """A server that wants a token."""
    with start("--workers", "1", "--token-file", str(tokens)) as server:
        yield server


def bearer(token: str) -> list[tuple[str, str]]:
    """The metadata of a call with a token."""
    return [("authorization", f"Bearer {token}")]


@pytest.mark.parametrize("token", ["first-token", "second-token"])
def test_a_token_lets_in(guarded: Server, token: str) -> None:
    """Any token of the file will do, for calls and streams."""
    with connect(guarded) as stub:
        assert stub.Evaluate(command(), metadata=bearer(token)).outputs
        message = service_pb2.StreamRequest()
        message.calls.add(id=1, evaluate=command())
        assert list(stub.Stream(iter([message]), metadata=bearer(token)))


@pytest.mark.parametrize(
    ("metadata", "got"),
    [
        ([], "none"),
        (bearer("third-token"), "an unknown token"),
        (bearer("first-token2"), "an unknown token"),
        (bearer("# for tests"), "an unknown token"),
        ([("authorization", "Basic Zmlyc3Q6dG9rZW4=")], "another kind of credentials"),
        ([("authorization", "Bearer")], "another kind of credentials"),
        ([("authorization", "first-token")], "another kind of credentials"),
    ],
)
def test_without_a_token_nothing_is_served(guarded: Server, metadata: list[tuple[str, str]], got: str) -> None:
    """No or wrong credentials are UNAUTHENTICATED, with what was expected and what kind came, never the token."""
    with connect(guarded) as stub:
        for call in (
            lambda: stub.Evaluate(command(), metadata=metadata),
            lambda: stub.DescribeServer(service_pb2.DescribeServerRequest(), metadata=metadata),
            lambda: list(stub.Stream(iter([]), metadata=metadata)),
        ):
            refusal = failing(call)
            assert (Code.UNAUTHENTICATED, "UNAUTHENTICATED", {}) == (refusal.code, refusal.reason, refusal.metadata)
            expected = 'expected metadata "authorization: Bearer <token>" with one of the server\'s tokens, got '
            assert expected + got == refusal.message
    assert "token" not in guarded.log


def test_refused_calls_are_counted(guarded: Server) -> None:
    """A call without credentials is in the metrics."""
    labels = 'grpc_type="unary",grpc_service="gradoracle.v1.GradientService",grpc_method="ComputeJvp"'
    sample = f'grpc_server_handled_total{{grpc_code="UNAUTHENTICATED",{_sorted(labels)}}}'
    with connect(guarded) as stub:
        failing(lambda: stub.ComputeJvp(service_pb2.ComputeJvpRequest()))

    assert 1 == guarded.metric(sample)


def _sorted(labels: str) -> str:
    """Labels in the order of the exposition."""
    return ",".join(sorted(labels.split(",")))


@pytest.mark.parametrize("flags", [[], ["--health-without-token"]])
def test_health_needs_a_token_unless_told(tokens: Path, flags: list[str]) -> None:
    """Health asks for a token like all else, unless --health-without-token; other services still do then."""
    with start("--workers", "1", "--token-file", str(tokens), *flags) as server:
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            if flags:
                assert health.Check(health_pb2.HealthCheckRequest()).status
                assert next(health.Watch(health_pb2.HealthCheckRequest())).status
            else:
                assert Code.UNAUTHENTICATED is failing(lambda: health.Check(health_pb2.HealthCheckRequest())).code
        with connect(server) as stub:
            assert Code.UNAUTHENTICATED is failing(lambda: stub.Evaluate(command())).code


def test_tokens_are_read_again_on_sighup(tmp_path: Path) -> None:
    """SIGHUP brings new tokens into force; a file that has none, or is not there, leaves the old ones."""
    path = tmp_path / "tokens"
    path.write_text("old")
    with start("--workers", "1", "--token-file", str(path)) as server, connect(server) as stub:
        path.write_text("new")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "Tokens: read again" in server.log)
        assert stub.Evaluate(command(), metadata=bearer("new")).outputs
        assert Code.UNAUTHENTICATED is failing(lambda: stub.Evaluate(command(), metadata=bearer("old"))).code

        path.write_text("# nothing\n")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "Tokens: kept as before: --token-file: expected one token a line, got none" in server.log)
        assert stub.Evaluate(command(), metadata=bearer("new")).outputs


def tls(certificate: str = "server", *flags: str, folder: Path = CERTIFICATES) -> list[str]:
    """The flags of a server with TLS."""
    return [
        "--workers=1",
        f"--tls-cert={folder / certificate}.pem",
        f"--tls-key={folder / certificate}.key",
        *flags,
    ]


def test_tls() -> None:
    """With TLS a client that trusts the authority gets through, and one that does not, or speaks in clear, does not."""
    with start(*tls()) as server:
        with connect(server, trusting()) as stub:
            assert stub.Evaluate(command()).outputs
        for credentials in (trusting("stranger"), None):
            with connect(server, credentials) as stub:
                assert Code.UNAVAILABLE is failing(lambda stub=stub: stub.Evaluate(command(), timeout=60)).code


def test_client_certificates() -> None:
    """With --tls-client-ca only clients with a certificate of that authority get through."""
    with start(*tls("server", f"--tls-client-ca={CERTIFICATES / 'authority.pem'}")) as server:
        with connect(server, trusting(client="client")) as stub:
            assert stub.Evaluate(command()).outputs
        for client in ("", "renewed"):
            with connect(server, trusting(client=client)) as stub:
                assert Code.UNAVAILABLE is failing(lambda stub=stub: stub.Evaluate(command(), timeout=60)).code


def test_certificates_are_read_again_on_sighup(tmp_path: Path) -> None:
    """SIGHUP brings a renewed certificate into force for new connections; a broken file leaves the old one."""

    def install(name: str) -> None:
        for kind in ("pem", "key"):
            copyfile(CERTIFICATES / f"{name}.{kind}", tmp_path / f"server.{kind}")

    install("server")
    with start(*tls(folder=tmp_path)) as server, connect(server, trusting()) as open_already:
        assert open_already.Evaluate(command()).outputs
        install("renewed")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "Tls: read again" in server.log)
        with connect(server, trusting("stranger")) as stub:
            assert stub.Evaluate(command()).outputs
        assert open_already.Evaluate(command()).outputs

        (tmp_path / "server.pem").write_text("broken")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "Tls: kept as before: --tls-cert: expected a PEM certificate" in server.log)
        with connect(server, trusting("stranger")) as stub:
            assert stub.Evaluate(command()).outputs


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--tls-cert", str(CERTIFICATES / "server.pem"), "--tls-key", str(CERTIFICATES / "renewed.key")],
            f"--tls-cert: expected a PEM certificate with the key of --tls-key, got {CERTIFICATES / 'server.pem'}: ",
        ),
        (
            ["--tls-cert", str(CERTIFICATES / "README.md"), "--tls-key", str(CERTIFICATES / "server.key")],
            f"--tls-cert: expected a PEM certificate with the key of --tls-key, got {CERTIFICATES / 'README.md'}: ",
        ),
        (
            tls("server", f"--tls-client-ca={CERTIFICATES / 'server.key'}"),
            f"--tls-client-ca: expected a PEM certificate, got {CERTIFICATES / 'server.key'}: ",
        ),
    ],
)
def test_bad_certificates_are_one_line(flags: list[str], text: str) -> None:
    """Files that do not belong together or hold something else: one line, exit code 2."""
    code, log = refused(*flags)

    assert (2, 1) == (code, log.count("\n"))
    assert log.startswith(f"gradoracle: {text}")
