"""The script behind the README's two commands: what it says where it cannot do its work."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of what the script needs, on a machine that has bash and a few tools but no Python."""
    for name in ("dev", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    script = tmp_path / "dev"
    script.write_text(script.read_text().replace("/usr/bin/python3", str(tmp_path / "nowhere" / "python3")))
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "env", "cat", "cksum", "dirname", "rm", "mkdir"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def add_python(clone: Path, answers: str) -> None:
    """A python3 that is a shell script: `answers` are the cases of its arguments."""
    fake = clone / "bin" / "python3"
    fake.write_text(f'#!/bin/bash\ncase "$*" in\n{answers}\nesac\n')
    fake.chmod(0o755)


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the clone's ./dev with the clone's tools alone."""
    environment = {**os.environ, "PATH": str(clone / "bin")}
    return subprocess.run([str(clone / "dev"), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_says_how_it_is_used(clone: Path, arguments: list[str]) -> None:
    """Without a command that it knows, ./dev says which there are, and fails."""
    result = run(clone, *arguments)

    assert (1, "dev: usage: ./dev demo | ./dev test [PYTEST ARGUMENTS]\n") == (result.returncode, result.stderr)


def test_python_too_old(clone: Path) -> None:
    """Where python3 is older than 3.11 and there is no other, ./dev says so and what to install."""
    add_python(clone, '*version_info*) exit 1;;\n--version) echo "Python 3.9.2";;')

    result = run(clone, "demo")

    assert 1 == result.returncode
    assert (
        "dev: gradoracle needs Python 3.11 or later; python3 here is Python 3.9.2\n"
        "dev: install one (on Debian 12: apt-get install python3 python3-venv) and run this again\n"
    ) == result.stderr
    assert not (clone / ".venv").exists()


def test_no_ensurepip(clone: Path) -> None:
    """Where Python cannot make virtual environments, ./dev says which package is missing."""
    add_python(clone, '*ensurepip*) exit 1;;\n--version) echo "Python 3.11.2";;')

    result = run(clone, "test")

    assert 1 == result.returncode
    assert (
        "dev: python3 cannot make virtual environments: its module ensurepip is missing\n"
        "dev: install it (on Debian and Ubuntu: apt-get install python3-venv) and run this again\n"
    ) == result.stderr


def test_installs_once(clone: Path) -> None:
    """What is installed is not installed again until pyproject.toml or constraints.txt change."""
    python = (
        '*"-m pip"*) echo "$*" >>pip.log;;\n'
        '*"-m venv .venv"*) mkdir -p .venv/bin; cat bin/python3 >.venv/bin/python; chmod +x .venv/bin/python\n'
        "  printf '#!/bin/bash\\necho demo $*\\n' >.venv/bin/gradoracle; chmod +x .venv/bin/gradoracle;;"
    )
    (clone / "bin" / "chmod").symlink_to(shutil.which("chmod") or "")
    add_python(clone, python)
    log = clone / "pip.log"

    first, second = run(clone, "demo"), run(clone, "demo", "--json")
    installed = log.read_text().splitlines()
    (clone / "constraints.txt").write_text("numpy==2.4.6\n")
    third = run(clone, "demo")

    assert (0, 0, 0) == (first.returncode, second.returncode, third.returncode), first.stderr + third.stderr
    assert first.stdout.endswith("demo demo\n")
    assert "demo demo --json\n" == second.stdout
    assert ["-m pip install -q --disable-pip-version-check -c constraints.txt -e .[server]"] == installed
    assert 2 == len(log.read_text().splitlines())


def test_failed_installation_is_told(clone: Path) -> None:
    """Where pip fails, ./dev stops there, says so, and tries again next time."""
    python = (
        '*"-m pip"*) exit 1;;\n'
        '*"-m venv .venv"*) mkdir -p .venv/bin; cat bin/python3 >.venv/bin/python; chmod +x .venv/bin/python;;'
    )
    (clone / "bin" / "chmod").symlink_to(shutil.which("chmod") or "")
    add_python(clone, python)

    result = run(clone, "demo")

    assert 1 == result.returncode
    assert (
        "dev: pip could not install gradoracle[server]; its message stands above. Mend that and run this again\n"
        == result.stderr
    )
    assert not list((clone / ".venv").glob("gradoracle-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may install Debian's packages")
def test_no_ensurepip_on_debian(clone: Path) -> None:
    """On Debian, as root, ./dev installs the package that is missing and goes on."""
    add_python(clone, '*ensurepip*) [ -e installed ];;\n*"-m venv"*) exit 7;;\n--version) echo "Python 3.11.2";;')
    apt = clone / "bin" / "apt-get"
    apt.write_text('#!/bin/bash\necho "$*" >>apt.log\n[ "$2" = install ] && echo >installed\nexit 0\n')
    apt.chmod(0o755)

    result = run(clone, "test")

    assert "dev: installing Debian's python3-venv, which python3 needs to make virtual environments\n" in result.stdout
    assert ["-qq update", "-qq install -y python3-venv"] == (clone / "apt.log").read_text().splitlines()
    assert "dev: making .venv failed; the message above says why\n" == result.stderr
