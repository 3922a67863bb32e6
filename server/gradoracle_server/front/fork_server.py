"""Imported first, and alone, by the fork server, which has no other way to be told what to do when it starts.

It would end by itself when the front's end of its pipe closes, but not while somebody holds it with SIGSTOP.
"""

from __future__ import annotations

from gradoracle_server.front.processes import end_with_parent

end_with_parent()
