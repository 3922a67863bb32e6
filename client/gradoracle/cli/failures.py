"""What went wrong, as an exit code and one line."""

from __future__ import annotations

import click

from gradoracle import errors

WRONG = 1
"""A gradient is wrong."""
USAGE = 2
"""The command line or its input is at fault: asking again will not help."""
SERVICE = 3
"""The service failed, or was not there: asking again may help."""

NO_VERDICT = 4
"""A check could not tell: inconclusive, non-differentiable or non-deterministic."""

_THE_CALLERS = (
    errors.InvalidRequestError,
    errors.TraceError,
    errors.ComputationError,
    errors.DeviceUnavailableError,
    errors.ResourceLimitError,
    errors.AuthenticationError,
)
"""What the person who typed can mend."""


class InputError(click.ClickException):
    """Input that cannot be used; the message says which, what was expected and what came."""


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an exception."""
    if isinstance(error, click.ClickException):
        return USAGE, one_line(usage(error))
    if isinstance(error, errors.GradOracleError):
        return USAGE if isinstance(error, _THE_CALLERS) else SERVICE, one_line(str(error))
    name = type(error).__name__
    return SERVICE, one_line(f"{name}: {error} (unforeseen: GRADORACLE_TRACEBACK=1 shows where, for a bug report)")


def usage(error: click.ClickException) -> str:
    """click's message, with where help is to be found."""
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    if isinstance(error, click.NoSuchOption) and not error.option_name.startswith("--"):
        return f"{message} What begins with - but is an expression goes after --: {context.command_path} -- -x x=2"
    return f"{message} (see {context.command_path} --help)"


def one_line(text: str) -> str:
    """The text without line breaks, and without a line that only points at another."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip(" ^"))
