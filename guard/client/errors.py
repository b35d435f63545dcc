"""What a call can raise, one class for each thing a caller does about it.

GuardClientError                    code, reason, field_violations, retry_after_s, request_id
├── RequestRejectedError            INVALID_ARGUMENT, OUT_OF_RANGE: change the request; field_violations say where
├── UnsupportedByServerError        UNIMPLEMENTED: this server or model does not offer it
├── ModelNotLoadedOnServerError     FAILED_PRECONDITION, NOT_FOUND: no such model there
├── NotPermittedError               UNAUTHENTICATED, PERMISSION_DENIED
├── ServerBusyError                 RESOURCE_EXHAUSTED: come back after retry_after_s, if it is set
├── ServerUnavailableError          UNAVAILABLE: unreachable, loading or draining
├── DeadlineExceededError           DEADLINE_EXCEEDED
├── CallCancelledError              CANCELLED
├── ServerFailedError               INTERNAL, UNKNOWN and every other code
└── NoAnswerError                   the call succeeded but its answer cannot be read (no verdict, a cut-off stream)

UnsafeTextError is no failure of a call: the text that ``moderated`` was given may not be shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from guard.client.results import Classification
from guard.errors import GuardError
from guard.v1 import moderation_pb2
from guard.verdict import CategoryScore

_STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True)
class FieldViolation:
    """One field of the request that has to change, and why."""

    field: str
    description: str


class GuardClientError(GuardError):
    """A call without an answer. ``reason`` is the server's UPPER_SNAKE reason, or the name of the status code."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason
        self.field_violations = field_violations
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        code = self.code.name if self.reason == self.code.name else f"{self.code.name} ({self.reason})"
        text = f"{code}: {self.message}"
        said = [violation for violation in self.field_violations if violation.description not in self.message]
        text += "".join(f"; {violation.field}: {violation.description}" for violation in said)
        return text if self.retry_after_s is None else f"{text}; retry after {self.retry_after_s:g} s"


class RequestRejectedError(GuardClientError):
    """The request cannot be served as written."""


class UnsupportedByServerError(GuardClientError):
    """The server or its model does not offer this."""


class ModelNotLoadedOnServerError(GuardClientError):
    """No such model is loaded there."""


class NotPermittedError(GuardClientError):
    """The caller is unknown or may not do this."""


class ServerBusyError(GuardClientError):
    """The server's queue or memory is full."""


class ServerUnavailableError(GuardClientError):
    """The server cannot be reached, is loading, or is draining."""


class DeadlineExceededError(GuardClientError):
    """The deadline passed before the answer came."""


class CallCancelledError(GuardClientError):
    """The call was cancelled."""


class ServerFailedError(GuardClientError):
    """The server failed."""


class NoAnswerError(GuardClientError):
    """The call succeeded, but what came back is not an answer; it must not be taken for one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=grpc.StatusCode.UNKNOWN, reason="NO_ANSWER")


class UnsafeTextError(GuardError):
    """The rest of a text that is being written may not be shown."""

    reason = "UNSAFE_TEXT"

    def __init__(self, judgement: Classification) -> None:
        self.judgement = judgement
        named = ", ".join(f"{found.code} {found.name}" for found in self.categories)
        super().__init__(f"the text is unsafe{f': {named}' if named else ''}")

    @property
    def categories(self) -> tuple[CategoryScore, ...]:
        """The flagged ones; none when the policy's deny list decided."""
        return tuple(found for found in self.judgement.categories if found.flagged)


_CLASSES: dict[grpc.StatusCode, type[GuardClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: RequestRejectedError,
    grpc.StatusCode.OUT_OF_RANGE: RequestRejectedError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedByServerError,
    grpc.StatusCode.FAILED_PRECONDITION: ModelNotLoadedOnServerError,
    grpc.StatusCode.NOT_FOUND: ModelNotLoadedOnServerError,
    grpc.StatusCode.UNAUTHENTICATED: NotPermittedError,
    grpc.StatusCode.PERMISSION_DENIED: NotPermittedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ServerBusyError,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CallCancelledError,
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises what grpc raises inside (sync or awaited) as a GuardClientError."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


def from_rpc_error(error: grpc.RpcError) -> GuardClientError:
    """The typed error for what grpc (sync or asyncio) raised, its google.rpc details included."""
    code: grpc.StatusCode = error.code()
    details = _unpack(error.trailing_metadata() or ())
    retry_after = details.retry.retry_delay.ToNanoseconds() / 1e9 if details.retry else None
    return _CLASSES.get(code, ServerFailedError)(
        error.details() or "no message",
        code=code,
        reason=details.info.reason if details.info else code.name,
        field_violations=details.violations,
        retry_after_s=retry_after,
        request_id=(details.info.metadata.get("request_id") if details.info else None) or None,
    )


def from_item_error(item: moderation_pb2.ItemError) -> GuardClientError:
    """The typed error for one failed item of a batch."""
    code = _CODES.get(item.code, grpc.StatusCode.UNKNOWN)
    if item.code == code_pb2.OK:
        return NoAnswerError("an item of the batch failed without an error code")
    return _CLASSES.get(code, ServerFailedError)(
        item.message,
        code=code,
        reason=item.reason or code.name,
        field_violations=tuple(FieldViolation(v.field, v.description) for v in item.field_violations),
        retry_after_s=item.retry_delay.ToNanoseconds() / 1e9 if item.HasField("retry_delay") else None,
        request_id=item.request_id or None,
    )


def not_serving() -> ServerUnavailableError:
    """The server answers, but not SERVING."""
    return ServerUnavailableError("the server does not serve", code=grpc.StatusCode.UNAVAILABLE, reason="NOT_SERVING")


@dataclass
class _Details:
    info: error_details_pb2.ErrorInfo | None = None
    retry: error_details_pb2.RetryInfo | None = None
    violations: tuple[FieldViolation, ...] = ()


def _unpack(metadata: Iterable[Any]) -> _Details:
    """Read google.rpc details out of trailing metadata (key, value pairs).

    Details that cannot be read are left out: the code still stands.
    """
    details = _Details()
    encoded = next((value for key, value in metadata if key == _STATUS_DETAILS_KEY), None)
    if not isinstance(encoded, bytes):
        return details
    try:
        for detail in status_pb2.Status.FromString(encoded).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                details.info = info
            elif detail.Unpack(retry):
                details.retry = retry
            elif detail.Unpack(bad):
                details.violations = tuple(FieldViolation(v.field, v.description) for v in bad.field_violations)
    except DecodeError:
        return _Details()
    return details
