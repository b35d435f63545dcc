"""Generation between the wire format and the domain; part of the border that ``server.convert`` is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from datetime import UTC, date, datetime
from typing import Any

from guard.conversation import Conversation, Message, ToolCall
from guard.engine.sampler import SamplingParams
from guard.errors import InvalidInputError
from guard.generation import (
    ChoiceFormat,
    FinishReason,
    GenerateTask,
    Generation,
    JsonFormat,
    OutputFormat,
    RegexFormat,
    TokenLogprob,
    Tool,
    ToolChoice,
    ToolMode,
)
from guard.tools.values import read_object
from guard.v1 import generation_pb2, moderation_pb2
from server import convert
from server.feed import Piece
from server.status import duration

GenerateRequest = generation_pb2.GenerateRequest | generation_pb2.StreamGenerateRequest

_FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.STOP_SEQUENCE: generation_pb2.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.TOOL_CALLS: generation_pb2.FINISH_REASON_TOOL_CALLS,
    FinishReason.CONTENT_FILTER: generation_pb2.FINISH_REASON_CONTENT_FILTER,
}
_TOOL_MODES = {
    generation_pb2.TOOL_CHOICE_UNSPECIFIED: ToolMode.AUTO,
    generation_pb2.TOOL_CHOICE_AUTO: ToolMode.AUTO,
    generation_pb2.TOOL_CHOICE_NONE: ToolMode.NONE,
    generation_pb2.TOOL_CHOICE_REQUIRED: ToolMode.REQUIRED,
}
#: Fields that SamplingParams has under the same name.
_SAMPLING = {field.name for field in fields(SamplingParams)} - {"logit_bias"}
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def generate_task(
    request: GenerateRequest, defaults: SamplingParams, default_max_tokens: int, max_tokens: int, cache_salt: str = ""
) -> GenerateTask:
    """The task of a GenerateRequest or StreamGenerateRequest; raises InvalidInputError."""
    convert.check_request_id(request.request_id)
    wanted = request.max_tokens if request.HasField("max_tokens") else default_max_tokens
    if not 1 <= wanted <= max_tokens:
        raise InvalidInputError("max_tokens", f"expected 1 to {max_tokens}")
    if request.HasField("prompt") and request.messages:
        raise InvalidInputError("prompt", "not together with messages")
    if request.HasField("top_logprobs") and not request.logprobs:
        raise InvalidInputError("top_logprobs", "only with logprobs")
    sampling = _sampling(request, defaults)
    choices = request.choices if request.HasField("choices") else 1
    if choices > 1 and sampling.temperature == 0.0:
        raise InvalidInputError("choices", "expected 1: at temperature 0 all texts would be the same")
    return GenerateTask(
        conversation=None if request.HasField("prompt") else Conversation(_messages(request.messages)),
        prompt=request.prompt if request.HasField("prompt") else None,
        max_tokens=wanted,
        sampling=sampling,
        choices=choices,
        logprobs=request.top_logprobs if request.logprobs else None,
        stop=tuple(request.stop),
        today=_date(request.date) if request.date else datetime.now(UTC).date(),
        tools=tuple(_tool(*item) for item in enumerate(request.tools)),
        tool_choice=_tool_choice(request),
        output_format=_output_format(request.response_format) if request.HasField("response_format") else None,
        prompt_lookup=request.prompt_lookup,
        cache_salt=cache_salt,
    )


def generate_response(
    generation: Generation, model: str, request_id: str, first_token_s: float, total_s: float
) -> generation_pb2.GenerateResponse:
    """The response for a finished task; times in seconds since the request arrived."""
    texts = [
        generation_pb2.Choice(
            index=index,
            text=choice.text,
            finish_reason=_FINISH_REASONS[choice.finish_reason],
            tool_calls=_tool_calls(choice.tool_calls),
            logprobs=_logprobs(choice.logprobs),
        )
        for index, choice in enumerate(generation.choices)
    ]
    return generation_pb2.GenerateResponse(
        request_id=request_id,
        model=model,
        text=texts[0].text,
        finish_reason=texts[0].finish_reason,
        usage=_usage(generation),
        timings=_timings(generation, first_token_s, total_s),
        tool_calls=texts[0].tool_calls,
        logprobs=texts[0].logprobs,
        further_choices=texts[1:],
        tokens_per_second=generation.tokens_per_second,
    )


def stream_response(piece: Piece) -> generation_pb2.StreamGenerateResponse:
    """One response of a stream: the next piece of a text."""
    return generation_pb2.StreamGenerateResponse(
        text=piece.text,
        token_count=piece.tokens,
        choice_index=piece.choice,
        logprobs=_logprobs(piece.logprobs),
        tool_calls=_tool_calls(piece.tool_calls),
    )


def last_stream_responses(
    generation: Generation, sent: Iterable[Piece], first_token_s: float, total_s: float
) -> list[generation_pb2.StreamGenerateResponse]:
    """The end of each choice, with the tokens and calls that the pieces ``sent`` did not have, as no text came with
    them. The last one ends the stream.
    """
    logprobs, calls = Counter[int](), Counter[int]()
    for piece in sent:
        logprobs[piece.choice] += len(piece.logprobs)
        calls[piece.choice] += len(piece.tool_calls)
    ends = [
        generation_pb2.StreamGenerateResponse(
            finish_reason=_FINISH_REASONS[choice.finish_reason],
            choice_index=index,
            logprobs=_logprobs(choice.logprobs[logprobs[index] :]),
            tool_calls=_tool_calls(choice.tool_calls[calls[index] :]),
        )
        for index, choice in enumerate(generation.choices)
    ]
    ends[-1].usage.CopyFrom(_usage(generation))
    ends[-1].timings.CopyFrom(_timings(generation, first_token_s, total_s))
    ends[-1].tokens_per_second = generation.tokens_per_second
    return ends


def _sampling(request: GenerateRequest, defaults: SamplingParams) -> SamplingParams:
    """What the request sets over ``defaults``."""
    chosen = {field.name: value for field, value in request.ListFields() if field.name in _SAMPLING}
    return replace(defaults, logit_bias=dict(request.logit_bias), **chosen)


def _messages(messages: Iterable[moderation_pb2.Message]) -> tuple[Message, ...]:
    return tuple(
        Message(
            convert.role(message, f"messages[{index}]"),
            message.content,
            tuple(ToolCall(call.id, call.name, call.arguments_json) for call in message.tool_calls),
            message.tool_call_id,
        )
        for index, message in enumerate(messages)
    )


def _date(text: str) -> date:
    try:
        if _DATE.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass  # the thirteenth month
    raise InvalidInputError("date", 'expected a date as "2026-11-30"')


def _tool(index: int, tool: generation_pb2.Tool) -> Tool:
    if not tool.parameters_json_schema:
        return Tool(tool.name, tool.description)
    return Tool(
        tool.name,
        tool.description,
        _schema(tool.parameters_json_schema, f"tools[{index}].parameters_json_schema"),
    )


def _tool_choice(request: GenerateRequest) -> ToolChoice:
    mode = _TOOL_MODES.get(request.tool_choice)
    if mode is None:
        raise InvalidInputError("tool_choice", f"unknown number {request.tool_choice}")
    return ToolChoice(mode, request.tool_choice_name)


def _output_format(wanted: generation_pb2.ResponseFormat) -> OutputFormat | None:
    match wanted.WhichOneof("format"):
        case "json_schema":
            if not wanted.json_schema.schema:
                return JsonFormat()
            return JsonFormat(_schema(wanted.json_schema.schema, "response_format.json_schema.schema"))
        case "regex":
            return RegexFormat(wanted.regex.pattern)
        case "choice":
            return ChoiceFormat(tuple(wanted.choice.choices))
        case "text":
            return None
    raise InvalidInputError("response_format", "expected text, json_schema, regex or choice")


def _schema(text: str, field: str) -> dict[str, Any]:
    try:
        return read_object(text)
    except ValueError:
        raise InvalidInputError(field, "expected a JSON Schema: the text of a JSON object") from None


def _tool_calls(calls: Iterable[ToolCall]) -> list[moderation_pb2.ToolCall]:
    return [moderation_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments) for call in calls]


def _logprobs(tokens: Iterable[TokenLogprob]) -> list[generation_pb2.TokenLogprob]:
    return [
        generation_pb2.TokenLogprob(
            token_id=token.token_id,
            text=token.text,
            logprob=token.logprob,
            top=[
                generation_pb2.TokenAlternative(token_id=other.token_id, text=other.text, logprob=other.logprob)
                for other in token.top
            ],
        )
        for token in tokens
    ]


def _usage(generation: Generation) -> moderation_pb2.Usage:
    return moderation_pb2.Usage(
        prompt_tokens=generation.prompt_tokens,
        cached_tokens=generation.cached_tokens,
        completion_tokens=generation.completion_tokens,
        drafted_tokens=generation.drafted_tokens,
        accepted_tokens=generation.accepted_tokens,
    )


def _timings(generation: Generation, first_token_s: float, total_s: float) -> moderation_pb2.Timings:
    return moderation_pb2.Timings(
        queue=duration(generation.queue_s),
        model=duration(generation.model_s),
        first_token=duration(first_token_s),
        total=duration(total_s),
    )
