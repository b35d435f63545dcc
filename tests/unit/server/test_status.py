from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest

from guard import errors
from server import status
from server.errors import (
    AdminDisabledError,
    ModelNotFoundError,
    QuotaExceededError,
    SlowReaderError,
    UnsupportedFieldError,
)

CASES: list[tuple[BaseException, grpc.StatusCode, str]] = [
    (errors.InvalidInputError("f", "p"), grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    (errors.InputTooLongError("f", 2, 1), grpc.StatusCode.INVALID_ARGUMENT, "INPUT_TOO_LONG"),
    (errors.UnsupportedError("f"), grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
    (UnsupportedFieldError("f", "p"), grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED"),
    (errors.AuthenticationError("f"), grpc.StatusCode.UNAUTHENTICATED, "CREDENTIALS_INVALID"),
    (errors.PermissionDeniedError("f"), grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED"),
    (QuotaExceededError("f", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"),
    (errors.BundleError("f"), grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID"),
    (errors.ModelNotLoadedError("f"), grpc.StatusCode.FAILED_PRECONDITION, "MODEL_NOT_LOADED"),
    (ModelNotFoundError("f"), grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND"),
    (errors.OverloadedError("f", 2.5), grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    (errors.MemoryPlanError("f"), grpc.StatusCode.FAILED_PRECONDITION, "OUT_OF_MEMORY"),
    (SlowReaderError("f"), grpc.StatusCode.RESOURCE_EXHAUSTED, "SLOW_READER"),
    (errors.UnavailableError("f"), grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    (errors.DeadlineError("f"), grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE"),
    (errors.CancelledError("f"), grpc.StatusCode.CANCELLED, "CANCELLED"),
    (errors.ModelOutputError("f"), grpc.StatusCode.INTERNAL, "MODEL_OUTPUT_UNREADABLE"),
    (AdminDisabledError("f"), grpc.StatusCode.PERMISSION_DENIED, "ADMIN_DISABLED"),
]


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=lambda value: type(value).__name__)
def test_codes_and_reasons(error: BaseException, code: grpc.StatusCode, reason: str) -> None:
    found = status.failure(error, "r")
    assert (found.code, found.reason, found.message, found.request_id) == (code, reason, str(error), "r")


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), MemoryError("secret"), KeyError("secret"), errors.GuardError("secret")]
)
def test_other_errors_keep_their_text(error: BaseException) -> None:
    found = status.failure(error, "r")
    assert (found.code, found.message) == (grpc.StatusCode.INTERNAL, "internal error (request r)")
    assert "secret" not in str(found)


def test_every_error_of_the_core_has_a_code_or_is_of_the_exporter() -> None:
    offline = {errors.CheckpointError, errors.ParityError}
    mapped = {type(error) for error, _, _ in CASES}
    assert {kind for kind in vars(errors).values() if isinstance(kind, type)} - mapped - offline == {errors.GuardError}


def test_retry_times() -> None:
    assert status.failure(errors.OverloadedError("f", 2.5), "r").retry_after_s == 2.5
    assert status.failure(errors.UnavailableError("f"), "r").retry_after_s == status.UNAVAILABLE_RETRY_S
    assert status.failure(errors.InvalidInputError("f", "p"), "r").retry_after_s is None


def test_item_errors_say_the_same() -> None:
    item = status.item_error(status.failure(errors.InputTooLongError("messages", 9, 5), "r"))
    assert (item.code, item.reason, item.request_id) == (3, "INPUT_TOO_LONG", "r")
    assert [(violation.field, violation.description) for violation in item.field_violations] == [
        ("messages", "9 tokens, the limit is 5")
    ]
    assert not item.HasField("retry_delay")
    busy = status.item_error(status.failure(errors.OverloadedError("full", 1.5), "r"))
    assert busy.retry_delay.ToMilliseconds() == 1500


async def test_nobody_is_told_when_the_caller_has_left() -> None:
    """What grpc.aio raises when the batch fails would be logged as an error; a caller who leaves is none."""

    class Left:
        async def abort(self, *told: Any) -> None:
            raise grpc.aio.InternalError("the batch failed")

    context: Any = Left()
    with pytest.raises(asyncio.CancelledError):
        await status.abort(context, status.failure(errors.CancelledError("no"), "r"))
