"""Starting worker processes, and learning how they ended.

Workers are forked from a fork server, a process of its own that has torch imported and no threads, so that one starts
in milliseconds. One thread of the front talks to it: starting is quick, and `multiprocessing` may lose the exit code of
a process when two threads ask for it at the same time.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from gradoracle_server import output

_FORK_SERVER = "gradoracle_server.front.fork_server"  # what the fork server imports first
_DYING = 0.25  # seconds that a process may take to end after it closed its socket, before it is killed
_TELLING = 10.0  # seconds that the fork server may take to tell how a process ended
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>: the signal that a process gets when its parent ends
_SPINS = "10000"  # instead of 300,000
_UNKNOWN = 255  # multiprocessing's exit code of a process whose fork server has gone

_fork_server: Any = forkserver._forkserver
"""multiprocessing keeps its process id and pipe to itself, and has no way to end it."""


class Processes:
    """The fork server and its children."""

    def __init__(self, preload: Sequence[str]) -> None:
        """Starts the fork server, which imports the modules of `preload` once, while the front goes on."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_FORK_SERVER, *preload])
        self._thread = ThreadPoolExecutor(1, "gradoracle-starter")
        self._thread.submit(_start_fork_server)

    async def start(self, target: Callable[..., None], *args: object) -> tuple[BaseProcess, socket.socket]:
        """A new process that runs `target(socket, *args)`, and the other end of its socket."""
        import asyncio  # here and below, because a server starts this module's fork server before anything else

        ours, theirs = socket.socketpair()
        try:
            run = asyncio.get_running_loop().run_in_executor
            return await run(self._thread, self._start, target, theirs, args), ours
        except BaseException:
            ours.close()  # which ends the process if it comes to be
            raise

    async def ended(self, process: BaseProcess) -> int | None:
        """How a process ended that has closed its socket: its exit code, negative for a signal, None if unknown."""
        import asyncio

        try:
            async with asyncio.timeout(_TELLING):
                return await asyncio.get_running_loop().run_in_executor(self._thread, _ended, process)
        except TimeoutError:
            return (
                None  # the fork server, which would know, does not answer; the process's request must not wait for it
            )

    def close(self) -> None:
        """Starts nothing any more, and ends the fork server."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.kill()  # the thread may be waiting for it
        self._thread.shutdown(wait=True)

    def kill(self) -> None:
        """Ends the fork server at once, and with it whatever it started: the kernel sees to that."""
        pid, _fork_server._forkserver_pid = _fork_server._forkserver_pid, None
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _start(self, target: Callable[..., None], theirs: socket.socket, args: tuple[object, ...]) -> BaseProcess:
        with theirs:
            process = self._context.Process(target=_born, args=(target, theirs, *args), daemon=True)
            # multiprocessing writes out what stdout and stderr hold back, and starts nothing where a full disk does not
            # take it.
            output.forget_what_nobody_takes()
            process.start()
            return process


def _start_fork_server() -> None:
    """Starts it with the signals blocked that are meant for the front.

    A signal to the whole process group or control group (an interrupt typed at a terminal, systemd's stop) would end
    the workers before the front could drain. Blocked in this thread, they are blocked in all that it starts.
    """
    # Zeroed memory (engine/fresh.py) is only complete where the C library keeps no freed pieces aside for each thread.
    # It reads this when a program starts.
    others = [one for one in os.environ.get("GLIBC_TUNABLES", "").split(":") if one and "tcache_count" not in one]
    os.environ["GLIBC_TUNABLES"] = ":".join([*others, "glibc.malloc.tcache_count=0"])
    # OpenMP's threads wait for the next operator in a loop, which takes the core that this process and the caller need
    # for the answer. A tenth of a millisecond of it is all that a chain of operators has use for.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    resource_tracker.ensure_running()  # before the signals are blocked: it unblocks them
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    forkserver.ensure_running()


def end_with_parent() -> None:
    """The kernel ends this process, whatever it is doing then, when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _born(target: Callable[..., None], sock: socket.socket, *args: object) -> None:
    """The first function of a new process."""
    # What the fork server made is for good, and shared; to look through it for garbage would copy it into this process.
    gc.freeze()
    gc.enable()
    # The fork server ends when nobody holds the other end of this pipe, and its children with it. If children held it
    # too, a busy one would outlive a front that was killed, and the fork server with it.
    os.close(_fork_server._forkserver_alive_fd)
    end_with_parent()  # it cannot miss the moment: if the front has gone already, so has the end of its socket
    # A core dump would take seconds, and put the caller's tensors on disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        target(sock, *args)
    except (BrokenPipeError, ConnectionResetError):
        return  # the front has gone, or does not want it any more


def _ended(process: BaseProcess) -> int | None:
    process.join(_DYING)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return None if code == _UNKNOWN else code
