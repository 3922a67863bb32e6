"""What the fork server imports before the first worker: all that requests need, and no compiler."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys

import pytest
import torch
from torch import _compile

from gradoracle_server.engine import shapes
from gradoracle_server.frames import Reply, send
from gradoracle_server.front.processes import Processes
from gradoracle_server.front.transport import first_reply

_NEEDS = """
import json, sys, torch
from gradoracle_server.engine import shapes
if {marked}:
    import gradoracle_server.worker.main
else:
    shapes._leave_the_compiler_out = lambda: None
    shapes.load()
Shape = shapes.Shape
float32, float64 = torch.float32, torch.float64
calls = [
    ("add.Tensor", [Shape((4, 1), float32), Shape((3,), float64)]),
    ("mm.default", [Shape((4, 5), float32), Shape((5, 6), float32)]),
    ("convolution.default", [Shape((1, 2, 8, 8), float32), Shape((3, 2, 3, 3), float32), None, [1, 1], [0, 0], [1, 1],
                             False, [0, 0], 1]),
    ("svd.default", [Shape((6, 4), float64)]),
    ("upsample_bicubic2d.vec", [Shape((1, 1, 4, 4), float64), [9, 9], True, None]),
    ("layer_norm.default", [Shape((600, 700), float64), [700]]),
    ("gelu.default", [Shape((7,), float32)]),
    ("softmax.int", [Shape((7, 3), float32), 1]),
]
found = []
for name, args in calls:
    base, _, overload = name.partition(".")
    found.append(str(shapes.call(getattr(getattr(torch.ops.aten, base), overload), args, {{}})))
print(json.dumps([found, "torch._dynamo" in sys.modules]))
"""


def needs(*, marked: bool) -> tuple[list[str], bool]:
    """What calls need, in a fresh process; and whether torch's compiler was imported."""
    code = _NEEDS.format(marked=marked)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    found, compiler = json.loads(done.stdout)
    return found, compiler


def test_needs_are_the_same_without_the_compiler() -> None:
    """Marking functions as kept from torch's compiler, which is never used, changes no shape and no need; without the
    marks torch imports it for them."""
    found, compiler = needs(marked=True)
    assert not compiler
    want, compiler = needs(marked=False)
    assert compiler
    assert found == want
    assert not any("Call(value=None" in one for one in found), "nothing was worked out"


def collections(sock: socket.socket) -> None:
    """The main function of a process that tells how garbage is collected in it."""
    found = {"enabled": gc.isenabled(), "frozen": gc.get_freeze_count(), "young": gc.get_count()[0]}
    send(sock, Reply(0, json.dumps(found).encode()))
    sock.close()


async def test_a_new_process_collects_garbage_and_leaves_what_it_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork server imports without collections; its children have them, but not of what they were born with."""
    for name, value in (("GLIBC_TUNABLES", ""), ("GOMP_SPINCOUNT", "10000")):  # which it would change for good
        monkeypatch.setenv(name, value)
    processes = Processes(["test_preload"])
    try:
        process, sock = await processes.start(collections)
        found = json.loads(bytes((await first_reply(sock, 60.0)).payload))
        await processes.ended(process)
    finally:
        await asyncio.to_thread(processes.close)
    assert found["enabled"]
    assert found["frozen"] > 10_000
    assert found["young"] < 10_000


def test_the_front_imports_little_before_it_starts_the_fork_server() -> None:
    """Which imports torch meanwhile: what the front itself needs comes after."""
    code = (
        "import sys, gradoracle_server.main; print([one for one in ('asyncio', 'grpc', 'torch') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_another_way_of_torch_to_keep_functions_from_its_compiler_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Marks that mean nothing in a release of torch are not made, and needs are worked out all the same."""
    monkeypatch.setattr(_compile, "_disable_dynamo", lambda function: function)
    shapes._leave_the_compiler_out()
    pair = [shapes.Shape((4, 1), torch.float32), shapes.Shape((3,), torch.float64)]
    assert shapes.call(torch.ops.aten.add.Tensor, pair, {}).value == shapes.Shape((4, 3), torch.float64)
