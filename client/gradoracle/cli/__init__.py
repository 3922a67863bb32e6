"""The command line: `gradoracle COMMAND …`, one module a command.

    main            the entry point: runs a command, turns whatever goes wrong into one line and an exit code
    values          NAME=VALUE  ->  arrays, or contents that the server draws
    request         the graph and tensors of one request, from arguments and options
    connection      --address and its kin  ->  a client, of a running server or of one started for the occasion
    output          arrays and results  ->  text or JSON
    failures        exceptions  ->  exit codes and one-line messages

A command's module is imported when the command is called, so that `gradoracle --help` waits for nobody's imports.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import cast

import click

COMMANDS = {
    "batch": "Run many cases from a file and keep each result.",
    "check": "Check gradients of a graph, autograd's own or claimed ones.",
    "compare": "Compare the results of two batches.",
    "demo": "Run the ten tutorial cases through a server and show the results.",
    "eval": "Evaluate a graph.",
    "grad": "Compute gradients of a graph (a vector-Jacobian product).",
    "health": "Ask a server whether it is well.",
    "info": "Show a server's versions, devices and limits.",
    "judge": "Judge candidate implementations against a reference.",
    "ops": "Show the operators that a graph may use.",
    "serve": "Run the server.",
    "sweep": "Print cases that check operators, for batch.",
}
"""The commands, each a module here with a `command`. The texts stand here so that listing them imports nothing."""

TRACEBACK = "GRADORACLE_TRACEBACK"
"""The environment variable that shows a Python traceback under an unforeseen error."""


class Commands(click.Group):
    """The group of `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            near = difflib.get_close_matches(cmd_name, COMMANDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command {cmd_name!r}{hint}")
        module = importlib.import_module(f"{__name__}.{cmd_name}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """The callback of --version."""
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        click.echo(f"gradoracle {metadata.version('gradoracle')}")
        ctx.exit()


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all good, 1 a gradient is wrong, 2 usage or bad input, 3 the service failed, 4 no verdict.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Show the version."
)
def cli() -> None:
    """Gradients of op graphs, and judgements of gradients, from a gradoracle server.

    Without --address (or GRADORACLE_ADDRESS) a command starts a server of its own and stops it again.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code. `arguments` stands in for sys.argv[1:]."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Not cli.main(), which has its own mind about exit codes and about readers that go away.
        with cli.make_context("gradoracle", given) as context:
            outcome: object = cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help and --version end so
        return done.exit_code
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, what a shell says of a program that ended on Ctrl-C
    except BrokenPipeError:
        # The reader went away (`gradoracle ops | head`). Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        from gradoracle.cli.failures import explain

        code, message = explain(error)
        click.echo(f"error: {message}", err=True)
        return code
    return outcome if isinstance(outcome, int) else 0
