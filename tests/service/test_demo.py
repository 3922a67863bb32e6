"""`gradoracle demo`: what a newcomer sees first."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from gradoracle.cli import tutorial

SUMMARY = r"10 of 10 cases as expected, in [\d.]+ m?s on \S+ with torch \S+; dy/dx = 330"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def piped(server: str, *arguments: str) -> str:
    """The demo's output where it goes to no terminal."""
    command = [sys.executable, "-m", "gradoracle.cli", "demo", "--address", server, *arguments]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (0, "") == (result.returncode, result.stderr)
    return result.stdout


def on_a_terminal(server: str, columns: int) -> str:
    """The demo's output on a terminal of that many columns."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    with subprocess.Popen(
        [sys.executable, "-m", "gradoracle.cli", "demo", "--address", server],
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        env={**environment, "TERM": "xterm-256color"},
    ) as process:
        os.close(its_end)
        shown = b""
        while more := read(terminal):
            shown += more
    os.close(terminal)
    assert 0 == process.returncode, shown
    return shown.decode()


def read(terminal: int) -> bytes:
    """What is there to read; nothing once the other end is closed."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""


@pytest.mark.parametrize("columns", [80, 120])
def test_fits_the_terminal(server: str, columns: int) -> None:
    """The demo is coloured and no wider than the terminal; every case is there and as expected."""
    shown = on_a_terminal(server, columns)
    lines = COLOUR.sub("", shown).replace("\r\n", "\n").splitlines()

    assert COLOUR.search(shown)
    assert max(map(len, lines)) <= columns
    assert re.fullmatch(SUMMARY, lines[-1])
    assert "WRONG" not in shown


def test_piped(server: str) -> None:
    """Where it is piped there is no colour, and no cell is wrapped."""
    shown = piped(server)

    assert "\x1b" not in shown
    assert re.fullmatch(SUMMARY, shown.splitlines()[-1])
    for title, lesson, _ in tutorial.CASES:
        assert title in shown
        assert lesson in shown
    assert re.search(r"dy/dx +330 +330 +ok", shown)
    assert {"queue", "decode", "plan", "forward", "backward", "encode"} < set(shown.split())


def test_json(server: str) -> None:
    """--json has the ten cases with what was found and expected, and the time of each phase."""
    found: Any = json.loads(piped(server, "--json"))

    assert found["passed"] is True
    assert list(range(1, 11)) == [case["number"] for case in found["cases"]]
    assert [
        {"name": "y", "got": 185.0, "expected": 185.0, "passed": True},
        {"name": "dy/dx", "got": 330.0, "expected": 330.0, "passed": True},
    ] == found["cases"][2]["found"]
    for case in found["cases"]:
        assert case["passed"] is True
        assert all(seconds >= 0 for seconds in case["timing"].values())
        assert case["timing"]["forward"] > 0
        assert case["seconds"] > 0
