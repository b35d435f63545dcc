from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from server import log


def written(record: logging.LogRecord) -> dict[str, Any]:
    line = log.JsonFormatter().format(record)
    assert "\n" not in line
    value: dict[str, Any] = json.loads(line)
    return value


def record(name: str, message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger(name).makeRecord(name, logging.WARNING, __file__, 1, message, args, None, extra=extra)


def test_fields() -> None:
    value = written(record("guardlet", "call", fields={"ms": 1.5, "code": "OK"}))
    assert value["event"] == "call"
    assert (value["ms"], value["code"], value["level"], value["logger"]) == (1.5, "OK", "warning", "guardlet")
    assert value["time"].endswith("+00:00")


def test_arguments_and_later_lines_of_other_libraries_are_dropped() -> None:
    value = written(record("asyncio", "failed: %s\nfuture: <secret>", "secret"))
    assert value["event"] == "failed: %s"
    assert "secret" not in json.dumps(value)


def test_an_exception_is_its_type_and_place() -> None:
    try:
        raise ValueError("secret")
    except ValueError as error:
        made = record("guardlet", "oops")
        made.exc_info = (ValueError, error, error.__traceback__)
    value = written(made)
    assert value["exception"] == "ValueError"
    assert value["at"][0].startswith(__file__)
    assert "secret" not in json.dumps(value)


def test_configure_covers_every_logger() -> None:
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # the handlers of the test runner are not ours to close
    try:
        log.configure(stream)
        log.event(logging.INFO, "started", port=1)
        logging.getLogger("other").warning("hello %s", "secret")
    finally:
        root.handlers[:], root.level = handlers, level
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["port"], second["event"]) == ("started", 1, "hello %s")


async def test_asyncio_does_not_print_exceptions_of_tasks() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.JsonFormatter())
    logging.getLogger("asyncio").addHandler(handler)
    try:
        asyncio.get_running_loop().call_exception_handler(
            {"message": "Task exception was never retrieved", "exception": ValueError("secret")}
        )
    finally:
        logging.getLogger("asyncio").removeHandler(handler)
    assert "secret" not in stream.getvalue()
    assert json.loads(stream.getvalue())["event"] == "Task exception was never retrieved"


@pytest.mark.parametrize("value", ["\u2028", '"', "\x00"])
def test_any_value_is_one_line_of_json(value: str) -> None:
    assert written(record("guardlet", "x", fields={"v": value}))["v"] == value
