"""`gradoracle serve`: the server's own command line."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence

import click

from gradoracle.cli.failures import InputError

NEEDED = ("torch", "prometheus_client", "grpc_health", "grpc_reflection")
"""What the extra [server] brings, looked for without importing it."""


@click.command(
    "serve",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []},
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def command(flags: Sequence[str]) -> None:
    """Run the server. All flags are the server's own; `gradoracle serve --help` lists them."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"serve: expected the packages of gradoracle[server], got none of the name {missing[0]}; "
            "install them with: pip install 'gradoracle[server]'"
        )
    sys.stdout.flush()
    # Replaces this process, so that signals, the exit code and the process id are the server's own.
    os.execv(sys.executable, [sys.executable, "-m", "gradoracle_server", *flags])  # noqa: S606 no shell is wanted
