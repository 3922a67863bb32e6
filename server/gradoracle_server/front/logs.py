"""Log lines on stderr, as text or as JSON. They tell what happened, never what was in a request."""

from __future__ import annotations

import json
import logging
import time


class _Text(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure(kind: str) -> None:
    """Sends the log lines of this process to stderr, as "text" or "json"."""
    logging.raiseExceptions = False  # a full disk behind stderr is no reason to write more to it
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if kind == "json" else _Text())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
