"""A server on this machine is found beside its port: by processes of its user, and by nobody else."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_server
from callers import no_grpc, told
from front_server import Server, eventually, refused, start
from tcp_proxy import Proxy

import gradoracle as go
from gradoracle import neighbours, shared_memory
from gradoracle_server.addresses import Address
from gradoracle_server.front.server import check_address
from gradoracle_server.settings import SettingsError

AUTO = ("--shared-memory", "auto")  # what a server does that is told nothing
CUBE = "sum(x**3)"
LARGE = np.linspace(-1, 1, 100_000)
IS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process of another user")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that was told nothing of memory, with a worker."""
    with real_server.start(*AUTO, "--workers", "1", "--threads", "1") as server:
        yield server
        assert "incident" not in server.log


def names(server: Server) -> set[str]:
    """The sockets that are to be found by a server's port, as the kernel lists those that listen."""
    port = server.address.rpartition(":")[2]
    listed = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    listening = {fields[-1] for fields in listed if fields[3] == "00010000"}
    return {one for one in listening if one.startswith("@gradoracle/") and f":{port}." in one}


def test_it_is_what_a_server_does_that_is_told_nothing() -> None:
    """So that `gradoracle serve` in one terminal and `Client()` in another find each other."""
    command = [sys.executable, "-m", "gradoracle_server", "--listen", "127.0.0.1:0", "--metrics-listen", "off"]
    with subprocess.Popen([*command, "--workers", "1"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[3]
            with go.Client(address) as client:
                no_grpc(client)
                assert 6.0 == client.vjp("x**2", {"x": 3.0}).gradients["x"]
        finally:
            process.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_calls_go_without_grpc_and_say_the_same(server: Server, host: str) -> None:
    """Small ones and large ones, bit for bit."""
    address = server.address.replace("127.0.0.1", host)
    with go.Client(address, shared_memory=False) as plain, go.Client(address) as client:
        no_grpc(client)
        for x in (np.array(2.0), LARGE):
            found, want = (one.vjp(CUBE, {"x": x}).gradients["x"] for one in (client, plain))
            assert found is not None
            assert want is not None
            assert found.tobytes() == want.tobytes()
            assert (x is LARGE) == isinstance(found.base, shared_memory._Held)
            assert not isinstance(want.base, shared_memory._Held)
        assert not plain._direct.idle


async def test_calls_of_tasks(server: Server) -> None:
    """The same for asyncio."""
    async with go.AsyncClient(server.address) as client:
        no_grpc(client)
        assert 12.0 == (await client.vjp(CUBE, {"x": 2.0})).gradients["x"]
        found = (await client.vjp(CUBE, {"x": LARGE})).gradients["x"]
        assert found is not None
        np.testing.assert_allclose(found, 3 * LARGE**2)
        assert isinstance(found.base, shared_memory._Held)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::1]:0", "localhost:0"])
def test_other_ways_to_listen(listen: str) -> None:
    """On every address, on IPv6's own, and by name."""
    with start(*AUTO, "--listen", listen, "--workers", "1") as server:
        assert 2 == len(names(server))
        with go.Client(server.address) as client:
            no_grpc(client)
            assert client.server_info().version


@pytest.mark.parametrize(
    "flags", [("--shared-memory", "false"), ("--tls-cert", "server.pem", "--tls-key", "server.key")]
)
def test_a_server_that_offers_nothing(flags: tuple[str, ...]) -> None:
    """One that was told so, and one that has certificates, which are gRPC's to show."""
    folder = Path(__file__).with_name("certificates")
    given = [str(folder / one) if one.startswith("server.") else one for one in flags]
    with start(*AUTO, *given, "--workers", "1") as server:
        assert set() == names(server)
        if "--tls-cert" not in flags:
            with go.Client(server.address) as client:
                assert client.server_info().version
                assert not client._direct.idle


def test_through_a_proxy(server: Server) -> None:
    """Who goes to another port means whoever is there."""
    proxy = Proxy(server.address)
    try:
        with go.Client(proxy.address) as client:
            assert 12.0 == client.vjp(CUBE, {"x": 2.0}).gradients["x"]
            found = client.vjp(CUBE, {"x": LARGE}).gradients["x"]
            assert found is not None
            assert not isinstance(found.base, shared_memory._Held)
        assert proxy.connections == 1
    finally:
        proxy.close()


def test_credentials_are_asked_for(tmp_path: Path) -> None:
    """As through gRPC: a token is what a server's own user needs, too."""
    (tmp_path / "tokens").write_text("secret\n")
    with start(*AUTO, "--token-file", str(tmp_path / "tokens"), "--workers", "1") as server:
        with go.Client(server.address) as stranger, pytest.raises(go.AuthenticationError):
            stranger.server_info()
        with go.Client(server.address, token="secret") as known:  # noqa: S106 - a test's
            no_grpc(known)
            assert known.server_info().version


def test_a_server_that_starts_anew_on_its_port() -> None:
    """Its clients find it again, without gRPC; meanwhile gRPC tells them that it is away."""
    with start(*AUTO, "--workers", "1") as first:
        client = go.Client(first.address)
        assert client.server_info().version
        assert first.stop() == 0
        assert set() == names(first)
    with client, start(*AUTO, "--listen", first.address, "--workers", "1"):
        assert client.server_info().version
        eventually(lambda: bool(client.server_info().version and client._direct.idle))


def test_a_name_is_free_before_its_port() -> None:
    """While a stopping server finishes what it has, whoever serves at its port next has the names, too."""
    with start(*AUTO, "--workers", "1") as server, go.Client(server.address) as client:
        answers: list[Any] = []
        request = told("sleep 2")
        running = threading.Thread(target=lambda: answers.append(client._call(request, None)))
        running.start()
        eventually(lambda: server.metric('gradoracle_requests_in_flight{device="cpu"}') == 1)
        server.process.terminate()
        eventually(lambda: not _listens(server.address))
        assert server.process.poll() is None
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind((neighbours.place(server.address) or "") + ".calls")
        running.join()
        assert 1 == len(answers)


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 10).close()
    except ConnectionError:
        return False
    return True


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    """The server says so, and serves through gRPC."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(neighbours.place(address) or "")
        with start(*AUTO, "--listen", address, "--workers", "1") as server:
            text = f"callers on this machine have to go through gRPC: @gradoracle/{os.geteuid()}/{address}.memory: "
            assert f"{text}Address already in use" in server.log
            with go.Client(address) as client:
                assert client.server_info().version


OTHER_USER = """
import os, sys, numpy as np, gradoracle as go, gradoracle.client
from gradoracle import neighbours
small = go.request("vjp", "sum(x**3)", {"x": [1.0, 2.0]})  # made while all files can still be read
large = go.request("vjp", "sum(x**3)", {"x": np.ones(100000)})
os.setuid(65534)
neighbours.admit = lambda *_: None  # it would take anybody's server
place, user = neighbours.place, sys.argv[2]
neighbours.place = lambda address: place(address).replace("/65534/", f"/{user}/")
with go.Client(sys.argv[1]) as client:
    print(client._call(small, None).gradients["x"].tolist(), len(client._direct.idle), client._memory.put(large))
"""


@IS_ROOT
def test_another_users_process_is_sent_away(server: Server) -> None:
    """Whatever it does to find the socket: it asks through gRPC."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER_USER, server.address, str(os.geteuid())],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "[3.0, 12.0] 0 None\n", done.stderr


IMPOSTOR = """
import os, socket, sys
os.setuid(65534)
taken = [socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM)]
for one, behind in zip(taken, ("", ".calls")):
    one.bind("\\0" + sys.argv[1] + behind)
    one.listen()
print("ready", flush=True)
taken[1].settimeout(60)
caller, _ = taken[1].accept()
print(caller.recv(100), flush=True)
"""


@IS_ROOT
def test_another_users_impostor_is_told_nothing() -> None:
    """A client looks whose socket it is before it says a word, which might be a token."""
    with start("--workers", "1") as server:
        name = (neighbours.place(server.address) or "").lstrip("\0")
        impostor = subprocess.Popen([sys.executable, "-c", IMPOSTOR, name], stdout=subprocess.PIPE)
        with impostor:
            try:
                assert impostor.stdout is not None
                assert b"ready\n" == impostor.stdout.readline()
                with go.Client(server.address, token="a-secret") as client:  # noqa: S106 - a test's
                    assert client.server_info().version
                    assert not client._direct.idle
                assert b"b''\n" == impostor.stdout.readline()
            finally:
                impostor.kill()


def test_an_address_of_which_another_server_has_a_part() -> None:
    """A server at a name is at all of its addresses, or does not come up: gRPC would be content with one of them."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        code, log = refused("--listen", address)
    assert (code, log) == (
        2,
        f"gradoracle: --listen: expected an address that is free and of this machine, got {address}: "
        "Address already in use\n",
    )


def test_every_address_of_a_name_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that this machine has not are no matter, as long as it has one; one that is taken is."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in (("127.0.0.2", 0), ("192.0.2.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: list(found))
        check_address("--listen", Address("localhost", taken[1]))
        found.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", taken))
        with pytest.raises(SettingsError, match="Address already in use"):
            check_address("--listen", Address("localhost", taken[1]))
        del found[0], found[-1]
        with pytest.raises(SettingsError, match="Cannot assign requested address"):
            check_address("--listen", Address("localhost", taken[1]))


def test_a_client_that_is_forgotten_leaves_no_memory(server: Server) -> None:
    """Neither descriptors nor files, once its results are gone."""

    def files() -> int:
        found = 0
        for one in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # that of the listing itself
                found += str(one.readlink()).startswith("/memfd:gradoracle")
        return found

    def forgotten() -> None:
        client = go.Client(server.address)
        assert isinstance(client.evaluate("x + 1", {"x": LARGE}).outputs["out"].base, shared_memory._Held)

    gc.collect()
    before = files()
    for _ in range(3):
        forgotten()
    gc.collect()
    assert files() == before


def test_what_it_costs_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client looks once a second at most."""
    looked: list[float] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        looked.append(time.monotonic())
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    with start("--workers", "1") as server, go.Client(server.address) as client:
        began = time.monotonic()
        for _ in range(50):
            client.server_info()
        assert 1 <= len(looked) <= 1 + (time.monotonic() - began) / 0.9
