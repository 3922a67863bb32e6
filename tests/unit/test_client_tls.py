"""TLS of clients: what is refused when one is made, and what is said where it and a server do not agree."""

from __future__ import annotations

from pathlib import Path

import pytest

import gradoracle as go
from gradoracle import tls

PEMS = Path(__file__).parents[1] / "service" / "certificates"
HANDSHAKE = "last error: UNKNOWN: ipv4:1.2.3.4:1: Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: "
CLOSED = "last error: UNAVAILABLE: ipv4:1.2.3.4:1: Socket closed"
MINE = go.TLS("ca.pem", "my.pem", "my.key")


@pytest.mark.parametrize(
    ("details", "given", "text"),
    [
        (
            HANDSHAKE + "WRONG_VERSION_NUMBER",
            go.TLS(),
            "This client used TLS, trusting the authorities that gRPC knows, with no certificate of its own: the "
            "server speaks without, it seems; leave tls= (--tls, --tls-ca) out",
        ),
        (
            HANDSHAKE + "CERTIFICATE_VERIFY_FAILED: self signed certificate",
            MINE,
            "This client used TLS, trusting the authorities in ca.pem, with the certificate my.pem: see that tls= "
            "(--tls-ca) names the authority that signed the server's certificate",
        ),
        (
            "last error: UNKNOWN: Hostname Verification Check failed. Invalid certificate verification context",
            go.TLS(b"-"),
            "This client used TLS, trusting the authorities in bytes, with no certificate of its own: see that the "
            "address has a name that stands in the server's certificate",
        ),
    ],
)
def test_handshakes_that_fail(details: str, given: go.TLS, text: str) -> None:
    """A server does answer: what it was asked by is said, and which argument and flag to look at."""
    assert tls.unreachable("host:1", details, given) == f"TLS with host:1 failed: {details}. {text}"


@pytest.mark.parametrize(
    ("details", "given", "text"),
    [
        (CLOSED, None, "this client used no TLS; a server that wants TLS is reached with tls= (--tls, --tls-ca)"),
        (
            "last error: UNKNOWN: ipv6:%5B::1%5D:1: Failed to connect to remote host: Connection refused",
            None,
            "this client used no TLS; a server that wants TLS is reached with tls= (--tls, --tls-ca)",
        ),
        (
            CLOSED,
            go.TLS("ca.pem"),
            "this client used TLS, trusting the authorities in ca.pem, with no certificate of its own; see that tls= "
            "(--tls-ca) names the authority that signed the server's certificate; a server that asks for one of the "
            "client's own is reached with TLS(cert=, key=) (--tls-cert, --tls-key)",
        ),
        (
            CLOSED,
            MINE,
            "this client used TLS, trusting the authorities in ca.pem, with the certificate my.pem; see that "
            "TLS(cert=) (--tls-cert) is of an authority that the server trusts, and that TLS(ca=) (--tls-ca) names the "
            "one that signed the server's",
        ),
    ],
)
def test_connections_that_end_at_once(details: str, given: go.TLS | None, text: str) -> None:
    """It may be that no server runs there, or that it was asked in another way than it wants."""
    found = tls.unreachable("host:1", details, given)
    assert found.startswith(f"no gradoracle server answers at host:1: {details}. Is it running? ")
    assert found.endswith(f". If it runs: {text}")


@pytest.mark.parametrize("details", ["last error: UNKNOWN: ipv4:1.2.3.4:1: Connection refused", "Socket closed"])
def test_servers_that_are_not_there(details: str) -> None:
    """Nothing is said of TLS where nobody listens, or a server went away in the middle of a call."""
    for given in (None, MINE):
        assert "TLS" not in tls.unreachable("host:1", details, given)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (("README.md", None, None), "TLS: expected PEM certificates as ca, got {0}"),
        (("server.key", None, None), "TLS: expected PEM certificates as ca, got {0}"),
        ((None, "README.md", "client.key"), "TLS: expected PEM certificates as cert, got {1}"),
        ((None, "client.pem", "renewed.key"), "TLS: expected as key the PEM key of {1}, without a password, got {2}"),
        ((None, "client.pem", "client.pem"), "TLS: expected as key the PEM key of {1}, without a password, got {2}"),
    ],
)
def test_files_that_are_no_certificates(files: tuple[str | None, ...], text: str) -> None:
    """They are refused by name when the client is made; gRPC tells of a server that is not there, at the first call."""
    paths = [one and PEMS / one for one in files]
    for kind in (go.Client, go.AsyncClient):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # the text is asserted
            kind("a:1", tls=go.TLS(*paths))
        assert str(caught.value) == text.format(*paths)


def test_a_key_is_not_shown() -> None:
    """Nor is one in an error's context."""
    assert "secret" not in repr(go.TLS(cert=b"", key=b"secret"))
    with pytest.raises(ValueError, match="TLS: expected PEM certificates as cert, got bytes"):
        go.Client("a:1", tls=go.TLS(cert=b"junk", key=b"secret"))


def test_certificates_as_bytes() -> None:
    """They need no file."""
    files = ((PEMS / one).read_bytes() for one in ("authority.pem", "client.pem", "client.key"))
    go.Client("a:1", tls=go.TLS(*files)).close()
