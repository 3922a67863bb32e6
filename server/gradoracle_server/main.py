"""The server's main function: settings, then the front.

Exit codes: 0 stopped as told; 1 the workers do not come up; 2 a setting that cannot be used; 128 and the signal's
number where a second SIGTERM or SIGINT ended it at once.

The event loop is uvloop's where that is installed, as it is with the extra [server]: it takes a tenth of the front's
time off a small request. All else is the same with asyncio's own.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import os
import resource
import sys
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING

from gradoracle_server import environment, launch, output, settings
from gradoracle_server.front import logs
from gradoracle_server.front.processes import Processes

if TYPE_CHECKING:
    import asyncio


def main(
    arguments: Sequence[str] | None = None,
    *,
    target: Callable[..., None] = launch.run_worker,
    scout: Callable[..., None] = launch.scout,
    preload: str = launch.PRELOAD,
) -> int:
    """Serves until told to stop; returns the exit code. `arguments`: default, those of this process.

    The rest are what worker processes run: they are for tests of the front.
    """
    version = importlib.metadata.version("gradoracle")
    try:
        told = settings.load(arguments, version=version)
    except settings.SettingsError as error:
        return _complain(settings.as_given(str(error), arguments), 2)
    logs.configure(told.log_format)
    for line in environment.unknown_variables():
        logging.getLogger(__name__).warning("%s", line)
    _allow_many_files()
    processes = Processes([preload])
    try:
        # The fork server imports torch meanwhile.
        _choose_polling(os.environ)
        import asyncio

        from gradoracle_server.front.pool import StartError
        from gradoracle_server.front.server import Front

        async def serve() -> None:
            # What exists by now stays: collections need not look at it again and again.
            gc.collect()
            gc.freeze()
            await Front(told, processes, target, scout, version).run()

        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(serve())
        except settings.SettingsError as error:
            return _complain(settings.as_given(str(error), arguments), 2)
        except StartError as error:
            return _complain(error, 1)
        return 0
    finally:
        processes.close()
        output.forget_what_nobody_takes()


def _choose_polling(variables: MutableMapping[str, str]) -> None:
    """Lets gRPC wait for its connections as it did before it had its EventEngine, which takes a fifth more of a small
    call (grpcio 1.85): each call is passed on between its threads. gRPC reads this when it is loaded; who has set the
    variable knows better."""
    variables.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes the event loop; None for asyncio's own."""
    try:
        import uvloop
    except ImportError:  # no wheel for this machine, or left out on purpose
        return None
    return uvloop.new_event_loop


def _complain(error: object, code: int) -> int:
    print(f"gradoracle: {error}", file=sys.stderr)
    return code


def _allow_many_files() -> None:
    """A connection is a file descriptor, and so is a call's attachments; 1024, a usual limit, is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
