"""The loop of a worker process: a job in, a reply out, until the front closes the socket."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import resource
import socket
import time
import warnings
from pathlib import Path
from typing import cast

import torch
from google.protobuf import message

from gradoracle_server.engine import autodiff, memory, plan, shapes
from gradoracle_server.engine.errors import Fault
from gradoracle_server.engine.graph import GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.phases import Phases
from gradoracle_server.engine.replay import CudaRecorder, Replays
from gradoracle_server.frames import METHODS, NOT_RUN, PHASES, Attachments, Job, PayloadError, Reply, send
from gradoracle_server.lanes import Outlet
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker import devices, payload, sandbox, statuses
from gradoracle_server.worker.backlog import Backlog
from gradoracle_server.worker.handlers import HANDLERS, PLAN_BYTES, Context, Plans
from gradoracle_server.worker.kept import KeptMemory
from gradoracle_server.worker.tensors import Incoming, Outgoing

# Here, when the fork server imports this module, and not in each worker: they take 0.1 and 0.2 s.
autodiff.load_forward_rules()
shapes.load()

_log = logging.getLogger(__name__)
_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_OVERHEAD = 32 * 1024 * 1024  # bytes that a process may take for itself while it works for a request
_LONGEST_ANSWER = 2**31 - 1  # bytes of a message, by protobuf's own limit
_WITH_GRAPH = {name for name, (request, _) in HANDLERS.items() if "graph" in request.DESCRIPTOR.fields_by_name}
_TENSORS = {name: payload.tensor_fields(request) for name, (request, _) in HANDLERS.items()}
_KEPT_OUT = {"Evaluate", "ComputeVjp", "ComputeJvp", "ComputeJacobian", "ComputeHessian"}
"""Methods whose answers are lists of tensors, the data of which need not go through protobuf."""

_LARGE = 1024 * 1024  # bytes from which on it is asked first whether there is memory to parse them
_UNREAD = "the request's message takes as much again to be read"
_WORTH_GIVING_UP = 8 * 1024 * 1024  # bytes of plans, for the sake of a request that finds no memory


def serve(sock: socket.socket, options: WorkerOptions) -> None:
    """Prepares the process, greets, and answers jobs."""
    # torch warns of what callers do, once a process, in lines that may hold their values.
    warnings.simplefilter("ignore")
    worker = Worker(options)
    confinement = sandbox.Confinement(options.sandbox, options.device)
    try:
        confinement.begin()
        worker.warm_up()
        confinement.complete()
    except sandbox.SandboxError as error:
        _log.error("%s", error)
        raise SystemExit(1) from None
    _limit_memory(options, _OVERHEAD + worker.kept.most)
    # What lives now lives for ever: 170,000 objects, nearly all torch's. To look through them for garbage in the middle
    # of a request takes 39 ms; frozen, 3 us.
    gc.freeze()
    greeting = {"pid": os.getpid(), "torch": torch.__version__, "device": options.device}
    greeting |= {**devices.describe(options.device), "confined_by": confinement.held, "not_by": confinement.missing}
    send(sock, Reply(0, json.dumps(greeting).encode()))
    _answer_all(worker, sock, options.max_memory_bytes)


def _answer_all(worker: Worker, sock: socket.socket, max_memory_bytes: int) -> None:
    backlog, outlet = Backlog(), Outlet()
    while True:
        if not backlog:
            worker.kept.rest(sock)
        try:
            job = backlog.wait(sock)
            if job is not None and not job.ahead:
                outlet.free()  # the front has read every reply
            reply = NOT_RUN if job is None else worker.answer(job)
        except EOFError:
            return
        except OSError as error:
            if not isinstance(error, PayloadError) and not memory.is_exhausted(error):
                raise
            # A request whose bytes alone are more than this process may hold.
            reply = statuses.reply_for(_as_want_of_memory(error), "request", max_memory_bytes)
        try:
            _send(sock, reply, outlet, max_memory_bytes)
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            if reply.attachments is not None:
                reply.attachments.close()
            worker.let_go()


def _send(sock: socket.socket, reply: Reply, outlet: Outlet, max_memory_bytes: int) -> None:
    try:
        send(sock, reply, outlet)
    except PayloadError as error:  # nothing of it has gone
        send(sock, statuses.reply_for(_as_want_of_memory(error), "answer", max_memory_bytes))


def _as_want_of_memory(error: OSError) -> Exception:
    """The error by its name, where memory is what there is none of: of a memory file, the kernel says "no space"."""
    return MemoryError(error.strerror) if error.errno in (errno.ENOMEM, errno.ENOSPC) else error


def _limit_memory(options: WorkerOptions, overhead: int) -> None:
    """Bounds what this process may allocate, beside so many bytes of its own. A GPU worker's bound is a fraction of the
    device's memory.

    RLIMIT_DATA, the part of the address space that can become memory of its own, and not RLIMIT_AS, all of it:
    libraries and allocators reserve address space that never becomes memory.
    """
    if not options.max_memory_bytes:
        return
    device = torch.device(options.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.max_memory_bytes / total), device)
    else:
        limit = _memory_bytes(5) + options.max_memory_bytes + overhead
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _memory_bytes(column: int) -> int:
    """A figure of /proc/self/statm in bytes: column 1 is resident memory, 5 what counts against RLIMIT_DATA."""
    return int(_STATM.read_text(encoding="ascii").split()[column]) * _PAGE


class Worker:
    """Answers jobs on one device."""

    def __init__(self, options: WorkerOptions) -> None:
        self.kept = KeptMemory(options.max_memory_bytes)
        self._options = options
        self._device = torch.device(options.device)
        limit = options.max_memory_bytes
        self._plans = Plans(size=min(PLAN_BYTES, limit // 4)) if limit else Plans()
        self._replays = Replays(CudaRecorder(self._device) if self._device.type == "cuda" else None)
        self._memory_seen, self._memory_time = (0, 0), 0.0
        self._phases = Phases(self._device)
        # Of the job that was answered last:
        self._tensors: tuple[Incoming, Outgoing] | None = None
        self._attachments: Attachments | None = None
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            torch.zeros(1, device=self._device)  # makes the context, and the driver's own threads
        else:
            torch.set_num_threads(options.threads)

    def warm_up(self) -> None:
        """Runs a gradient, so that the first caller does not pay for what torch loads and starts at first use."""
        x = torch.ones(2, device=self._device)
        nodes = (NodeSpec("y", "aten.mul.Tensor", (Ref("x"), Ref("x"))), NodeSpec("z", "aten.sum.default", (Ref("y"),)))
        made = plan.build(GraphSpec((InputSpec("x"),), nodes, (("z", "z"),)), self._device)
        autodiff.vjp(made, {"x": x}, Phases(self._device), cotangents={})

    def answer(self, job: Job) -> Reply:
        """The reply to a job, whatever happens."""
        size = len(job.payload) + (0 if job.attachments is None else job.attachments.end)
        self.kept.prepare(size, all_read=job.all_read, attachments=job.attachments)
        try:
            reply = self._attempt(job)
            if reply is None:
                # What the plans of others take is not to be missed by this request, which finds no memory.
                self._plans.clear()
                self._replays.clear()
                self.kept.give_back()
                reply = self._attempt(job, again=True)
            assert reply is not None  # noqa: S101 - there is no third attempt
            return reply
        finally:
            self._attachments = job.attachments

    def let_go(self) -> None:
        """Gives back what the last job took, now that its reply has gone: to unmap 16 MiB takes 1.5 ms."""
        self._tensors = None
        if self._attachments is not None:
            self._attachments.close()
            self._attachments = None
        self._plans.weigh()

    def _attempt(self, job: Job, *, again: bool = False) -> Reply | None:
        """The reply to a job; None where it found no memory, and may find some at another attempt."""
        phases = self._phases
        phases.begin()
        limit = self._options.max_memory_bytes
        mapping = self.kept.mapping(job.attachments)
        incoming = Incoming(self._device, self._options.max_tensor_bytes, job.attachments, limit, mapping)
        method = METHODS[job.method]
        outgoing = Outgoing(
            job.attachments_welcome, job.attachments, keep=method in _KEPT_OUT, file=self.kept.file, mapping=mapping
        )
        self._tensors = incoming, outgoing
        try:
            context, reply = self._run(job, method, phases, incoming, outgoing)
            reply.plan_cache, reply.verdict = context.plan_cache, context.verdict
        except Exception as error:
            outgoing.close()
            if isinstance(error, message.DecodeError) and self._is_short_of(2 * len(job.payload)):
                error = MemoryError(_UNREAD)  # protobuf gives one error for want of memory and for nonsense
            held = self._plans.held > _WORTH_GIVING_UP or not self._replays.is_empty
            if not again and held and memory.ran_out(error):
                return None
            reply = statuses.reply_for(error, method, limit)
        seconds = phases.seconds.get
        reply.phases = tuple([seconds(phase, 0.0) for phase in PHASES])
        reply.tensor_bytes_in, reply.tensor_bytes_out = incoming.bytes, outgoing.bytes
        reply.memory_allocated, reply.memory_reserved = self._memory()
        return reply

    def _run(
        self, job: Job, method: str, phases: Phases, incoming: Incoming, outgoing: Outgoing
    ) -> tuple[Context, Reply]:
        request_type, handler = HANDLERS[method]
        with phases.measure("decode"):
            graph, rest = payload.split(job.payload) if method in _WITH_GRAPH else (None, job.payload)
            if len(rest) >= payload.LARGE:
                rest, incoming.data = payload.taken(rest, _TENSORS[method])
            self._require(len(rest) + len(graph or b""))
            request = request_type.FromString(cast(bytes, rest))  # a memoryview does as well
            if graph is not None and request.HasField("graph"):  # it comes in pieces, with others in between
                self._require(len(job.payload))
                graph, request, incoming.data = None, request_type.FromString(cast(bytes, job.payload)), {}
        context = Context(self._options, self._device, self._plans, self._replays, phases, incoming, outgoing, graph)
        response = handler(request, context)
        with phases.measure("encode"):
            try:
                if not outgoing.kept:
                    return context, Reply(0, response.SerializeToString(), outgoing.attachments())
                first, *tail = payload.written(response, outgoing.kept)
                if len(first) + sum(map(len, tail)) > _LONGEST_ANSWER:
                    raise _too_long(outgoing.bytes)
                return context, Reply(0, first, outgoing.attachments(), tail=tail)
            except (message.EncodeError, ValueError) as error:
                if outgoing.bytes <= _LONGEST_ANSWER:
                    raise
                raise _too_long(outgoing.bytes) from error

    def _require(self, size: int) -> None:
        """Raises MemoryError where there is none to parse so many bytes: protobuf may crash in want of it."""
        if size > _LARGE and self._is_short_of(size):
            raise MemoryError(_UNREAD)

    def _is_short_of(self, size: int) -> bool:
        """Whether so many bytes cannot be had."""
        allowed, _ = resource.getrlimit(resource.RLIMIT_DATA)
        return allowed != resource.RLIM_INFINITY and allowed - _memory_bytes(5) < size

    def _memory(self) -> tuple[int, int]:
        """Allocated and reserved bytes, looked up ten times a second at most: to read /proc takes 15 us."""
        now = time.monotonic()
        if now - self._memory_time > 0.1:
            self._memory_seen, self._memory_time = self._look_up_memory(), now
        return self._memory_seen

    def _look_up_memory(self) -> tuple[int, int]:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device), torch.cuda.memory_reserved(self._device)
        return _memory_bytes(1), 0


def _too_long(size: int) -> Fault:
    text = (
        f"the answer's tensors take {size} bytes, over the {_LONGEST_ANSWER} that one message can hold; ask for less, "
        "or through a Stream"
    )
    return Fault("LIMIT_EXCEEDED", text, limit="message", allowed=_LONGEST_ANSWER, asked=size)
