"""Takes away from a worker what torch does not need to compute: files, the network, other processes, privileges.

torch's operators crash on some arguments, and some of those crashes are memory errors that might be made into more. So
a worker gives up, for itself and before it sees a request:

- every capability, and the means to gain any (no_new_privs);
- by Landlock: all files but torch's own libraries and modules, and what the C library and OpenMP read of /proc and
  /sys; those for reading only; TCP, and signals to others;
- by a seccomp filter: sockets, programs, processes, opening files for writing, changing them by name, looking into
  other processes, io_uring (which goes around such filters), namespaces and other large parts of the kernel.

What it keeps: memory, threads, the socket that it was born with, and memory files.

Straight from the kernel's interface, because there was no well-kept library to be had: on the package index `landlock`
had only ever been published as a preview, and `pyseccomp`, last published in 2021, wants a libseccomp of the system's.
The interface is three system calls and one filter program, and stays as it is by the kernel's rules.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import site
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_log = logging.getLogger(__name__)

_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 38, 24  # <linux/prctl.h>


class SandboxError(Exception):
    """The kernel does not offer what was asked for."""


class Confinement:
    """A worker's, in two steps. `held` says what holds by now, and `missing` what could not be had, for the log.

    A filter of system calls can be laid on every thread at once; Landlock binds the thread that asks for it and those
    that it starts, so it comes first. A GPU's driver has threads of its own by then, which run no operators.
    """

    def __init__(self, mode: str, device: str) -> None:
        """`mode` is "auto" (as far as the kernel can), "on" (all of it, or SandboxError) or "off"."""
        self.held: list[str] = []
        self.missing: list[str] = []
        self._mode = mode
        self._gpu = device.startswith("cuda")

    def begin(self) -> None:
        """Before the process has threads that run operators."""
        if self._mode == "off":
            return
        tempfile.gettempdir()  # looks for a folder that it can write to, when torch imports it later, and would not
        self._take("no privileges", drop_privileges)
        devices = sorted(Path("/dev").glob("nvidia*")) if self._gpu else []
        self._take("landlock", lambda: confine_files(devices))

    def complete(self) -> None:
        """When all is there that computing takes."""
        if self._mode != "off":
            self._take("seccomp", lambda: confine_calls(may_open_for_writing=self._gpu))

    def _take(self, what: str, step: Callable[[], bool]) -> None:
        why = f"the kernel {platform.release()} does not offer it"
        try:
            holds = step()
        except SandboxError as error:  # forbidden by a container's own filter, say
            holds, why = False, str(error)
        (self.held if holds else self.missing).append(what)
        if self._mode == "on" and not holds:
            raise SandboxError(f"--sandbox on: expected {what}, got none: {why}")


def drop_privileges() -> bool:
    """Gives up every capability for good. Works for anyone: who has none has none to give up."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails for those that are not there
    header = struct.pack("<Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    _check(_libc.capset(header, bytes(24)), "capset")
    return True


# Landlock: <linux/landlock.h>. The three calls have the same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _WRITE_FILE, _READ_DIR, _IOCTL_DEV = 1 << 2, 1 << 1, 1 << 3, 1 << 15
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # by version of the interface from which on: how many rights there are
_TCP, _SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals

_READABLE = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/cuda", "/etc/ld.so.cache",
    "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/devices", "/proc/driver/nvidia",
    "/proc/sys/vm", "/sys/devices", "/sys/fs/cgroup", "/sys/bus/pci", "/sys/module/nvidia",
)  # fmt: skip


def landlock_version() -> int:
    """The version of Landlock's interface in this kernel; 0 where there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def confine_files(devices: Iterable[Path] = ()) -> bool:
    """Leaves to this thread, and to those that it starts, only the files that torch needs, to read; and `devices`, to
    read, write and control. False where the kernel has no Landlock."""
    version = landlock_version()
    if not version:
        return False
    rights = (1 << max(count for since, count in _FILE_RIGHTS.items() if since <= version)) - 1
    attributes = struct.pack("<QQQ", rights, _TCP, _SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    _check(ruleset, "landlock_create_ruleset")
    try:
        for path in readable():
            _allow(ruleset, path, (_READ_FILE | _READ_DIR) & rights)
        for path in devices:
            _allow(ruleset, path, (_READ_FILE | _WRITE_FILE | _IOCTL_DEV) & rights)
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return True


def readable() -> Iterator[Path]:
    """Where torch's libraries and modules lie, and the interpreter's: not the folders of `sys.path` that happen to
    be there, such as the current one."""
    yield from map(Path, _READABLE)
    own = sysconfig.get_paths()
    yield from (Path(own[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    yield from map(Path, site.getsitepackages())
    yield Path(sys.base_prefix, "lib")
    for name in ("torch", "numpy", "google.protobuf", "gradoracle", "gradoracle_server"):
        module = sys.modules.get(name)
        yield from (Path(folder) for folder in getattr(module, "__path__", ()))
    yield from (Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/"))


def _allow(ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not there, so there is nothing to read
    try:
        if not path.is_dir():
            rights &= ~_READ_DIR
        _check(_libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("<Qi", rights, descriptor), 0), "landlock_add_rule")
    finally:
        os.close(descriptor)


# Seccomp: <linux/seccomp.h>, <linux/filter.h>. Numbers on x86-64 and aarch64; None where there is no such call.
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FORBIDDEN: dict[str, tuple[int | None, int | None]] = {
    # the network; `sendto` and the like go on working on the socket that is there
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242),
    # programs and processes, and looking into them
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # files by name, other than opening them
    "truncate": (76, 45), "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None),
    "link": (86, None), "unlink": (87, None), "symlink": (88, None), "chmod": (90, None), "chown": (92, None),
    "lchown": (94, None), "mknod": (133, None), "utime": (132, None), "utimes": (235, None), "mkdirat": (258, 34),
    "mknodat": (259, 33), "fchownat": (260, 54), "futimesat": (261, None), "unlinkat": (263, 35),
    "renameat": (264, 38), "linkat": (265, 37), "symlinkat": (266, 36), "fchmodat": (268, 53), "utimensat": (280, 88),
    "renameat2": (316, 276), "fchmodat2": (452, 452), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "chroot": (161, 51), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    # large parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "unshare": (272, 97), "setns": (308, 268), "personality": (135, 92),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "syslog": (103, 116),
}  # fmt: skip
_ABSENT = {"clone3": (435, 435), "openat2": (437, 437)}
"""Calls whose arguments a filter cannot see. The C library goes back to the older ones where there are none."""
_OPEN, _OPENAT, _CLONE, _KILL, _TGKILL = (2, None), (257, 56), (56, 220), (62, 129), (234, 131)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CLONE_THREAD = 0x10000
_X32 = 0x40000000  # a second set of numbers for x86-64's calls

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ABOVE, _JUMP_IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # where they stand in struct seccomp_data


def confine_calls(*, may_open_for_writing: bool = False) -> bool:
    """Leaves to every thread of this process only the system calls that computing takes. False where the kernel, or
    this module, does not know how.

    Opening for writing is left to Landlock where a device's driver needs it.
    """
    machine = platform.machine()
    if machine not in _SECCOMP:
        return False
    program = b"".join(_program(machine, may_open_for_writing))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    done = _libc.syscall(_SECCOMP[machine], 1, 1, header)  # SECCOMP_SET_MODE_FILTER, for all threads
    if done < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL):
        return False
    _check(done, "seccomp")
    return True


def _program(machine: str, may_open_for_writing: bool) -> Iterator[bytes]:
    """A filter in the kernel's classic BPF: instructions of (code, jump if true, jump if false, operand)."""
    place = list(_SECCOMP).index(machine)
    refuse = _instruction(_RETURN, _ERROR | errno.EPERM)
    yield _instruction(_LOAD, _ARCH)
    yield _instruction(_JUMP_IF_EQUAL, _ARCHITECTURE[machine], 1, 0) + refuse
    yield _instruction(_LOAD, _NUMBER)
    if machine == "x86_64":
        yield _instruction(_JUMP_IF_ABOVE, _X32, 0, 1) + refuse
    for numbers, answer in ((_FORBIDDEN, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for number in (both[place] for both in numbers.values()):
            if number is not None:
                yield _instruction(_JUMP_IF_EQUAL, number, 0, 1) + _instruction(_RETURN, _ERROR | answer)
    allow = _instruction(_RETURN, _ALLOW)
    if not may_open_for_writing:
        for call, argument in ((_OPEN, 1), (_OPENAT, 2)):
            yield from _with_argument(call[place], argument, _instruction(_JUMP_IF_ANY_BIT, _WRITING, 0, 1) + refuse)
    threads_only = _instruction(_JUMP_IF_ANY_BIT, _CLONE_THREAD, 1, 0) + refuse
    yield from _with_argument(_CLONE[place], 0, threads_only)
    for call in (_KILL, _TGKILL):
        only_itself = _instruction(_JUMP_IF_EQUAL, os.getpid(), 1, 0) + refuse
        yield from _with_argument(call[place], 0, only_itself)
    yield allow


def _with_argument(number: int | None, argument: int, judgement: bytes) -> Iterator[bytes]:
    """Judges a call by the low half of one of its arguments, and allows it where that does not refuse."""
    if number is None:
        return
    judged = _instruction(_LOAD, _ARGUMENTS + 8 * argument) + judgement + _instruction(_RETURN, _ALLOW)
    yield _instruction(_JUMP_IF_EQUAL, number, 0, len(judged) // 8) + judged


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise SandboxError(f"{what}: {os.strerror(number)}")
