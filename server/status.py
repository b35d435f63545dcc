"""The one map from errors to gRPC status. Nothing else in the server chooses a status code.

Every failure carries ``google.rpc.ErrorInfo`` (reason, domain "guardlet"); bad input also ``BadRequest`` with the field
path; overload also ``RetryInfo`` and the ``grpc-retry-pushback-ms`` trailer that gRPC clients obey. Errors that the
project did not raise on purpose leave as INTERNAL "internal error" with the request id, never with their text.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from guard import errors
from guard.v1 import moderation_pb2
from server.errors import AdminDisabledError, ModelNotFoundError, SlowReaderError, UnsupportedFieldError

DOMAIN = "guardlet"
DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
#: When callers of a server that is loading or draining should try again: another replica may take them at once.
UNAVAILABLE_RETRY_S = 1.0

#: Most specific first: the first class that fits decides.
_CODES: tuple[tuple[type[errors.GuardError], grpc.StatusCode], ...] = (
    (UnsupportedFieldError, grpc.StatusCode.UNIMPLEMENTED),
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.UnsupportedError, grpc.StatusCode.UNIMPLEMENTED),
    (errors.AuthenticationError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (SlowReaderError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.MemoryPlanError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.ModelNotLoadedError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.BundleError, grpc.StatusCode.FAILED_PRECONDITION),
    (AdminDisabledError, grpc.StatusCode.PERMISSION_DENIED),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.CancelledError, grpc.StatusCode.CANCELLED),
    (errors.ModelOutputError, grpc.StatusCode.INTERNAL),
)


@dataclass(frozen=True)
class Failure:
    """What a caller is told. ``retry_after_s`` in seconds, None when waiting does not help."""

    code: grpc.StatusCode
    message: str
    reason: str
    request_id: str
    field: str | None = None
    problem: str | None = None
    retry_after_s: float | None = None

    @property
    def number(self) -> int:
        """The google.rpc.Code."""
        value: int = self.code.value[0]
        return value


def failure(error: BaseException, request_id: str) -> Failure:
    """The failure that ``error`` is to a caller."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None or not isinstance(error, errors.GuardError):
        return Failure(grpc.StatusCode.INTERNAL, f"internal error (request {request_id})", "INTERNAL", request_id)
    invalid = error if isinstance(error, errors.InvalidInputError) else None
    return Failure(
        code=code,
        message=str(error),
        reason=error.reason,
        request_id=request_id,
        field=invalid.field if invalid else None,
        problem=invalid.problem if invalid else None,
        retry_after_s=_retry_after(error),
    )


def item_error(found: Failure) -> moderation_pb2.ItemError:
    """The same, for one item of a batch."""
    item = moderation_pb2.ItemError(
        code=found.number, message=found.message, reason=found.reason, request_id=found.request_id
    )
    if found.field is not None:
        item.field_violations.add(field=found.field, description=found.problem or "")
    if found.retry_after_s is not None:
        item.retry_delay.CopyFrom(duration(found.retry_after_s))
    return item


async def abort(context: grpc.aio.ServicerContext[Any, Any], found: Failure) -> NoReturn:
    """End the call with ``found``. Details and pushback travel together: abort_with_status would drop the latter.

    Raises AbortError, or CancelledError when the caller left before gRPC came to say so: nobody can be told.
    """
    metadata: list[tuple[str, str | bytes]] = [(DETAILS_KEY, _rpc_status(found).SerializeToString())]
    if found.retry_after_s is not None:
        metadata.append((PUSHBACK_KEY, str(round(found.retry_after_s * 1000))))
    try:
        await context.abort(found.code, found.message, tuple(metadata))
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def duration(seconds: float) -> Duration:
    """``seconds`` as a protobuf Duration."""
    value = Duration()
    value.FromNanoseconds(round(seconds * 1e9))
    return value


def _retry_after(error: errors.GuardError) -> float | None:
    if isinstance(error, errors.OverloadedError):
        return error.retry_after_s
    if isinstance(error, errors.UnavailableError):
        return UNAVAILABLE_RETRY_S
    return None


def _rpc_status(found: Failure) -> status_pb2.Status:
    status = status_pb2.Status(code=found.number, message=found.message)
    info = error_details_pb2.ErrorInfo(reason=found.reason, domain=DOMAIN, metadata={"request_id": found.request_id})
    status.details.add().Pack(info)
    if found.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=found.field, description=found.problem or "")
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if found.retry_after_s is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration(found.retry_after_s)))
    return status
