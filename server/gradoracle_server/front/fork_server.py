"""Imported first, and alone, by the fork server, which has no other way to be told what to do when it starts.

It would end by itself when the front's end of its pipe closes, but not while somebody holds it with SIGSTOP.

Collections of garbage while it imports torch would take a sixth of the time that the first worker waits for, and find
next to nothing. A new process has them again (processes._born).
"""

from __future__ import annotations

import gc

gc.disable()

from gradoracle_server.front.processes import end_with_parent  # noqa: E402 - without collections

end_with_parent()
