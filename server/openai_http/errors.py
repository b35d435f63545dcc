"""The one map from gRPC status to HTTP status and OpenAI's error body. Nothing else in the facade chooses a status.

OpenAI's clients choose their exception by the HTTP status and retry 408, 409, 429 and 5xx; so what no retry can cure
is 4xx, UNIMPLEMENTED included.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from server.openai_http.fields import EXTENSION

_BY_CODE: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.UNIMPLEMENTED: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "not_found_error"),
    grpc.StatusCode.FAILED_PRECONDITION: (404, "not_found_error"),  # no such model is loaded
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.CANCELLED: (499, "cancelled"),  # nobody is there to read it
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
_OTHERWISE = (500, "server_error")
#: Of HTTP alone: requests that never become a call.
_BY_STATUS = {
    404: ("not_found_error", "NOT_FOUND", "there is no such path"),
    405: ("invalid_request_error", "METHOD_NOT_ALLOWED", "this path does not answer that method"),
    408: ("timeout_error", "BODY_TOO_SLOW", "the request's body did not come in time"),
    413: ("invalid_request_error", "BODY_TOO_LARGE", "the request's body is larger than this server takes"),
    415: ("invalid_request_error", "CONTENT_TYPE", "expected Content-Type: application/json"),
    429: ("rate_limit_error", "QUEUE_FULL", "too much is being read; try again"),
    503: ("server_error", "UNAVAILABLE", "not serving"),
}
#: What OpenAI's API calls these reasons; clients look for some of them. Others are themselves in lower case.
_REASONS = {
    "INPUT_TOO_LONG": "context_length_exceeded",
    "MODEL_NOT_LOADED": "model_not_found",
    "CREDENTIALS_MISSING": "invalid_api_key",
    "CREDENTIALS_INVALID": "invalid_api_key",
    "QUEUE_FULL": "rate_limit_exceeded",
    "QUOTA_EXCEEDED": "rate_limit_exceeded",
}
#: Paths of guard.v1 that OpenAI's requests have under another name.
_PATHS = (
    (re.compile(r"^choices$"), "n"),
    (re.compile(r"^(tools\[\d+\])\.parameters_json_schema"), r"\1.function.parameters"),
    (re.compile(r"^(tools\[\d+\])\.(name|description)"), r"\1.function.\2"),
    (re.compile(r"^tool_choice_name"), "tool_choice.function.name"),
    (re.compile(r"^(messages\[\d+\]\.tool_calls\[\d+\])\.arguments_json"), r"\1.function.arguments"),
    (re.compile(r"^(messages\[\d+\]\.tool_calls\[\d+\])\.name"), r"\1.function.name"),
    (
        re.compile(r"^(moderation|top_k|min_p|repetition_penalty|date|prompt_lookup|policy|policy_name|target|mode)\b"),
        rf"{EXTENSION}.\1",
    ),
)


class HttpError(Exception):
    """A request that never becomes a call, for a reason that only HTTP knows."""

    def __init__(self, status: int) -> None:
        super().__init__(_BY_STATUS[status][2])
        self.status = status


@dataclass(frozen=True)
class Problem:
    """What a client is told: ``status`` is HTTP's, ``body`` OpenAI's JSON, ``retry_after_s`` None when waiting does not
    help.
    """

    status: int
    body: dict[str, Any]
    retry_after_s: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body's. OpenAI's clients read the first; the other is in whole seconds, as HTTP has it."""
        if self.retry_after_s is None:
            return {}
        return {
            "retry-after-ms": str(round(self.retry_after_s * 1000)),
            "retry-after": str(math.ceil(self.retry_after_s)),
        }


def of_status(found: status_pb2.Status) -> Problem:
    """What the gRPC status ``found`` is in HTTP."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after_s: float | None = None
    for detail in found.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    code = next(code for code in grpc.StatusCode if code.value[0] == found.code)
    http, kind = _BY_CODE.get(code, _OTHERWISE)
    message, param = found.message, None
    if bad.field_violations:
        field = bad.field_violations[0].field
        param = _openai_path(field)
        message = param + message.removeprefix(field) if message.startswith(field) else message
    body = _body(message, kind, param, info.reason, info.metadata["request_id"])
    return Problem(http, body, retry_after_s)


def of_http(error: HttpError, request_id: str) -> Problem:
    """A problem that only HTTP has."""
    kind, reason, message = _BY_STATUS[error.status]
    return Problem(error.status, _body(message, kind, None, reason, request_id), 1.0 if error.status == 429 else None)


def internal(request_id: str) -> Problem:
    """Of an error that nobody foresaw."""
    status, kind = _OTHERWISE
    return Problem(status, _body(f"internal error (request {request_id})", kind, None, "INTERNAL", request_id))


def _body(message: str, kind: str, param: str | None, reason: str, request_id: str) -> dict[str, Any]:
    error = {"message": message, "type": kind, "param": param, "code": _REASONS.get(reason, reason.lower())}
    return {"error": {**error, EXTENSION: {"reason": reason, "request_id": request_id}}}


def _openai_path(field: str) -> str:
    for own, theirs in _PATHS:
        if own.match(field):
            return own.sub(theirs, field)
    return field
