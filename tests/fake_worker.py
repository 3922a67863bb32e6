"""A stand-in for worker processes that does what a request's first node tells it, for tests of the front.

The node's name is a command: "echo", "sleep SECONDS", "until PATH" (which waits for a file), "signal NAME",
"exit CODE", "raise", "garbage", "refuse CODE", "attach SIZE", "answer SIZE", "kill-once PATH", which is a kill from
outside the first time, or "kill-while PATH", which is one while there is such a file. The answer to Evaluate has an
output named after the process's id, or for "whose" after the attachments' owner, with the first primal's tensor, or the
attachments' bytes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from gradoracle.v1 import service_pb2
from gradoracle_server import frames, lanes
from gradoracle_server.launch import WorkerOptions
from gradoracle_server.worker.backlog import Backlog

MODULE = "fake_worker"


def scout(sock: socket.socket) -> None:
    """Finds a CPU, and the CUDA devices that the environment pretends to have."""
    gpus = int(os.environ.get("FAKE_GPUS", "0"))
    names = ["cpu", *(f"cuda:{index}" for index in range(gpus))]
    found = {"torch": "0.0", "devices": [{"name": name, "description": "", "memory_bytes": 0} for name in names]}
    frames.send(sock, frames.Reply(0, json.dumps(found).encode()))


def blind_scout(sock: socket.socket) -> None:
    """Ends without a word."""


def stillborn(sock: socket.socket, options: WorkerOptions) -> None:
    """Never comes up."""
    os._exit(7)


def late(sock: socket.socket, options: WorkerOptions) -> None:
    """Serves if it is one of the first two; no other comes up while the folder FAKE_MARKS is there."""
    marks = Path(os.environ["FAKE_MARKS"])
    for mark in (marks / "first", marks / "second"):
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            continue
        except FileNotFoundError:
            break
        return serve(sock, options)
    while marks.exists():
        time.sleep(0.01)
    return serve(sock, options)


def serve(sock: socket.socket, options: WorkerOptions) -> None:
    """Greets, then answers."""
    greeting = {
        "pid": os.getpid(),
        "device": options.device,
        "description": f"a fake with {options.threads} threads",
        "torch": "0.0",
        "memory_bytes": 1000,
    }
    frames.send(sock, frames.Reply(0, json.dumps(greeting).encode()))
    backlog = Backlog()
    while True:
        try:
            job = backlog.wait(sock)
        except EOFError:
            return
        reply = frames.NOT_RUN if job is None else _reply(sock, job)
        frames.send(sock, reply)
        if reply.attachments is not None:
            reply.attachments.close()


def _reply(sock: socket.socket, job: frames.Job) -> frames.Reply:
    try:
        request = service_pb2.EvaluateRequest.FromString(bytes(job.payload))
    except DecodeError:
        return _refusal(3, "MALFORMED")
    command, _, argument = request.graph.nodes[0].name.partition(" ") if request.graph.nodes else ("echo", "", "")
    if command == "refuse":
        return _refusal(int(argument), "refused " * 2000)
    _obey(sock, command, argument)
    response = service_pb2.EvaluateResponse()
    output = response.outputs.add(name=str(os.getpid()))
    attachments = None
    if job.attachments is not None:
        if command == "whose":
            output.name = str(job.attachments.owner)
        with job.attachments.map() as content:
            output.tensor.data = b"|".join(content[start : start + size] for start, size in job.attachments.spans)
        job.attachments.close()
    elif command == "answer":
        output.tensor.data = bytes(int(argument))
    elif request.primals:
        output.tensor.data = request.primals[0].tensor.data
    if command == "attach" and job.attachments_welcome:
        size = int(argument)
        attachments = frames.Attachments(lanes.memory_file([b"a" * size, b"b" * 3]), [(0, size), (size, 3)])
    reply = frames.Reply(0, response.SerializeToString(), attachments, (0.0, 0.1, 0.2, 0.3, 0.4, 0.0, 0.6))
    reply.plan_cache, reply.verdict, reply.tensor_bytes_in, reply.tensor_bytes_out = 2, 1, 11, 22
    reply.memory_allocated, reply.memory_reserved = 33, 44
    return reply


def _refusal(code: int, text: str) -> frames.Reply:
    return frames.Reply(code, status_pb2.Status(code=code, message=text).SerializeToString())


def _obey(sock: socket.socket, command: str, argument: str) -> None:
    if command == "sleep":
        time.sleep(float(argument))
    elif command == "until":
        while not Path(argument).exists():
            time.sleep(0.005)
    elif command == "signal":
        os.kill(os.getpid(), signal.Signals[argument])
        time.sleep(60)
    elif command == "exit":
        os._exit(int(argument))
    elif command == "garbage":
        sock.sendall(b"\xff" * 64)
        time.sleep(60)
    elif command == "kill-while" and Path(argument).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    elif command == "kill-once" and not Path(argument).exists():
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
