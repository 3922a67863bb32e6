"""TLS: whom a client trusts, what it shows of itself, and what to look at where a server and it do not agree."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TypeAlias

import grpc

File: TypeAlias = str | Path | bytes

_HANDSHAKE = re.compile(r"handshake|certificate|SSL_ERROR", re.IGNORECASE)
"""What gRPC says of TLS that failed."""

_IN_CLEAR = "WRONG_VERSION_NUMBER"
"""What it says of a server that speaks without."""

_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"

_MISNAMED = re.compile(r"peer name|hostname", re.IGNORECASE)

_CUT = re.compile(r"last error.*(Socket closed|Connection reset|recvmsg|ipv6:%5B::1%5D)")
"""What it says where a server ends new connections, as one does to a client in clear, or without a certificate. Of
localhost it may have tried 127.0.0.1, to no avail, and tell of ::1 only."""


@dataclasses.dataclass(frozen=True, slots=True)
class TLS:
    """Certificates as paths of PEM files, or as their bytes.

    `ca` are the authorities that may have signed the server's certificate (default: those that gRPC brings along).
    `cert` and `key` are the client's own, where the server asks for one.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise ValueError(f"TLS: expected {missing} beside {given}, got none")

    def credentials(self) -> grpc.ChannelCredentials:
        """The same for gRPC. Raises OSError where a file cannot be read, and ValueError where it holds something else,
        of which gRPC would tell at the first call only, as of a server that is not there."""
        ca, cert, key = (_contents(one) for one in (self.ca, self.cert, self.key))
        if ca is not None:
            _check_certificates("ca", self.ca, ca)
        if cert is not None:
            _check_certificates("cert", self.cert, cert)
        if isinstance(self.cert, str | Path) and isinstance(self.key, str | Path):
            _check_key(self.cert, self.key)
        return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)

    def __str__(self) -> str:
        trusted = "the authorities that gRPC knows" if self.ca is None else f"the authorities in {_named(self.ca)}"
        shown = "no certificate of its own" if self.cert is None else f"the certificate {_named(self.cert)}"
        return f"TLS, trusting {trusted}, with {shown}"


def unreachable(address: str, details: str, tls: TLS | None) -> str:
    """The message of a call that found no server; `details` are gRPC's. It tells what was at odds about TLS, if that is
    known to be the reason, and what may have been, if it is likely."""
    used = "no TLS" if tls is None else str(tls)
    if tls is not None and _HANDSHAKE.search(details):
        return f"TLS with {address} failed: {details}. This client used {used}: {_advice(tls, details)}"
    text = (
        f"no gradoracle server answers at {address}: {details}. Is it running? "
        "`gradoracle serve` starts one, and gradoracle.Client.local() one of your own"
    )
    if not _CUT.search(details):
        return text
    return f"{text}. If it runs: this client used {used}; {_advice(tls, details)}"


def _advice(tls: TLS | None, details: str) -> str:
    if tls is None:
        return "a server that wants TLS is reached with tls= (--tls, --tls-ca)"
    if _IN_CLEAR in details:
        return "the server speaks without, it seems; leave tls= (--tls, --tls-ca) out"
    if _MISNAMED.search(details):
        return "see that the address has a name that stands in the server's certificate"
    if _UNTRUSTED in details:
        return "see that tls= (--tls-ca) names the authority that signed the server's certificate"
    if tls.cert is None:
        return (
            "see that tls= (--tls-ca) names the authority that signed the server's certificate; a server that asks for "
            "one of the client's own is reached with TLS(cert=, key=) (--tls-cert, --tls-key)"
        )
    return (
        "see that TLS(cert=) (--tls-cert) is of an authority that the server trusts, and that TLS(ca=) (--tls-ca) "
        "names the one that signed the server's"
    )


def _contents(file: File | None) -> bytes | None:
    return file if file is None or isinstance(file, bytes) else Path(file).read_bytes()


def _named(file: File | None) -> str:
    return "bytes" if isinstance(file, bytes) else str(file)


def _check_certificates(field: str, file: File | None, contents: bytes) -> None:
    import ssl

    try:  # without what comments may hold
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=contents.decode("ascii", "ignore"))
    except (OSError, ValueError):  # ssl.SSLError is an OSError, and tells of OpenSSL's inside
        raise ValueError(f"TLS: expected PEM certificates as {field}, got {_named(file)}") from None


def _check_key(cert: str | Path, key: str | Path) -> None:
    import ssl

    try:
        # Where it is encrypted, which gRPC cannot read, nobody is to be asked for the password.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError):
        raise ValueError(f"TLS: expected as key the PEM key of {cert}, without a password, got {key}") from None
