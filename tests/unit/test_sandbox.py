"""What a confined process cannot do any more, tried from inside, and what torch still can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradoracle_server.worker import sandbox

INSIDE = r'''
import ctypes, errno, json, os, resource, signal, socket, subprocess, sys, tempfile, threading

import torch

from gradoracle_server.worker import sandbox

mode, folder, front = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
keys = sandbox.landlock_version()
born = threading.Event()
asked = threading.Event()
answer = []

confinement = sandbox.Confinement(mode, "cpu")
confinement.begin()
torch.set_num_threads(2)
x = torch.rand(300, 300, requires_grad=True)
(x @ x).sum().backward()  # threads, as a worker has them from its warm-up on


def other_thread():
    born.set()
    asked.wait()
    answer.append(outcome(socket.socket))


def outcome(attempt):
    try:
        made = attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done" if made is None or not isinstance(made, (bool, str)) else made


def call(number, *arguments):
    """A system call by its number; what it returns below zero is an error."""
    def attempt():
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
    return attempt


def fork():
    if os.fork() == 0:
        os._exit(0)
    os.wait()


def start_thread():
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def memory_file():
    descriptor = os.memfd_create("test")
    os.write(descriptor, b"x" * 100_000)


thread = threading.Thread(target=other_thread)
thread.start()
born.wait()
confinement.complete()
asked.set()
thread.join()
own, pair = os.path.join(folder, "own"), None
attempts = {
    "tcp socket": lambda: socket.socket().close(),
    "udp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "unix socket": lambda: socket.socket(socket.AF_UNIX).close(),
    "write a file": lambda: open(own, "w").close(),
    "append to a file": lambda: open(os.path.join(folder, "there"), "a").close(),
    "truncate a file": lambda: os.truncate(os.path.join(folder, "there"), 0),
    "remove a file": lambda: os.remove(os.path.join(folder, "there")),
    "rename a file": lambda: os.rename(os.path.join(folder, "there"), own),
    "make a folder": lambda: os.mkdir(os.path.join(folder, "folder")),
    "change a mode": lambda: os.chmod(folder, 0o700),
    "link": lambda: os.symlink("/", os.path.join(folder, "link")),
    "read a file": lambda: open(os.path.join(folder, "there")).close(),
    "read passwd": lambda: open("/etc/passwd").close(),
    "list the root": lambda: os.listdir("/") and None,
    "list home": lambda: os.listdir(os.path.expanduser("~")) and None,
    "read the front's environment": lambda: open(f"/proc/{front}/environ").close(),
    "read the front's memory": lambda: open(f"/proc/{front}/mem", "rb").close(),
    "run a program": lambda: subprocess.run(["/bin/true"], check=True) and None,
    "fork": fork,
    "signal the front": lambda: os.kill(front, 0),
    "signal a thread of the front": call({"x86_64": 234}.get(os.uname().machine, 131), front, front, 0),
    "io_uring": call(425, 0, 0),
    "landlock's own calls": call(444, None, 0, 1),
    # what must go on working
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "start a thread": start_thread,
    "memory file": memory_file,
    "read torch's library": lambda: open(torch.__file__).close(),
    "import a module": lambda: __import__("xmlrpc.client") and None,
    "read its own status": lambda: open("/proc/self/status").close(),
    "multiply": lambda: (torch.ones(300, 300) @ torch.ones(300, 300)).sum().item() == 27e6 and "done",
    "decompose": lambda: torch.linalg.svd(torch.eye(50, dtype=torch.float64)).S.sum().item() == 50 and "done",
    "convolve": lambda: torch.conv2d(torch.ones(1, 1, 9, 9), torch.ones(1, 1, 3, 3)).sum().item() == 441 and "done",
    "transform": lambda: abs(torch.fft.fft(torch.ones(64)).abs().sum().item() - 64) < 1e-3 and "done",
    "batch": lambda: torch.func.vmap(torch.sin)(torch.zeros(4, 3)).sum().item() == 0 and "done",
}
found = {name: outcome(attempt) for name, attempt in attempts.items()}
status = dict(line.split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
found["in a thread that was there before"] = answer[0]
found["status"] = {name: value.strip() for name, value in status.items()}
found["held"] = confinement.held
print(json.dumps(found))
'''

FORBIDDEN = [
    "tcp socket", "udp socket", "unix socket", "write a file", "append to a file", "truncate a file",
    "remove a file", "rename a file", "make a folder", "change a mode", "link", "run a program", "fork",
    "signal the front", "signal a thread of the front", "io_uring", "in a thread that was there before",
]  # fmt: skip
UNREADABLE = ["read a file", "read passwd", "list the root", "list home"]
FRONT = ["read the front's environment", "read the front's memory"]
LEFT = [
    "signal itself", "start a thread", "memory file", "read torch's library", "import a module", "read its own status",
    "multiply", "decompose", "convolve", "transform", "batch", "landlock's own calls",
]  # fmt: skip


def inside(mode: str, folder: Path) -> dict[str, Any]:
    """What came of each attempt in a process that was confined."""
    folder.mkdir()
    (folder / "there").write_text("a secret")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as front:
        done = subprocess.run(
            [sys.executable, "-c", INSIDE, mode, str(folder), str(front.pid)],
            capture_output=True,
            text=True,
            timeout=100,
        )
        front.communicate(b"\n")
    assert 0 == done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inside("auto", tmp_path_factory.mktemp("sandbox") / "confined")


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inside("off", tmp_path_factory.mktemp("sandbox") / "free")


def held(found: dict[str, Any], what: str) -> dict[str, Any]:
    if what not in found["held"]:
        pytest.skip(f"this kernel, or the container's own filter, gives no {what}")
    return found


@pytest.mark.parametrize("attempt", FORBIDDEN)
def test_calls_that_are_refused(attempt: str, confined: dict[str, Any]) -> None:
    """No network, no change to any file, no program, no process, no signal to others; in every thread."""
    got = held(confined, "seccomp")[attempt]
    assert got in ("EPERM", "EACCES"), got


@pytest.mark.parametrize("attempt", UNREADABLE)
def test_files_that_cannot_be_read(attempt: str, confined: dict[str, Any]) -> None:
    """Nothing but torch's own."""
    assert "EACCES" == held(confined, "landlock")[attempt]


@pytest.mark.parametrize("attempt", FRONT)
def test_other_processes_cannot_be_read(attempt: str, confined: dict[str, Any]) -> None:
    """Neither the front's environment, which may hold secrets, nor its memory."""
    assert held(confined, "landlock")[attempt] in ("EACCES", "EPERM")


@pytest.mark.parametrize("attempt", LEFT)
def test_what_computing_takes_goes_on_working(attempt: str, confined: dict[str, Any]) -> None:
    """Threads, memory, libraries, modules, and torch's kernels."""
    assert "done" == confined[attempt]


def test_privileges_are_gone(confined: dict[str, Any]) -> None:
    """No capability, none to be had, and no way to gain any."""
    status = held(confined, "no privileges")["status"]
    assert ["0" * 16] * 4 == [status[one] for one in ("CapInh", "CapPrm", "CapEff", "CapAmb")]
    assert "1" == status["NoNewPrivs"]
    if "seccomp" in confined["held"]:
        assert "2" == status["Seccomp"]


POSSIBLE = [
    "tcp socket", "write a file", "append to a file", "remove a file", "read passwd", "run a program", "fork",
    "read the front's environment", "signal the front", "in a thread that was there before",
]  # fmt: skip


@pytest.mark.parametrize("attempt", POSSIBLE)
def test_without_confinement_all_of_it_works(attempt: str, free: dict[str, Any]) -> None:
    """The attempts themselves are sound: what fails, fails for the confinement."""
    assert [] == free["held"]
    assert "done" == free[attempt]


def test_where_the_kernel_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto goes on and says so; on does not."""
    monkeypatch.setattr(sandbox, "drop_privileges", lambda: True)
    monkeypatch.setattr(sandbox, "confine_files", lambda devices: False)
    lenient = sandbox.Confinement("auto", "cpu")
    lenient.begin()
    assert (["no privileges"], ["landlock"]) == (lenient.held, lenient.missing)
    with pytest.raises(
        sandbox.SandboxError, match=r"^--sandbox on: expected landlock, got none: the kernel \S+ does not"
    ):
        sandbox.Confinement("on", "cpu").begin()


def test_where_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a call is no reason to go without saying so, nor, with auto, to end."""

    def refused(**_: object) -> bool:
        raise sandbox.SandboxError("seccomp: Operation not permitted")

    monkeypatch.setattr(sandbox, "confine_calls", refused)
    lenient = sandbox.Confinement("auto", "cpu")
    lenient.complete()
    assert ([], ["seccomp"]) == (lenient.held, lenient.missing)
    with pytest.raises(
        sandbox.SandboxError, match=r"^--sandbox on: expected seccomp, got none: seccomp: Operation not"
    ):
        sandbox.Confinement("on", "cpu").complete()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("writing", [False, True])
def test_the_filter_as_a_program(machine: str, writing: bool) -> None:
    """Run by hand, instruction by instruction: each forbidden call is refused on both architectures, the calls that
    computing takes are not, and every jump lands inside."""
    place = ["x86_64", "aarch64"].index(machine)
    program = b"".join(sandbox._program(machine, writing))
    for numbers in sandbox._FORBIDDEN.values():
        if numbers[place] is not None:
            assert ("error", 1) == run(program, machine, numbers[place])
    for numbers in sandbox._ABSENT.values():
        assert ("error", 38) == run(program, machine, numbers[place])
    used = {"x86_64": (0, 1, 9, 11, 44, 47, 60, 202, 231, 319), "aarch64": (63, 64, 94, 98, 211, 212, 215, 222, 279)}
    for number in used[machine]:
        assert ("allow", 0) == run(program, machine, number)
    openat, clone = sandbox._OPENAT[place], sandbox._CLONE[place]
    assert ("allow", 0) == run(program, machine, openat, 0, 0, 0o2000000)  # to read
    for flags in (1, 2, 0o100, 0o1000, 0o2000):
        expected = ("allow", 0) if writing else ("error", 1)
        assert expected == run(program, machine, openat, 0, 0, flags)
    assert ("error", 1) == run(program, machine, clone, 17)  # a process: SIGCHLD
    assert ("allow", 0) == run(program, machine, clone, 0x3D0F00)  # a thread, as the C library makes it
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert ("error", 1) == run(program, other, used[machine][0])
    if machine == "x86_64":
        assert ("error", 1) == run(program, machine, 0x40000000)


def run(program: bytes, machine: str, number: int | None, *arguments: int) -> tuple[str, int]:
    """What the kernel would do: a small interpreter of the instructions that the filter has."""
    assert number is not None
    data = {0: number, 4: sandbox._ARCHITECTURE[machine]} | {16 + 8 * at: one for at, one in enumerate(arguments)}
    at, loaded = 0, 0
    while True:
        code, operand, if_true, if_false = unpack(program, at)
        at += 1
        if code == 0x20:
            loaded = data.get(operand, 0)
        elif code == 0x06:
            return ("allow", 0) if operand == 0x7FFF0000 else ("error", operand - 0x50000)
        else:
            holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}[code]
            at += if_true if holds else if_false
            assert at < len(program) // 8


def unpack(program: bytes, at: int) -> tuple[int, int, int, int]:
    code = int.from_bytes(program[8 * at : 8 * at + 2], "little")
    return code, int.from_bytes(program[8 * at + 4 : 8 * at + 8], "little"), program[8 * at + 2], program[8 * at + 3]
