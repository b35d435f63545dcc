"""Logs: one JSON object a line on standard error. Never text of a request: not its messages, not exceptions' texts."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

logger = logging.getLogger("guardlet")
#: The attribute of a log record that holds its further fields.
FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """Time, level, logger, event, and the record's fields. An exception is its type and where it was raised.

    Of a message only the first line of its template is written: the arguments and the later lines of other libraries'
    messages can hold text of a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        value: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": str(record.msg).partition("\n")[0],
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            value["exception"] = record.exc_info[0].__name__
            value["at"] = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(value, ensure_ascii=False, default=str)


def event(level: int, name: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log the event ``name`` with ``fields``; of ``error`` only its type and place are written."""
    logger.log(level, name, extra={FIELDS: fields}, exc_info=error)


def configure(stream: TextIO | None = None) -> None:
    """Send every logger of the process through JsonFormatter."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
