"""POST /v1/moderations: OpenAI's question and answer to and from those of ModerationService.

The 13 categories of OpenAI are raised by the hazards that ``guard.taxonomy`` gives for each. Those that no hazard of
the model raises are false with score 0.0 and have no applied input types: they were not judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc

from guard.errors import InvalidInputError
from guard.taxonomy import HAZARDS
from guard.v1 import moderation_pb2
from server.moderation import MAX_BATCH
from server.openai_http.fields import EXTENSION, Fields, extend, part_text, put, shown
from server.status import Failure

#: The keys of OpenAI's answer.
CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)
#: Names of OpenAI's own moderation models: here they all mean the server's guard.
_ALIASES = (
    "default",
    "omni-moderation-latest",
    "omni-moderation-2024-09-26",
    "text-moderation-latest",
    "text-moderation-stable",
)
#: Fields of ClassifyRequest that the extension may have; ``messages`` are the context before the input.
_EXTENSION = ("messages", "target", "policy", "policy_name", "mode")


def batch_request(body: Fields) -> moderation_pb2.BatchClassifyRequest:
    """The question: one item an input. Raises InvalidInputError."""
    body.only(("input", "model", EXTENSION))
    model = body.get("model", str) or ""
    template = moderation_pb2.ClassifyRequest()
    put(template, "model", "" if model in _ALIASES else model, "model")
    extend(template, body.fields(EXTENSION), _EXTENSION)
    response = template.target == moderation_pb2.TARGET_RESPONSE
    role = moderation_pb2.ROLE_ASSISTANT if response else moderation_pb2.ROLE_USER
    batch = moderation_pb2.BatchClassifyRequest()
    for text in _inputs(body):
        item = batch.requests.add()
        item.CopyFrom(template)
        item.messages.add(role=role, content=text)
    return batch


def failure(response: moderation_pb2.BatchClassifyResponse) -> Failure | None:
    """The first item that failed, which fails all: OpenAI's answer has no place for it. None: there is none."""
    for index, result in enumerate(response.results):
        if result.HasField("error"):
            return _failure(result.error, "input" if len(response.results) == 1 else f"input[{index}]")
    return None


def answer(response: moderation_pb2.BatchClassifyResponse) -> dict[str, Any]:
    """The answer to a question whose items were all judged."""
    return {
        "id": f"modr-{response.request_id}",
        "model": response.results[0].response.model,
        "results": [_result(result.response) for result in response.results],
    }


def _failure(error: moderation_pb2.ItemError, where: str) -> Failure:
    """``where`` takes the place of the message that the input became."""
    found = Failure(
        code=next(code for code in grpc.StatusCode if code.value[0] == error.code),
        message=error.message,
        reason=error.reason,
        request_id=error.request_id,
        retry_after_s=error.retry_delay.ToTimedelta().total_seconds() if error.HasField("retry_delay") else None,
    )
    if not error.field_violations:
        return found
    field, problem = error.field_violations[0].field, error.field_violations[0].description
    if field.startswith("messages"):
        return replace(found, field=where, problem=problem, message=f"{where}: {problem}")
    return replace(found, field=field, problem=problem)


def _inputs(body: Fields) -> list[str]:
    """A string; strings; or the parts of one message."""
    given = body.any("input")
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise InvalidInputError("input", "expected text, a list of texts, or a list of parts of type text")
    if isinstance(given[0], dict):
        return ["\n".join(map(part_text, body.objects("input")))]
    if len(given) > MAX_BATCH:
        raise InvalidInputError("input", f"{len(given)} texts, the limit is {MAX_BATCH}")
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise InvalidInputError(f"input[{index}]", "expected text")
    return given


def _result(judged: moderation_pb2.ClassifyResponse) -> dict[str, Any]:
    flags, scores = dict.fromkeys(CATEGORIES, False), dict.fromkeys(CATEGORIES, 0.0)
    types: dict[str, list[str]] = {name: [] for name in CATEGORIES}
    for found in judged.categories:
        hazard = HAZARDS.get(found.code)
        if hazard is None or hazard.name != found.name:
            continue  # a category of the caller's own
        for name in hazard.openai:
            flags[name] |= found.flagged
            scores[name] = max(scores[name], found.score)
            types[name] = ["text"]
    return {
        "flagged": judged.verdict != moderation_pb2.VERDICT_SAFE,
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": types,
        EXTENSION: shown(judged),
    }
