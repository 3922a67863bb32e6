"""What is shipped: the wheel's contents, the dependencies' ranges and their pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, Version]:
    """The versions of constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, extras too, save for the project's own extras."""
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != PROJECT["name"]]


def needed(name: str, seen: set[str]) -> set[str]:
    """The names of the installed distributions that `name` asks for in this environment, near and far."""
    for text in metadata.requires(name) or []:
        found = Requirement(text)
        canonical = canonicalize_name(found.name)
        if canonical not in seen and (found.marker is None or found.marker.evaluate({"extra": ""})):
            seen.add(canonical)
            needed(canonical, seen)
    return seen


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    [found] = folder.glob("*.whl")
    return found


def test_every_requirement_has_a_pin_in_its_range() -> None:
    """constraints.txt holds a version of everything that pyproject.toml asks for, and an allowed one."""
    versions = pins()

    for requirement in requirements():
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt: expected a pin of {requirement.name}, got none"
        assert version in requirement.specifier, f"constraints.txt: expected {requirement}, got {version}"


def test_what_the_requirements_require_has_pins() -> None:
    """constraints.txt is complete: it pins the dependencies of the dependencies too."""
    seen: set[str] = set()
    for requirement in requirements():
        if requirement.marker is None or requirement.marker.evaluate():
            needed(canonicalize_name(requirement.name), seen)

    assert set() == seen - set(pins())


def test_torch_is_pinned_to_a_public_version() -> None:
    """torch is pinned without a local part such as +cpu, which only some indexes have."""
    assert pins()["torch"].local is None


def test_the_client_does_not_ask_for_torch() -> None:
    """torch comes with the extras [server] and [torch], not with the client."""
    assert "torch" not in {Requirement(text).name for text in PROJECT["dependencies"]}
    assert "torch" in {Requirement(text).name for text in EXTRAS["torch"]}
    assert "torch" in {Requirement(text).name for text in EXTRAS["server"]}


def test_wheel_holds_both_packages_and_their_data(wheel: Path) -> None:
    """The wheel has the client, the stubs, the operator table, the command line and the server; no tests, no protos."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())

    assert {
        "gradoracle/__init__.py",
        "gradoracle/operators.json",
        "gradoracle/py.typed",
        "gradoracle/cli/grad.py",
        "gradoracle/v1/service_pb2.py",
        "gradoracle/v1/service_pb2.pyi",
        "gradoracle_server/__main__.py",
        "gradoracle_server/engine/plan.py",
    } - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gradoracle", "gradoracle_server"}
    assert [name for name in names if "__pycache__" in name] == []


def test_wheel_declares_its_entry_points(wheel: Path) -> None:
    """The wheel installs the command `gradoracle`, the pytest plugin, and the engine for what runs in process."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        text = archive.read(name).decode()

    assert "[console_scripts]\ngradoracle = gradoracle.cli:main" in text
    assert "[pytest11]\ngradoracle = gradoracle.pytest_plugin" in text
    assert "[gradoracle.engine]\ncallables = gradoracle_server.worker.callables" in text


def test_command_line_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """What the wheel holds is enough to import the client and to run the command line."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys, gradoracle, gradoracle.cli; print(gradoracle.__file__); sys.exit(gradoracle.cli.main(['--help']))"
    )

    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )

    assert (0, "") == (result.returncode, result.stderr)
    assert result.stdout.startswith(str(tmp_path))
    assert "Usage:" in result.stdout


def test_version_is_told_once() -> None:
    """pyproject.toml alone holds the version; the package and the command line read it from the installed metadata."""
    sources = [*(ROOT / "client").rglob("*.py"), *(ROOT / "server").rglob("*.py")]
    literal = re.compile(rf"""["']{re.escape(PROJECT["version"])}["']""")

    assert [] == [path for path in sources if literal.search(path.read_text())]
    assert PROJECT["version"] == metadata.version("gradoracle")
