"""The socket over which callers hand over memory files: what is taken, what calls may name, what is given back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from front_server import Server, command, connect, eventually, failing, refusal_of, refused, start
from google.rpc import status_pb2
from memory_caller import GOOD, Caller, memory_file, naming

from gradoracle.v1 import service_pb2, service_pb2_grpc

Stub = service_pb2_grpc.GradientServiceStub
Code = grpc.StatusCode
MIB = 1024 * 1024
NO_SUCH_FILE = (
    "memory: expected the token of a file, got another: it was taken back, or the server has started anew; "
    "offer the file again"
)


def flags(folder: Path) -> tuple[str, ...]:
    """Of a server in a folder."""
    return ("--listen", f"unix:{folder / 'g.sock'}", "--shared-memory")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's sockets are."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """Two workers."""
    with start(*flags(folder), "--workers", "2", "--max-tensor-bytes", "1MiB", "--max-queue-bytes", "3MiB") as server:
        yield server
        assert "incident" not in server.log


@pytest.fixture
def stub(server: Server) -> Iterator[Stub]:
    """A connection to it."""
    with connect(server, **{"grpc.enable_retries": 0}) as stub:
        yield stub


@pytest.fixture
def caller(server: Server, folder: Path) -> Iterator[Caller]:
    """A connection of its own."""
    caller = Caller(folder / "g.sock.memory")
    with caller.socket:
        yield caller


def files(server: Server) -> int:
    """How many descriptors of this module's memory files the front has."""
    found = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += str(descriptor.readlink()).startswith("/memfd:gradoracle-test")
    return found


def test_a_worker_gets_what_the_spans_name(stub: Stub, caller: Caller) -> None:
    """A unary call's spans reach the worker in order, from one file again and again, each use with its number."""
    with memory_file(b"abcdefgh") as descriptor:
        token = caller.token(descriptor)
        first = stub.Evaluate(naming(token, 1, (0, 2), (4, 3), (8, 0)))
        os.pwrite(descriptor, b"12345678", 0)
        second = stub.Evaluate(naming(token, 7, (1, 2)))

    assert b"ab|efg|" == first.outputs[0].tensor.data
    assert b"23" == second.outputs[0].tensor.data


def test_a_worker_learns_whose_files_are(stub: Stub, caller: Caller, folder: Path) -> None:
    """Those of one connection are one caller's, and those of another somebody else's: what is kept mapped of one caller
    is not to be while another's request runs."""
    other = Caller(folder / "g.sock.memory")
    with other.socket, memory_file(b"ab") as one, memory_file(b"cd") as two, memory_file(b"ef") as three:
        tokens = [caller.token(one), caller.token(two), other.token(three)]
        answers = [stub.Evaluate(naming(token, 1, (0, 2), text="whose")).outputs[0] for token in tokens]

    assert [b"ab", b"cd", b"ef"] == [answer.tensor.data for answer in answers]
    first, second, third = [int(answer.name) for answer in answers]
    assert first == second != third
    assert 0 not in (first, third)


def test_the_calls_of_a_stream_name_files_too(stub: Stub, caller: Caller) -> None:
    """In a stream, each call names its own, and one that may not have what it names fails alone."""
    with memory_file(b"abcd") as one, memory_file(b"efgh") as other:
        tokens = [caller.token(one), caller.token(other), bytes(16)]
        message = service_pb2.StreamRequest()
        for number, token in enumerate(tokens):
            message.calls.add(id=number, evaluate=naming(token, 1, (1, 3)))
        answers = {answer.id: answer for response in stub.Stream(iter([message])) for answer in response.answers}

    assert b"bcd" == answers[0].evaluate.outputs[0].tensor.data
    assert b"fgh" == answers[1].evaluate.outputs[0].tensor.data
    status = status_pb2.Status.FromString(answers[2].status)
    assert "MEMORY_UNKNOWN" == refusal_of(status, Code.OK, {}).reason


@pytest.mark.parametrize("seals", [0, 2, 1, GOOD | fcntl.F_SEAL_WRITE, GOOD | fcntl.F_SEAL_GROW, GOOD | 0x10])
def test_seals(caller: Caller, seals: int) -> None:
    """A file that could shrink under a worker, or could not take an answer, is refused, with the reason."""
    why = b"expected a memory file that may be written and may grow, got one that may not"
    if seals & GOOD != GOOD:
        why = b"expected a memory file sealed by F_SEAL_SHRINK and F_SEAL_SEAL, got one that is not"
    with memory_file(b"a", seals) as descriptor:
        assert b"\1" + why == caller.offer(descriptor)
    with memory_file(b"a") as descriptor:
        caller.token(descriptor)  # the connection goes on


def test_other_descriptors(caller: Caller, tmp_path: Path) -> None:
    """No descriptor, a pipe's, a file's on a disk, and one for reading only are refused, with the reason."""
    assert b"\1expected the descriptor of a memory file, got none" == caller.offer()
    reading, writing = os.pipe()
    on_disk = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    for descriptor in (reading, writing, on_disk):
        assert b"\1expected the descriptor of a memory file, got one of something else" == caller.offer(descriptor)
        os.close(descriptor)
    with memory_file(b"a") as descriptor:
        only_reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        why = b"expected a memory file that may be written and may grow, got one that may not"
        assert b"\1" + why == caller.offer(only_reading)
        os.close(only_reading)


def test_a_file_never_shrinks(stub: Stub, caller: Caller) -> None:
    """What has been taken cannot be made smaller any more; it may grow, and calls may name what has come."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 1)
        os.pwrite(descriptor, b"ef", 4)
        assert b"cdef" == stub.Evaluate(naming(token, 1, (2, 4))).outputs[0].tensor.data


@pytest.mark.parametrize(("offset", "length"), [(0, 5), (4, 1), (5, 0), (2**64 - 1, 2), (2, 2**64 - 1)])
def test_spans_outside(stub: Stub, caller: Caller, offset: int, length: int) -> None:
    """A span that does not lie in the file is refused, and so is no other call."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        refusal = failing(lambda: stub.Evaluate(naming(token, 1, (0, 1), (offset, length))))
        assert b"abcd" == stub.Evaluate(naming(token, 1, (0, 4))).outputs[0].tensor.data

    text = f"memory: expected span 1 to end by byte 4, where the file does, got {offset} + {length}"
    assert (Code.INVALID_ARGUMENT, "MALFORMED_REQUEST", text) == (refusal.code, refusal.reason, refusal.message)


def test_a_use_is_good_once(stub: Stub, caller: Caller) -> None:
    """A use of a file that was let in is no other call's, nor is an earlier one."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        stub.Evaluate(naming(token, 3, (0, 4)))
        for use in (3, 2, 0):
            refusal = failing(lambda use=use: stub.Evaluate(naming(token, use, (0, 4))))  # type: ignore[misc]
            text = f"memory: expected use 4 of the file, or a later one, got {use}"
            assert (Code.FAILED_PRECONDITION, "MEMORY_UNKNOWN", text) == (refusal.code, refusal.reason, refusal.message)
        assert b"abcd" == stub.Evaluate(naming(token, 4, (0, 4))).outputs[0].tensor.data


def test_forged_tokens(stub: Stub, caller: Caller) -> None:
    """A token that was never given, nearly one or of another length, names no file."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        for forged in (bytes(16), token[:-1] + bytes((token[-1] ^ 1,)), token[:8], token + b"a", b""):
            refusal = failing(lambda forged=forged: stub.Evaluate(naming(forged, 1, (0, 4))))  # type: ignore[misc]
            assert (Code.FAILED_PRECONDITION, NO_SUCH_FILE) == (refusal.code, refusal.message)


def test_tokens_end_with_their_connection(server: Server, stub: Stub, folder: Path, caller: Caller) -> None:
    """A file is there until its own connection takes it back or ends; no other connection can take it back."""
    with memory_file(b"abcd") as descriptor:
        other = Caller(folder / "g.sock.memory")
        first, second = other.token(descriptor), other.token(descriptor)
        caller.say(b"\2" + first)
        assert b"\1" == caller.offer()[:1]  # it has been read
        assert b"abcd" == stub.Evaluate(naming(first, 1, (0, 4))).outputs[0].tensor.data
        other.say(b"\2" + first)
        assert b"\1" == other.offer()[:1]
        assert NO_SUCH_FILE == failing(lambda: stub.Evaluate(naming(first, 2, (0, 4)))).message
        other.socket.close()
        eventually(lambda: files(server) == 0)
        assert NO_SUCH_FILE == failing(lambda: stub.Evaluate(naming(second, 1, (0, 4)))).message


def test_limits(stub: Stub, caller: Caller) -> None:
    """Attachments are held to the limits of a tensor and of the queue; a call that was not let in has used nothing."""
    with memory_file() as descriptor:
        os.ftruncate(descriptor, 8 * MIB)
        token = caller.token(descriptor)
        tensor = failing(lambda: stub.Evaluate(naming(token, 1, (0, 1), (0, MIB + 1))))
        every = failing(lambda: stub.Evaluate(naming(token, 1, *[(place * MIB, MIB) for place in range(4)])))
        assert 1 == len(stub.Evaluate(naming(token, 1, (0, 1))).outputs[0].tensor.data)

    text = f"attachment 1: expected at most {MIB} bytes (--max-tensor-bytes), got {MIB + 1}"
    assert (Code.RESOURCE_EXHAUSTED, text) == (tensor.code, tensor.message)
    text = f"the attachments of the request: expected at most {3 * MIB} bytes (--max-queue-bytes), got {4 * MIB}"
    assert (Code.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED", text) == (every.code, every.reason, every.message)


def test_bytes_count_as_long_as_a_call_runs(server: Server, stub: Stub, caller: Caller, tmp_path: Path) -> None:
    """Calls that run hold their bytes, answered and abandoned ones do not; nothing is lost on the way."""
    free = tmp_path / "free"
    with memory_file(bytes(2 * MIB)) as descriptor:
        token = caller.token(descriptor)
        spans = ((0, MIB), (MIB, MIB))
        running = stub.Evaluate.future(naming(token, 1, *spans, text=f"until {free}"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        refusal = failing(lambda: stub.Evaluate(naming(token, 2, *spans)))
        assert ("OVERLOADED", "--max-queue-bytes") == (refusal.reason, refusal.metadata["limit"])
        free.touch()
        assert 2 * MIB + 1 == len(running.result().outputs[0].tensor.data)
        for use in range(2, 6):
            call = stub.Evaluate.future(naming(token, use, *spans, text=f"until {tmp_path / 'never'}"))
            eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
            call.cancel()
            eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 0)
        assert 2 * MIB + 1 == len(stub.Evaluate(naming(token, 6, *spans)).outputs[0].tensor.data)


def test_a_caller_that_goes_in_the_middle(server: Server, stub: Stub, folder: Path, tmp_path: Path) -> None:
    """A call goes on with the file of a connection that has ended, and leaves nothing behind."""
    caller = Caller(folder / "g.sock.memory")
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        running = stub.Evaluate.future(naming(token, 1, (0, 4), text=f"until {tmp_path / 'free'}"))
        eventually(lambda: server.metric('gradoracle_workers{device="cpu",state="busy"}') == 1)
        caller.socket.close()
    assert b"beside" == stub.Evaluate(command(data=b"beside")).outputs[0].tensor.data
    (tmp_path / "free").touch()

    assert b"abcd" == running.result().outputs[0].tensor.data
    eventually(lambda: files(server) == 0)


def test_a_worker_that_dies(server: Server, stub: Stub, caller: Caller, tmp_path: Path) -> None:
    """A call is tried again in another worker, with its file; one that ends workers is refused, whatever its use."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        again = stub.Evaluate(naming(token, 1, (0, 4), text=f"kill-once {tmp_path / 'once'}"))
        refusals = [
            failing(lambda use=use: stub.Evaluate(naming(token, use, (0, 4), text="signal SIGSEGV")))  # type: ignore[misc]
            for use in (2, 3, 4)
        ]

    assert b"abcd" == again.outputs[0].tensor.data
    assert ["WORKER_CRASHED"] * 3 == [refusal.reason for refusal in refusals]
    assert "is refused without being run" in refusals[2].message


@pytest.mark.parametrize("message", [b"\3", b"\1abc", b"\0" * 60, b"\xff" * 4000])
def test_nonsense_ends_a_connection(stub: Stub, folder: Path, caller: Caller, message: bytes) -> None:
    """What was not agreed ends its connection, and takes back its files; others are not concerned."""
    other = Caller(folder / "g.sock.memory")
    with memory_file(b"abcd") as descriptor, other.socket:
        mine, theirs = caller.token(descriptor), other.token(descriptor)
        caller.say(message)
        assert caller.is_closed()
        assert NO_SUCH_FILE == failing(lambda: stub.Evaluate(naming(mine, 1, (0, 4)))).message
        assert b"abcd" == stub.Evaluate(naming(theirs, 1, (0, 4))).outputs[0].tensor.data


def test_malformed_memory(server: Server, stub: Stub, caller: Caller) -> None:
    """A field that is no SharedMemory, or of absurd length, is refused in words."""
    with memory_file(b"abcd") as descriptor:
        token = caller.token(descriptor)
        long = failing(lambda: stub.Evaluate(naming(token, 1, *[(0, 1)] * 20_000)))
        request = command().SerializeToString() + b"\x82\x01\x02\x0a\x05"  # a token of 5 bytes, which do not come
        with grpc.insecure_channel(server.address) as channel:
            evaluate = channel.unary_unary("/gradoracle.v1.GradientService/Evaluate")
            broken = failing(lambda: evaluate(request))
    assert ("MALFORMED_REQUEST", "memory: the bytes are no SharedMemory") == (broken.reason, broken.message)
    assert "memory: expected at most 65536 bytes, which name thousands of spans, got" in long.message
    assert "MALFORMED_REQUEST" == long.reason


def test_too_many_files(server: Server, caller: Caller) -> None:
    """A connection may have 64 files; one more finds no room until another is taken back."""
    with memory_file(b"a") as descriptor:
        tokens = [caller.token(descriptor) for _ in range(64)]
        assert b"\2" == caller.offer(descriptor)
        assert 64 == files(server)
        caller.say(b"\2" + tokens[0])
        caller.token(descriptor)
        for token in tokens:
            caller.say(b"\2" + token)
    eventually(lambda: files(server) == 1)


def test_several_descriptors_in_one_message(server: Server, caller: Caller) -> None:
    """Of several descriptors one is taken, and none is kept beside it."""
    with memory_file(b"a") as one, memory_file(b"b") as two:
        answer = caller.offer(one, two, two)
        assert (b"\0", 1) == (answer[:1], files(server))
        caller.say(b"\2" + answer[1:])
        assert b"\1" == caller.offer()[:1]
    assert 0 == files(server)


def test_permissions(server: Server, folder: Path) -> None:
    """The socket has the owner and the permissions of gRPC's."""
    assert server.address == f"unix:{folder / 'g.sock'}"
    one, other = (folder / "g.sock").stat(), (folder / "g.sock.memory").stat()
    assert stat.S_ISSOCK(other.st_mode)
    assert (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)


def test_it_is_off_unless_wanted(tmp_path: Path) -> None:
    """Without the flag there is no socket, and who names a file is told so: it may be one that a server before this was
    handed."""
    with start("--listen", f"unix:{tmp_path / 'g.sock'}") as server, connect(server) as stub:
        assert ["g.sock"] == [path.name for path in tmp_path.iterdir()]
        refusal = failing(lambda: stub.Evaluate(naming(bytes(16), 1, (0, 4), data=b"inside")))
        message = service_pb2.StreamRequest()
        message.calls.add(id=1, evaluate=naming(bytes(16), 1, (0, 4)))
        message.calls.add(id=2, evaluate=command(data=b"inside"))
        answers = {answer.id: answer for response in stub.Stream(iter([message])) for answer in response.answers}
    text = "memory: expected a request that holds its bytes, for this server shares no memory, got one that names some"
    assert (Code.FAILED_PRECONDITION, "MEMORY_UNKNOWN") == (refusal.code, refusal.reason)
    assert f"{text}; the server may have started anew: send the bytes" == refusal.message
    status = status_pb2.Status.FromString(answers[1].status)
    assert "MEMORY_UNKNOWN" == refusal_of(status, Code.OK, {}).reason
    assert b"inside" == answers[2].evaluate.outputs[0].tensor.data


def test_it_goes_when_the_server_stops(tmp_path: Path) -> None:
    """A server that is stopped leaves no socket; one that is killed leaves one that the next takes over."""
    path = tmp_path / "g.sock.memory"
    with start(*flags(tmp_path)) as server:
        assert -signal.SIGKILL == server.stop(signal.SIGKILL)
    assert path.is_socket()
    with start(*flags(tmp_path)) as server:
        caller = Caller(path)
        assert 0 == server.stop()
        assert caller.is_closed()
        caller.socket.close()
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [("--shared-memory",), ("--shared-memory", "true")])
def test_it_needs_a_unix_socket(given: tuple[str, ...]) -> None:
    """With an address of TCP, and no path, the server does not start, and says what it expects."""
    expected = 'expected the path of a socket, or an address of --listen like "unix:/run/gradoracle.sock"'
    expected = f"{expected}, got 127.0.0.1:0"
    assert (2, f"gradoracle: --shared-memory: {expected}\n") == refused(*given)


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "unix:{folder}/g.sock"])
def test_it_may_have_a_path_of_its_own(tmp_path: Path, listen: str) -> None:
    """Beside any address of gRPC's; for whom that is, if it is a socket's, else for this user; gone with the server."""
    path = tmp_path / "other"
    with start("--listen", listen.format(folder=tmp_path), "--shared-memory", str(path)) as server:
        caller = Caller(path)
        with memory_file(b"abc") as descriptor:
            assert caller.offer(descriptor)[0] == 0
        like = tmp_path / "g.sock"
        assert stat.S_IMODE(path.stat().st_mode) == (stat.S_IMODE(like.stat().st_mode) if like.exists() else 0o600)
        caller.socket.close()
        assert 0 == server.stop()
    assert [] == list(tmp_path.iterdir())


def test_its_path_must_be_free(tmp_path: Path) -> None:
    """A file in the place of the socket is left alone, and the server does not start."""
    path = tmp_path / "g.sock.memory"
    path.write_text("mine")
    code, text = refused(*flags(tmp_path))

    assert 2 == code
    expected = "--shared-memory: expected an address that is free and of this machine"
    assert text.endswith(f"{expected}, got unix:{path}: a file of that name exists and is no socket\n")
    assert "mine" == path.read_text()


def seconds_of(process: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_without_descriptors_nobody_is_taken_for_a_while(tmp_path: Path) -> None:
    """Who waits to be taken then costs no processor time, and is taken when there are descriptors again."""
    with start(*flags(tmp_path), "--workers", "1") as server:
        pid = server.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir()) + 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, before[1]))
        lowest = [socket.socket(socket.AF_UNIX) for _ in range(used)]  # which take what is free below
        for one in lowest:
            one.connect(str(tmp_path / "g.sock.memory.calls"))
        caller = Caller(tmp_path / "g.sock.memory")
        with caller.socket, memory_file() as descriptor:
            time.sleep(0.5)
            begun = seconds_of(pid)
            time.sleep(2)
            assert seconds_of(pid) - begun < 0.4
            for one in lowest:
                one.close()
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            assert caller.token(descriptor)
