"""Logs: one JSON object a line on standard error. Never text of a request: not its messages, not exceptions' texts."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TextIO

logger = logging.getLogger("guardlet")
#: The attribute of a log record that holds its further fields.
FIELDS = "fields"
#: What stands in every line of the call at hand: the ids of its trace.
_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default=MappingProxyType({}))


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
            **_bound.get(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            value["exception"] = record.exc_info[0].__name__
            value["at"] = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(value, ensure_ascii=False, default=str)


def event(level: int, name: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log the event ``name`` with ``fields``; of ``error`` only its type and place are written."""
    logger.log(level, name, extra={FIELDS: fields}, exc_info=error)


def bind(fields: Mapping[str, str]) -> None:
    """Put ``fields`` into every further line of the call at hand."""
    _bound.set(fields)


def configure(stream: TextIO | None = None) -> None:
    """Send every logger of the process through JsonFormatter, and so what ends a thread or the process: Python itself
    would write the texts of exceptions to standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = lambda kind, error, trace: event(logging.CRITICAL, "uncaught", error=error)
    sys.unraisablehook = lambda raised: event(logging.ERROR, "unraisable", error=raised.exc_value)
    threading.excepthook = lambda raised: event(logging.CRITICAL, "thread_died", error=raised.exc_value)
