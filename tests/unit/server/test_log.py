from __future__ import annotations

import asyncio
import contextvars
import io
import json
import logging
import sys
import threading
from collections.abc import Iterator
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


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    stream, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # the handlers of the test runner are not ours to close
    for module, hook in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, hook, getattr(module, hook))  # undone afterwards
    try:
        log.configure(stream)
        yield stream
    finally:
        root.handlers[:], root.level = handlers, level


def test_configure_covers_every_logger(configured: io.StringIO) -> None:
    log.event(logging.INFO, "started", port=1)
    logging.getLogger("other").warning("hello %s", "secret")
    first, second = map(json.loads, configured.getvalue().splitlines())
    assert (first["event"], first["port"], second["event"]) == ("started", 1, "hello %s")


def test_what_ends_a_thread_or_the_process_is_written_without_its_text(configured: io.StringIO) -> None:
    def fail() -> None:
        raise ValueError("secret")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    lines = [json.loads(line) for line in configured.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["thread_died", "uncaught"]
    assert all(line["level"] == "critical" and line["exception"] == "ValueError" for line in lines)
    assert all(line["at"][-1].startswith(__file__) for line in lines)
    assert "secret" not in configured.getvalue()


def test_what_is_bound_stands_in_every_line_of_a_call_and_no_other() -> None:
    def call() -> dict[str, Any]:
        log.bind({"trace_id": "t"})
        return written(record("guardlet", "x"))

    assert contextvars.copy_context().run(call)["trace_id"] == "t"
    assert "trace_id" not in written(record("guardlet", "x"))


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
