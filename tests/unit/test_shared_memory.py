"""Shared memory piece by piece: what passes between front and worker, what a worker copies, where requests name it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_cases import CPU

import gradoracle as go
from gradoracle import channel, neighbours, requests, shared_memory, stream
from gradoracle.v1 import service_pb2
from gradoracle.v1 import tensor_pb2 as pb
from gradoracle_server import envelope, frames, inbox, lanes
from gradoracle_server.addresses import Address
from gradoracle_server.front import wire
from gradoracle_server.front.neighbours import MEMORY
from gradoracle_server.front.places import Place, by_port
from gradoracle_server.mapping import KeptMapping
from gradoracle_server.worker.tensors import NUMBERS, Incoming, Outgoing


@pytest.fixture
def descriptor() -> Iterator[int]:
    """A caller's memory file of 16 kB, its bytes counting up."""
    found = lanes.memory_file([bytes(range(256)) * 64])
    yield found
    os.close(found)


def passed(message: frames.Job | frames.Reply) -> frames.Job | frames.Reply:
    """A message as it comes out of the other end of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, message)
        return inbox.Inbox(type(message)).wait(theirs)


def test_a_job_says_whose_memory_it_has(descriptor: int) -> None:
    """A worker is told whether the file of attachments is the caller's."""
    for callers in (True, False):
        job = passed(frames.Job(1, b"request", frames.Attachments(descriptor, [(64, 5), (0, 3)], callers)))
        assert job.attachments is not None
        assert (callers, [(64, 5), (0, 3)], 69) == (
            job.attachments.callers,
            job.attachments.spans,
            job.attachments.end,
        )
        with job.attachments.map() as content:
            assert 69 == len(content)
            assert bytes(range(64, 69)) == content[64:69]
        job.attachments.close()


@pytest.mark.parametrize("payload", [b"", b"small", bytes(envelope.SHARED_FROM)])
def test_a_reply_without_a_descriptor(payload: bytes) -> None:
    """Attachments in the caller's memory are told by their places alone, whatever the payload."""
    reply = passed(frames.Reply(0, payload, frames.Attachments(-1, [(1, 2), (2**40, 2**33)], callers=True)))

    assert payload == bytes(reply.payload)
    assert reply.attachments == frames.Attachments(-1, [(1, 2), (2**40, 2**33)], callers=True)


@pytest.mark.parametrize("owner", [0, 1, 2**63])
def test_whose_attachments_they_are(descriptor: int, owner: int) -> None:
    """A worker that keeps files mapped learns that two are of one caller."""
    job = passed(frames.Job(1, b"request", frames.Attachments(descriptor, [(0, 3)], callers=True, owner=owner)))
    assert job.attachments is not None
    assert owner == job.attachments.owner
    assert b"request" == bytes(job.payload)
    job.attachments.close()


def attached(dtype: torch.dtype, count: int) -> pb.Tensor:
    """A tensor whose elements are attachment 0."""
    return pb.Tensor(dtype=NUMBERS[dtype], shape=[count], attachment=0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_indices_cannot_change_after_they_were_checked(descriptor: int, dtype: torch.dtype) -> None:
    """Integers and bools in a caller's memory are copied before anything looks at them."""
    os.pwrite(descriptor, bytes(4096), 0)
    attachments = frames.Attachments(descriptor, [(0, 4096)], callers=True)
    tensor = Incoming(CPU, 0, attachments).tensor(attached(dtype, 4096 // dtype.itemsize), "x")
    os.pwrite(descriptor, b"\1" * 4096, 0)

    assert 0 == int(tensor.sum())


def test_what_the_worker_writes_stays_there(descriptor: int) -> None:
    """Floats are not copied, and what an operator writes into them does not reach the caller."""
    before = os.pread(descriptor, 4096, 0)
    attachments = frames.Attachments(descriptor, [(0, 4096)], callers=True)
    tensor = Incoming(CPU, 0, attachments).tensor(attached(torch.float32, 1024), "x")
    assert before == tensor.numpy().tobytes()
    tensor.zero_()

    assert before == os.pread(descriptor, 4096, 0)


def test_answers_stand_behind_the_request(descriptor: int) -> None:
    """An answer's tensors of 64 kB or more go into the caller's file, aligned, behind the request's; it grows."""
    outgoing = Outgoing(True, frames.Attachments(descriptor, [(0, 100), (128, 872)], callers=True))
    messages = [pb.Tensor() for _ in range(3)]
    tensors = [torch.arange(8192, dtype=torch.float64), torch.ones(3), torch.arange(65536, dtype=torch.uint8)]
    for message, tensor in zip(messages, tensors, strict=True):
        outgoing.fill(message, tensor)
    found = outgoing.attachments()

    assert found == frames.Attachments(-1, [(1024, 65536), (66560, 65536)], callers=True)
    assert ["attachment", "data", "attachment"] == [message.WhichOneof("contents") for message in messages]
    assert tensors[0].numpy().tobytes() == os.pread(descriptor, 65536, 1024)
    assert tensors[2].numpy().tobytes() == os.pread(descriptor, 65536, 66560)
    assert bytes(range(100)) == os.pread(descriptor, 100, 0)


@pytest.mark.parametrize(
    ("dtype", "start", "copied"),
    [(torch.float32, 0, False), (torch.complex64, 0, False), (torch.float32, 4, True), (torch.int32, 0, True)],
)
def test_numbers_are_read_where_they_are(descriptor: int, dtype: torch.dtype, start: int, copied: bool) -> None:
    """In a mapping that is kept for the next call; copied are indices, which are checked before they are used, and what
    is not aligned as torch's own memory is."""
    before = os.pread(descriptor, 3200, start)
    attachments, mapping = frames.Attachments(descriptor, [(start, 3200)], callers=True), KeptMapping(1 << 20)
    found = []
    for _ in range(2):
        tensor = Incoming(CPU, 0, attachments, mapping=mapping).tensor(attached(dtype, 3200 // dtype.itemsize), "x")
        found.append(tensor)
        assert before == tensor.numpy().tobytes()
        assert 0 == tensor.data_ptr() % 64
    os.pwrite(descriptor, b"\1" * 3200, start)

    assert copied == (before == found[0].numpy().tobytes())
    assert copied == (found[0].data_ptr() != found[1].data_ptr())


def test_answers_are_written_through_a_mapping_that_is_kept(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second on: the file has to have become that long."""
    mapping, values = KeptMapping(1 << 20), torch.arange(8192, dtype=torch.float64)
    for number in range(3):
        outgoing = Outgoing(True, frames.Attachments(descriptor, [(0, 100)], callers=True), mapping=mapping)
        outgoing.fill(pb.Tensor(), values + number)
        assert frames.Attachments(-1, [(128, 65536)], callers=True) == outgoing.attachments()
        assert (values + number).numpy().tobytes() == os.pread(descriptor, 65536, 128)
        monkeypatch.delattr(os, "pwrite", raising=False)


def test_a_request_without_its_memory() -> None:
    """The field is found wherever it stands among the first fields, and nowhere in what is no message."""
    request = service_pb2.ComputeVjpRequest(device="cpu", wrt=["x"] * 4000)
    request.memory.token = b"t" * 16
    message = request.SerializeToString()
    found = wire.memory(message)
    assert found is not None
    start, contents, end = found

    assert request.memory == service_pb2.SharedMemory.FromString(message[contents:end])
    request.ClearField("memory")
    assert request.SerializeToString() == message[:start] + message[end:]
    assert found == wire.memory(memoryview(message))
    assert (0, contents - start, end - start) == wire.memory(message[start:end] + message[:start])
    assert None is wire.memory(message[:start])
    assert None is wire.memory(message[: end - 1])
    assert None is wire.memory(b"\x08\x01" * 4096 + message[start:end])
    assert None is wire.memory(b"\xff" * 30)


def test_spans_are_read_as_protobuf_reads_them() -> None:
    """The fields behind a response are those of its message."""
    where = [(0, 0), (64, 1), (2**40, 2**35)]
    read = service_pb2.EvaluateResponse.FromString(wire.spans(where))

    assert where == [(span.offset, span.length) for span in read.spans]


@pytest.mark.parametrize(
    ("address", "path"),
    [("unix:/run/g.sock", "/run/g.sock"), ("unix:///run/g.sock", "/run/g.sock"), ("unix:g.sock", "g.sock")],
)
def test_the_path_of_an_address(address: str, path: str) -> None:
    """The second socket is beside the one that gRPC connects to."""
    assert f"{path}.memory" == target(address).memory == target(address, shared_memory=True).memory
    assert None is target(address, shared_memory=False).memory
    assert [False, True] == [target(address, shared_memory=one).insists for one in (None, True)]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("localhost:7", "127.0.0.1:7"),
        ("localhost", "127.0.0.1:50051"),
        ("127.0.0.1:7", "127.0.0.1:7"),
        ("0.0.0.0:7", "127.0.0.1:7"),
        ("127.0.0.2:7", "127.0.0.2:7"),
        ("[::1]:7", "[::1]:7"),
    ],
)
def test_the_name_of_a_port(address: str, name: str) -> None:
    """A server on this machine is found by its port and this user."""
    found = target(address).memory
    assert f"\0gradoracle/{os.geteuid()}/{name}.memory" == found == target(address, shared_memory=True).memory
    assert None is target(address, shared_memory=False).memory
    host, _, port = name.rpartition(":")
    place = by_port(Address(host.strip("[]"), int(port)))
    assert place is not None
    assert found == place.beside(MEMORY).address  # what the server makes of it


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost"])  # noqa: S104 - nobody listens
def test_a_server_that_listens_to_every_address(host: str) -> None:
    """It is this machine's, too."""
    assert by_port(Address(host, 7)) == by_port(Address("127.0.0.1", 7)) is not None


@pytest.mark.parametrize("address", ["gradoracle.example", "10.0.0.1:7", "dns:localhost:7", "[fe80::1]:7"])
def test_other_machines_have_no_such_name(address: str) -> None:
    """Nor have addresses of which it cannot be told."""
    assert None is target(address).memory


def test_other_servers_have_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor has a server that only other machines reach by its address, or one at a path, or where there is no Linux."""
    assert None is by_port(Address("10.0.0.1", 7)) is by_port(Address("", 0, "/run/g.sock"))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert None is by_port(Address("127.0.0.1", 7)) is target("127.0.0.1:7").memory


def test_who_shows_a_certificate_asks_through_grpc() -> None:
    """So that it is shown."""
    assert None is channel.target("localhost", tls=True, token=None, timeout=None, channels=1).memory


def target(address: str, **options: bool | None) -> channel.Target:
    """What a client of an address knows."""
    return channel.target(address, tls=None, token=None, timeout=None, channels=1, **options)


def test_nobody_elses_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A name has no permissions, and a path may be in a directory for everybody: each end looks whose process is at the
    other. A server may be of another user, whose gRPC's socket it is; and who may open its path is let in."""
    (tmp_path / "g.sock").touch()
    path = f"{tmp_path}/g.sock.memory"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for place in ("\0name", path, f"{path}.calls"):
            neighbours.admit(ours, place)
        assert Place("\0name").admits(theirs)
        with monkeypatch.context() as stranger:
            stranger.setattr(os, "geteuid", lambda: 4_000_000_000)
            with pytest.raises(ConnectionRefusedError, match="another user's process"):
                neighbours.admit(ours, "\0name")
            assert not Place("\0name").admits(theirs)
            for place in (path, f"{path}.calls"):
                neighbours.admit(ours, place)
            assert Place(path).admits(theirs)
            stranger.setattr(Path, "stat", lambda _: SimpleNamespace(st_uid=4_000_000_001))
            for place in (path, f"{path}.calls"):
                with pytest.raises(ConnectionRefusedError, match="another user's process"):
                    neighbours.admit(ours, place)
        (tmp_path / "g.sock").unlink()
        with pytest.raises(ConnectionRefusedError, match="no server beside it"):
            neighbours.admit(ours, path)


@pytest.mark.parametrize(
    ("known", "is_found"), [("         0          0 4294967295\n", True), ("      1000       1000          1\n", False)]
)
def test_who_is_one_of_many(known: str, is_found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a namespace that does not know all users, all whom it does not know have one number."""
    read = Path.read_text
    monkeypatch.setattr(os, "geteuid", lambda: 65_534)
    monkeypatch.setattr(Path, "read_text", lambda path: known if str(path) == "/proc/self/uid_map" else read(path))
    assert is_found == (target("127.0.0.1:7").memory is not None)
    assert is_found == (by_port(Address("127.0.0.1", 7)) is not None)


@pytest.mark.parametrize(("addresses", "is_found"), [(["127.0.0.1"], True), (["127.0.1.1"], False), ([], False)])
def test_what_localhost_is(addresses: list[str], is_found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not 127.0.0.1, gRPC knows where it is."""

    def known(*_: object) -> list[tuple[object, ...]]:
        if not addresses:
            raise socket.gaierror
        return [(2, 1, 6, "", (one, 0)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    assert is_found == (target("localhost:7").memory is not None)


def test_where_there_are_no_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is of the system, not of the address."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert None is target("localhost:7").memory is by_port(Address("127.0.0.1", 7))
    with pytest.raises(ValueError, match="shared_memory: expected Linux for it, which has memory files"):
        target("localhost:7", shared_memory=True)


def test_only_large_requests_are_shared() -> None:
    """A request goes this way from a tensor of 256 kB on; what the server draws itself is no tensor of the caller's."""
    assert shared_memory.Memory.suits(requests.vjp("x.sum()", {"x": np.zeros(32_768)}))
    assert not shared_memory.Memory.suits(requests.vjp("x.sum()", {"x": np.zeros(32_767)}))
    assert not shared_memory.Memory.suits(requests.vjp("x.sum()", {"x": go.normal(1_000_000)}))


def test_where_no_server_is(tmp_path: object) -> None:
    """Where no server is at all, nothing is shared and nothing raised: gRPC says it in its words."""
    memory = shared_memory.Memory(f"{tmp_path}/g.sock.memory", f"{tmp_path}/g.sock")

    assert memory.put(requests.vjp("x.sum()", {"x": np.zeros(32_768)})) is None
    memory.close()


def test_a_process_that_was_forked_off_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parent has the same files, and may be using them."""
    memory = shared_memory.Memory("/nowhere")
    monkeypatch.setattr(shared_memory, "Connection", lambda *_: pytest.fail("it has looked for a server"))
    monkeypatch.setattr(os, "getpid", lambda: 1 + memory._process)

    assert memory.put(requests.vjp("x.sum()", {"x": np.zeros(32_768)})) is None
    assert memory.connect() is None


def test_a_stream_that_has_broken_cannot_take_a_place_in_the_next(tmp_path: Path) -> None:
    """Who sends for a stream that has broken may put its call into memory late; the call's later use stays its own."""

    class Memory(shared_memory.Memory):
        def connect(self) -> None:  # type: ignore[override]
            return None

        def put(self, request: object, end: float) -> Use:  # type: ignore[override]
            return Use()

    class Use:
        pieces = (b"",)
        dropped = False

        def drop(self) -> None:
            self.dropped = True

    conversation = stream.Conversation(8, memory=Memory(str(tmp_path)))
    late = conversation.add(requests.vjp("x.sum()", {"x": np.zeros(32_768)}))
    in_time = conversation.add(requests.vjp("x.sum()", {"x": np.zeros(32_768)}))
    next(in_time)
    (first,) = conversation._uses.values()
    conversation.broken(go.ServerUnavailableError("gone"))
    again = [parts for parts, _ in conversation.again()]
    next(again[0])
    found = conversation._uses[1, 0]
    next(late)

    assert isinstance(first, Use)
    assert first.dropped
    assert found is conversation._uses[1, 0]
    assert found is not conversation._uses[0, 0]
