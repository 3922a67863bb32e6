"""The secure overlay's settings, with the tests' own certificates in place of the Secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from front_server import Server, command, connect, failing, refused, start

from deploy.manifests import NO_KUBECTL, ROOT, containers, environment, named, probes, rendered

pytestmark = pytest.mark.skipif(bool(NO_KUBECTL), reason=NO_KUBECTL)

CERTIFICATES = ROOT / "tests/service/certificates"
SECRETS = {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "authority.pem"}
"""Keys of the Secret gradoracle-tls, and the files that stand for them."""


def told(folder: Path) -> dict[str, str]:
    """The overlay's variables about security, with the mounted files found in `folder`."""
    objects = rendered("secure")
    [container] = containers(named(objects, "Deployment", "gradoracle"))
    found = {key: text for key, text in environment(objects, container).items() if text.startswith("/etc/gradoracle")}
    return {key: text.replace("/etc/gradoracle", str(folder)) for key, text in found.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Secrets are mounted as."""
    made = tmp_path_factory.mktemp("gradoracle")
    for name in ("tls", "tokens"):
        (made / name).mkdir()
    for key, file in SECRETS.items():
        (made / "tls" / key).write_bytes((CERTIFICATES / file).read_bytes())
    (made / "tokens" / "tokens").write_text("a-token\n")
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """A server with these settings."""
    assert 4 == len(told(folder))
    with start("--workers", "1", environment=told(folder)) as server:
        yield server


def credentials(own: str = "client") -> grpc.ChannelCredentials:
    """A client that trusts the authority, and shows a certificate or none."""
    pair = [(CERTIFICATES / f"{own}.{kind}").read_bytes() for kind in ("key", "pem")] if own else [None, None]
    return grpc.ssl_channel_credentials((CERTIFICATES / "authority.pem").read_bytes(), *pair)


def test_who_shows_certificate_and_token_is_served(server: Server) -> None:
    """A client with a certificate of the authority and a token gets its answer."""
    with connect(server, credentials()) as stub:
        assert stub.Evaluate(command(), metadata=[("authorization", "Bearer a-token")]).outputs


def test_others_are_not(server: Server) -> None:
    """Without a token, without a certificate, without TLS: no answer."""
    with connect(server, credentials()) as stub:
        assert grpc.StatusCode.UNAUTHENTICATED == failing(lambda: stub.Evaluate(command())).code
    for other in (credentials(""), None):
        with connect(server, other) as stub:
            assert grpc.StatusCode.UNAVAILABLE == failing(lambda stub=stub: stub.Evaluate(command())).code


def test_probes_need_neither(server: Server) -> None:
    """The overlay's probes are answered all the same."""
    [container] = containers(named(rendered("secure"), "Deployment", "gradoracle"))
    pages = [probe["httpGet"]["path"] for _, probe in probes(container)]
    assert [200] * 3 == [server.get(page)[0] for page in pages]


def test_a_missing_secret_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A key that is not in the Secret stops the server with one line that names the file."""
    missing = str(tmp_path / "tokens")
    code, said = refused("--workers", "1", environment=told(folder) | {"GRADORACLE_TOKEN_FILE": missing})
    assert (2, 1) == (code, said.count("\n"))
    assert f"expected a readable file, got {missing}: No such file or directory" in said
