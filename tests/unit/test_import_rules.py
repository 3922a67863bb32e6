"""Who may import whom: [tool.importlinter] in pyproject.toml, and what is really loaded at run time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A package tree in which every import that the rules allow happens, and no other.
ALLOWED = {
    "gradoracle/__init__.py": "",
    "gradoracle/client.py": "import grpc, numpy\nfrom gradoracle.v1 import tensor_pb2",
    "gradoracle/tracing.py": "import torch",
    "gradoracle/v1/__init__.py": "",
    "gradoracle/v1/tensor_pb2.py": "import google.protobuf",
    "gradoracle/v1/service_pb2_grpc.py": "import grpc\nfrom gradoracle.v1 import tensor_pb2",
    "gradoracle_server/__init__.py": "",
    "gradoracle_server/main.py": "from gradoracle_server.front import pool\nfrom gradoracle_server import settings",
    "gradoracle_server/settings.py": "",
    "gradoracle_server/frames.py": "import socket",
    "gradoracle_server/launch.py": "def run():\n    from gradoracle_server.worker import loop",
    "gradoracle_server/front/__init__.py": "",
    "gradoracle_server/front/pool.py": "import grpc\nfrom gradoracle_server import frames, launch\n"
    "from gradoracle.v1 import service_pb2_grpc",
    "gradoracle_server/worker/__init__.py": "",
    "gradoracle_server/worker/loop.py": "from gradoracle_server import frames, launch\n"
    "from gradoracle_server.engine import plan\nfrom gradoracle.v1 import tensor_pb2",
    "gradoracle_server/engine/__init__.py": "",
    "gradoracle_server/engine/plan.py": "import torch",
}

# Each import that a contract forbids: the contract, the module that sins, the sin.
FORBIDDEN = [
    ("engine", "gradoracle_server/engine/plan.py", "from gradoracle_server import frames"),
    ("engine", "gradoracle_server/engine/plan.py", "from gradoracle_server.worker import loop"),
    ("engine", "gradoracle_server/engine/plan.py", "from gradoracle.v1 import tensor_pb2"),
    ("engine", "gradoracle_server/engine/plan.py", "import grpc"),
    ("engine", "gradoracle_server/engine/plan.py", "from google.protobuf import message"),
    ("worker", "gradoracle_server/worker/loop.py", "import grpc"),
    ("worker", "gradoracle_server/worker/loop.py", "from gradoracle.v1 import service_pb2_grpc"),
    ("worker", "gradoracle_server/worker/loop.py", "from gradoracle_server.front import pool"),
    ("front", "gradoracle_server/front/pool.py", "import torch"),
    ("front", "gradoracle_server/front/pool.py", "from gradoracle_server.engine import plan"),
    ("front", "gradoracle_server/main.py", "from gradoracle_server.worker import loop"),
    ("front", "gradoracle_server/frames.py", "def late():\n    import torch"),
    ("messages", "gradoracle_server/worker/loop.py", "from gradoracle import client"),
    ("client", "gradoracle/client.py", "from gradoracle_server import frames"),
    ("torch-free", "gradoracle/client.py", "def late():\n    import torch"),
]


def lint(folder: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    """Runs import-linter over the packages in `folder`, with this project's contracts or some of them."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        str(ROOT / "pyproject.toml"),
        "--no-cache",
        "--no-logo",
    ]
    return subprocess.run(
        [*command, *(f"--contract={name}" for name in contracts)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def plant(folder: Path, files: dict[str, str]) -> None:
    """Writes a package tree."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def loaded(code: str, *, path: Path | None = None) -> set[str]:
    """The top-level modules that a fresh interpreter holds after running `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else None
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (0, "") == (result.returncode, result.stderr)
    return set(result.stdout.split())


def test_contracts_hold() -> None:
    """The project keeps every contract."""
    result = lint(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_allowed_imports_pass(tmp_path: Path) -> None:
    """The contracts let through what DESIGN allows, or the planted faults below would prove nothing."""
    plant(tmp_path, ALLOWED)

    result = lint(tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("contract", "module", "sin"), FORBIDDEN)
def test_forbidden_import_is_found(tmp_path: Path, contract: str, module: str, sin: str) -> None:
    """Each contract is broken by an import that it forbids."""
    plant(tmp_path, {**ALLOWED, module: f"{ALLOWED[module]}\n{sin}"})

    result = lint(tmp_path, contract)

    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import gradoracle; gradoracle.Client, gradoracle.Graph, gradoracle.ops", {"torch", "gradoracle_server"}),
        ("import gradoracle.cli", {"torch", "rich", "numpy", "grpc"}),
        ("import gradoracle_server.main", {"torch"}),
        ("import gradoracle_server.worker.main", {"grpc"}),
        ("import gradoracle_server.engine", {"grpc", "google", "gradoracle"}),
    ],
)
def test_nothing_heavy_is_loaded(code: str, absent: set[str]) -> None:
    """A module does not load, by whatever way, what it has no business with."""
    assert set() == loaded(code) & absent


def test_loading_torch_would_be_noticed(tmp_path: Path) -> None:
    """The test above sees a torch that is imported behind several others."""
    plant(tmp_path, {"torch.py": "", "innocent.py": "import guilty", "guilty.py": "import torch"})

    assert "torch" in loaded("import innocent", path=tmp_path)
