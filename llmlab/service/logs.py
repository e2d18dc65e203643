"""The service's log: one JSON object a line, whoever writes it, and nothing of what passes through.

Of an exception its class and where it came from are told, not its words: those may quote a prompt, a key, an answer.
"""

import json
import logging
import sys
import traceback
from typing import TextIO

DEPTH = 8
"""Calls of an exception's way that are told, the innermost."""


class JSONLines(logging.Formatter):
    """Formats records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Make a line of a record; the service's own have JSON for their message."""
        line = {"at": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        message = record.getMessage()
        if record.name == "llmlab.service" and message.startswith("{"):
            line |= json.loads(message)
        else:
            line["message"] = message
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = type(error).__name__
            way = traceback.extract_tb(error.__traceback__)[-DEPTH:]
            line["where"] = [f"{step.filename.rpartition('/')[2]}:{step.lineno} {step.name}" for step in way]
        return json.dumps(line, ensure_ascii=True)


def log_to(stream: TextIO = sys.stdout, *, level: int = logging.INFO) -> None:
    """Have everything that is logged in this process written to a stream, as lines of JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
