"""What the guard does around a generation, between the wire format and the domain; part of ``server.convert``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from guard.conversation import Target
from guard.errors import InvalidInputError
from guard.pipeline import GuardedGeneration, Moderation
from guard.policies import NamedPolicy
from guard.policy import Policy
from guard.v1 import generation_pb2, moderation_pb2
from guard.verdict import Judgement
from server import convert

#: Paths of the domain that the requests of GenerationService have under another name.
_PATHS = (
    (re.compile(r"^policy"), "moderation.policy"),
    (re.compile(r"^(tools\[\d+\])\.parameters"), r"\1.parameters_json_schema"),
    (re.compile(r"^(messages\[\d+\]\.tool_calls\[\d+\])\.arguments$"), r"\1.arguments_json"),
)


def moderation(options: generation_pb2.ModerationOptions, policy: Policy) -> Moderation:
    """What is judged, under ``policy``; raises InvalidInputError."""
    every_tokens = options.check_every_tokens if options.HasField("check_every_tokens") else Moderation.every_tokens
    return Moderation(options.check_input, options.check_output, policy, every_tokens)


def moderation_result(
    generation: GuardedGeneration, applied: NamedPolicy, guard: str, request_id: str, total_s: float
) -> generation_pb2.ModerationResult:
    """What the model ``guard`` found under ``applied``; ``total_s`` in seconds since the request arrived."""
    result = generation_pb2.ModerationResult()

    def judged(judgement: Judgement, target: Target) -> moderation_pb2.ClassifyResponse:
        return convert.classify_response(judgement, target, applied, guard, request_id, total_s)

    if generation.input is not None:
        result.input.CopyFrom(judged(generation.input, Target.PROMPT))
    if generation.output is not None:
        result.output.CopyFrom(judged(generation.output, Target.RESPONSE))
    return result


@contextmanager
def paths_of_the_request() -> Iterator[None]:
    """Errors of the domain name the fields as GenerateRequest does."""
    try:
        yield
    except InvalidInputError as error:
        for domain, wire in _PATHS:
            if type(error) is InvalidInputError and domain.match(error.field):
                raise InvalidInputError(domain.sub(wire, error.field), error.problem) from None
        raise
