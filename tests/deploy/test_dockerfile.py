"""The Dockerfile keeps hadolint's rules, all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deploy.manifests import DEPLOY

HADOLINT = Path(sys.executable).with_name("hadolint")


def hadolint(path: Path) -> str:
    """What it says of a Dockerfile."""
    command = [HADOLINT, "--no-color", "--failure-threshold", "style", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == bool(done.stdout), done.stderr
    return done.stdout


def test_nothing_to_say() -> None:
    """hadolint finds nothing, and no rule is switched off."""
    assert "" == hadolint(DEPLOY / "Dockerfile")
    assert "hadolint" not in (DEPLOY / "Dockerfile").read_text()


def test_faults_are_found(tmp_path: Path) -> None:
    """A cache of pip's, a base without a version: found."""
    path = tmp_path / "Dockerfile"
    path.write_text("FROM docker.io/library/python:latest\nRUN pip install torch\n")
    said = hadolint(path)
    assert "DL3007" in said
    assert "DL3042" in said


def test_what_is_copied_is_let_through() -> None:
    """The build context holds what the Dockerfile copies, and only that."""
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {
        source for line in lines if line.startswith("COPY ") and "--from" not in line for source in line.split()[1:-1]
    }
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
