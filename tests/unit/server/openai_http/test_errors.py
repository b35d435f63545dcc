"""Statuses to HTTP."""

from __future__ import annotations

import grpc
import pytest

from guard import errors as own
from server import status
from server.errors import QuotaExceededError, UnsupportedFieldError
from server.invocation import Invocation, Refused
from server.openai_http import errors


async def told(error: Exception) -> errors.Problem:
    """What a client is told of ``error``, by way of the status that it is."""
    with pytest.raises(Refused) as caught:
        await status.abort(Invocation([]), status.failure(error, "r-1"))  # type: ignore[arg-type]
    return errors.of_status(caught.value.status)


@pytest.mark.parametrize(
    ("error", "http", "code"),
    [
        (own.InvalidInputError("choices", "expected 1"), 400, "invalid_input"),
        (own.InputTooLongError("messages", 9, 8), 400, "context_length_exceeded"),
        (UnsupportedFieldError("audio", "no"), 400, "unsupported"),
        (own.UnsupportedError("no grammar library"), 400, "unsupported"),
        (own.AuthenticationError("wrong"), 401, "invalid_api_key"),
        (own.AuthenticationError("old", "TOKEN_EXPIRED"), 401, "token_expired"),
        (own.PermissionDeniedError("no"), 403, "not_permitted"),
        (own.ModelNotLoadedError("none"), 404, "model_not_found"),
        (own.OverloadedError("full", 1.5), 429, "rate_limit_exceeded"),
        (QuotaExceededError("yours", 0.2), 429, "rate_limit_exceeded"),
        (own.UnavailableError("loading"), 503, "unavailable"),
        (own.DeadlineError("late"), 504, "deadline"),
        (own.ModelOutputError("NaN"), 500, "model_output_unreadable"),
        (RuntimeError("text of a user"), 500, "internal"),
    ],
)
async def test_each_error_has_its_status(error: Exception, http: int, code: str) -> None:
    problem = await told(error)
    assert (problem.status, problem.body["error"]["code"]) == (http, code)
    assert problem.body["error"]["guardlet"]["request_id"] == "r-1"
    assert "user" not in str(problem.body)


async def test_paths_are_those_of_openais_request() -> None:
    problem = await told(own.InvalidInputError("tools[2].parameters_json_schema.type", "expected object"))
    assert problem.body["error"]["param"] == "tools[2].function.parameters.type"
    assert problem.body["error"]["message"] == "tools[2].function.parameters.type: expected object"


async def test_seconds_to_wait_are_whole_for_http_and_exact_for_openai() -> None:
    headers = (await told(own.OverloadedError("full", 1.25))).headers
    assert headers == {"retry-after": "2", "retry-after-ms": "1250"}
    assert (await told(own.DeadlineError("late"))).headers == {}


def test_every_status_of_grpc_has_one() -> None:
    assert all(errors._BY_CODE.get(code, errors._OTHERWISE)[0] >= 400 for code in grpc.StatusCode)
