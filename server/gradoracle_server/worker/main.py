"""The loop of a worker process: a job in, a reply out, until the front closes the socket."""

from __future__ import annotations

import gc
import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import cast

import torch

from gradoracle_server.engine import autodiff, plan
from gradoracle_server.engine.graph import GraphSpec, InputSpec, NodeSpec, Ref
from gradoracle_server.engine.phases import Phases
from gradoracle_server.frames import METHODS, PHASES, Inbox, Job, Reply, send
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker import devices, payload, statuses
from gradoracle_server.worker.handlers import HANDLERS, Context, Plans
from gradoracle_server.worker.tensors import Incoming, Outgoing

# Here, when the fork server imports this module, and not at a request's expense in each worker: it takes 0.2 s.
autodiff.load_forward_rules()

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def serve(sock: socket.socket, options: WorkerOptions) -> None:
    """Prepares the process, greets, and answers jobs."""
    _limit_memory(options)
    worker = Worker(options)
    worker.warm_up()
    # What lives now lives for ever: 170,000 objects, nearly all torch's. To look through them for garbage in the middle
    # of a request takes 39 ms; frozen, 3 us.
    gc.freeze()
    greeting = {"pid": os.getpid(), "torch": torch.__version__, "device": options.device}
    greeting |= devices.describe(options.device)
    send(sock, Reply(0, json.dumps(greeting).encode()))
    inbox: Inbox[Job] = Inbox(Job)
    while True:
        try:
            job = inbox.wait(sock)
        except EOFError:
            return
        reply = worker.answer(job)
        try:
            send(sock, reply)
        except (BrokenPipeError, ConnectionResetError):
            return
        finally:
            if reply.attachments is not None:
                reply.attachments.close()


def _limit_memory(options: WorkerOptions) -> None:
    """Bounds what this process may allocate. A GPU worker's bound is a fraction of the device's memory.

    RLIMIT_DATA, not RLIMIT_AS: libraries and CUDA reserve address space that never becomes memory.
    """
    if not options.max_memory_bytes:
        return
    device = torch.device(options.device)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options.max_memory_bytes / total), device)
    else:
        limit = _memory_bytes(5) + options.max_memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _memory_bytes(column: int) -> int:
    """A figure of /proc/self/statm in bytes: column 1 is resident memory, 5 what counts against RLIMIT_DATA."""
    return int(_STATM.read_text(encoding="ascii").split()[column]) * _PAGE


class Worker:
    """Answers jobs on one device."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._device = torch.device(options.device)
        self._plans = Plans()
        self._memory_seen, self._memory_time = (0, 0), 0.0
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
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
        phases = Phases(self._device)
        incoming = Incoming(self._device, self._options.max_tensor_bytes, job.attachments)
        outgoing = Outgoing(job.attachments_welcome)
        method = METHODS[job.method]
        try:
            context, reply = self._run(job, method, phases, incoming, outgoing)
            reply.plan_cache, reply.verdict = context.plan_cache, context.verdict
        except Exception as error:
            outgoing.close()
            reply = statuses.reply_for(error, method)
        finally:
            if job.attachments is not None:
                job.attachments.close()
        reply.phases = tuple(phases.seconds.get(phase, 0.0) for phase in PHASES)
        reply.tensor_bytes_in, reply.tensor_bytes_out = incoming.bytes, outgoing.bytes
        reply.memory_allocated, reply.memory_reserved = self._memory()
        return reply

    def _run(
        self, job: Job, method: str, phases: Phases, incoming: Incoming, outgoing: Outgoing
    ) -> tuple[Context, Reply]:
        request_type, handler = HANDLERS[method]
        with phases.measure("decode"):
            has_graph = "graph" in request_type.DESCRIPTOR.fields_by_name
            graph, rest = payload.split(job.payload) if has_graph else (None, job.payload)
            request = request_type()
            request.ParseFromString(cast(bytes, rest))  # a memoryview does as well
        context = Context(self._options, self._device, self._plans, phases, incoming, outgoing, graph)
        response = handler(request, context)
        with phases.measure("encode"):
            return context, Reply(0, response.SerializeToString(), outgoing.attachments())

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
