"""The README is true: its examples are run and their output compared; its commands exist."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for found, text in BLOCK.findall(README) if found == language]


def sessions() -> list[tuple[str, str]]:
    """Each command of the console blocks, with what it prints."""
    found = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            while printed.startswith("> "):
                more, _, printed = printed.removeprefix("> ").partition("\n")
                command = f"{command}\n{more}"
            found.append((command, printed))
    return found


@pytest.mark.parametrize(("command", "printed"), sessions())
def test_console_examples(server: str, command: str, printed: str) -> None:
    """Every command of a console block prints what stands below it."""
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "GRADORACLE_ADDRESS": server}

    result = subprocess.run(
        ["/bin/bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )

    assert printed == result.stdout


def test_python_example() -> None:
    """The Python block runs, and prints what stands in the text block after it."""
    [program], [printed] = blocks("python"), blocks("text")
    out = io.StringIO()

    with contextlib.redirect_stdout(out):
        exec(compile(program, "README.md", "exec"), {})  # noqa: S102 the README is ours

    assert printed == out.getvalue()


def test_two_commands() -> None:
    """The two commands are `./dev demo` and `./dev test`, and the script can be run."""
    commands = [line.split("#")[0].strip() for line in blocks("sh")[0].splitlines()]

    assert ["./dev demo", "./dev test"] == commands
    assert os.access(ROOT / "dev", os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_files_that_are_named_exist() -> None:
    """Every path of the repository that the README names is there."""
    named = re.findall(r"`((?:tests|proto|deploy|client|server)/[\w/.]+|constraints\.txt)`", README)

    assert len(named) >= 3
    assert [] == [path for path in named if not (ROOT / path).exists()]


def test_conformance_table() -> None:
    """The table of conformance is the one that the last whole run wrote."""
    results = (ROOT / "tests" / "conformance" / "RESULTS.md").read_text()
    rows = [line for line in README.splitlines() if line.startswith("|")]

    assert len(rows) == 5
    assert rows == [line for line in results.splitlines() if line.startswith("|")][:5]
