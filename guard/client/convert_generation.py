"""Generation between domain and wire; part of ``guard.client.convert``, and as strict about what the server says."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from guard.client import convert
from guard.client.convert import Text
from guard.client.convert_policy import policy_message
from guard.client.errors import NoAnswerError
from guard.client.generation import (
    Delta,
    FinishReason,
    GeneratedChoice,
    GenerationOptions,
    GenerationResult,
    Label,
    LabelScore,
    ModerationFindings,
    ModerationOptions,
    TagResult,
)
from guard.client.known import known
from guard.conversation import ToolCall
from guard.errors import InvalidInputError
from guard.generation import (
    Alternative,
    ChoiceFormat,
    JsonFormat,
    OutputFormat,
    RegexFormat,
    TokenLogprob,
    Tool,
    ToolMode,
)
from guard.v1 import generation_pb2, moderation_pb2

_FINISH_REASONS: Mapping[int, FinishReason] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_STOP_SEQUENCE: "stop_sequence",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    generation_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_TOOL_MODES = {
    ToolMode.AUTO: generation_pb2.TOOL_CHOICE_AUTO,
    ToolMode.NONE: generation_pb2.TOOL_CHOICE_NONE,
    ToolMode.REQUIRED: generation_pb2.TOOL_CHOICE_REQUIRED,
}


def generate_request(
    text: Text, options: GenerationOptions, model: str, request_id: str
) -> generation_pb2.GenerateRequest:
    """Options that are None stay unset: the server's or the checkpoint's defaults apply.

    Raises InvalidInputError for messages that should be plain text.
    """
    if options.plain and not isinstance(text, str):
        raise InvalidInputError("text", "plain text to go on with is one string, not messages")
    request = generation_pb2.GenerateRequest(
        request_id=request_id,
        messages=() if options.plain else convert.messages(text),
        prompt=text if options.plain and isinstance(text, str) else None,
        model=model,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        stop=options.stop,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias,
        logprobs=options.logprobs is not None,
        top_logprobs=options.logprobs,
        choices=options.choices,
        date="" if options.date is None else options.date.isoformat(),
        prompt_lookup=options.prompt_lookup,
        tools=map(_tool, options.tools),
        response_format=None if options.output_format is None else _response_format(options.output_format),
        moderation=None if options.moderation is None else _moderation(options.moderation),
    )
    if options.tool_choice is not None:
        request.tool_choice = _TOOL_MODES[options.tool_choice.mode]
        request.tool_choice_name = options.tool_choice.name
    return request


def stream_generate_request(
    text: Text, options: GenerationOptions, model: str, request_id: str
) -> generation_pb2.StreamGenerateRequest:
    """As ``generate_request``; the two messages are the same field by field, numbers included (generation.proto)."""
    request = generate_request(text, options, model, request_id)
    return generation_pb2.StreamGenerateRequest.FromString(request.SerializeToString())


def tag_request(
    text: Text, labels: Sequence[str | Label], instruction: str, calibrated: bool, model: str, request_id: str
) -> generation_pb2.TagRequest:
    """A label that is a plain string has no description."""
    named = [Label(label) if isinstance(label, str) else label for label in labels]
    return generation_pb2.TagRequest(
        request_id=request_id,
        messages=() if isinstance(text, str) else convert.messages(text),
        text=text if isinstance(text, str) else "",
        labels=[generation_pb2.Label(name=label.name, description=label.description) for label in named],
        instruction=instruction,
        model=model,
        uncalibrated=not calibrated,
    )


def read_generation(response: generation_pb2.GenerateResponse) -> GenerationResult:
    """Raises NoAnswerError when the response does not say why a text ended."""
    return GenerationResult(
        request_id=response.request_id,
        model=response.model,
        text=response.text,
        finish_reason=_finish_reason(response.finish_reason),
        usage=convert.usage(response.usage),
        timings=convert.timings(response.timings),
        tool_calls=_tool_calls(response.tool_calls),
        logprobs=_logprobs(response.logprobs),
        further_choices=tuple(
            GeneratedChoice(
                choice.text,
                _finish_reason(choice.finish_reason),
                _tool_calls(choice.tool_calls),
                _logprobs(choice.logprobs),
            )
            for choice in response.further_choices
        ),
        tokens_per_second=response.tokens_per_second,
        moderation=_findings(response.moderation) if response.HasField("moderation") else None,
    )


def read_delta(response: generation_pb2.StreamGenerateResponse) -> Delta | None:
    """What the response adds to its text; None when it adds nothing."""
    if not (response.text or response.tool_calls or response.logprobs):
        return None
    return Delta(
        response.text,
        response.token_count,
        response.choice_index,
        _tool_calls(response.tool_calls),
        _logprobs(response.logprobs),
    )


class StreamReader:
    """Folds the responses of one StreamGenerate into a GenerationResult."""

    def __init__(self) -> None:
        self._first: generation_pb2.StreamGenerateResponse | None = None
        self._last: generation_pb2.StreamGenerateResponse | None = None
        self._choices: dict[int, list[generation_pb2.StreamGenerateResponse]] = {}

    def add(self, response: generation_pb2.StreamGenerateResponse) -> None:
        """Take the next response."""
        self._first = self._first or response
        self._last = response
        self._choices.setdefault(response.choice_index, []).append(response)

    def result(self) -> GenerationResult:
        """The whole of it. Raises NoAnswerError when the stream ended without its last response."""
        if self._first is None or self._last is None:
            raise NoAnswerError("the stream ended without a response")
        _finish_reason(self._last.finish_reason)
        if not self._last.HasField("usage"):
            raise NoAnswerError("the stream ended before its last text did")
        choices = [self._choice(index) for index in range(max(self._choices) + 1)]
        last = self._last
        return GenerationResult(
            request_id=self._first.request_id,
            model=self._first.model,
            text=choices[0].text,
            finish_reason=choices[0].finish_reason,
            usage=convert.usage(last.usage),
            timings=convert.timings(last.timings),
            tool_calls=choices[0].tool_calls,
            logprobs=choices[0].logprobs,
            further_choices=tuple(choices[1:]),
            tokens_per_second=last.tokens_per_second,
            moderation=_findings(last.moderation) if last.HasField("moderation") else None,
        )

    def _choice(self, index: int) -> GeneratedChoice:
        parts = self._choices.get(index, [])
        return GeneratedChoice(
            text="".join(part.text for part in parts),
            finish_reason=_finish_reason(parts[-1].finish_reason if parts else 0),
            tool_calls=tuple(call for part in parts for call in _tool_calls(part.tool_calls)),
            logprobs=tuple(token for part in parts for token in _logprobs(part.logprobs)),
        )


def read_tag(response: generation_pb2.TagResponse) -> TagResult:
    """Raises NoAnswerError unless the response holds a label, the most likely one, and probabilities."""
    scores = tuple(
        LabelScore(score.name, convert.probability(score.probability, "probability")) for score in response.scores
    )
    if not scores or scores[0].name != response.label:
        raise NoAnswerError("the server's label is not its most likely one")
    return TagResult(
        request_id=response.request_id,
        model=response.model,
        label=response.label,
        scores=scores,
        usage=convert.usage(response.usage),
        timings=convert.timings(response.timings),
    )


def _finish_reason(value: int) -> FinishReason:
    """Raises NoAnswerError for FINISH_REASON_UNSPECIFIED: the text was cut off."""
    return known(_FINISH_REASONS, value, "finish_reason")


def _tool(tool: Tool) -> generation_pb2.Tool:
    schema = json.dumps(tool.parameters, ensure_ascii=False)
    return generation_pb2.Tool(name=tool.name, description=tool.description, parameters_json_schema=schema)


def _response_format(wanted: OutputFormat) -> generation_pb2.ResponseFormat:
    match wanted:
        case JsonFormat(schema):
            text = json.dumps(schema, ensure_ascii=False)
            return generation_pb2.ResponseFormat(json_schema=generation_pb2.JsonSchemaFormat(schema=text))
        case RegexFormat(pattern):
            return generation_pb2.ResponseFormat(regex=generation_pb2.RegexFormat(pattern=pattern))
        case ChoiceFormat(choices):
            return generation_pb2.ResponseFormat(choice=generation_pb2.ChoiceFormat(choices=choices))


def _moderation(options: ModerationOptions) -> generation_pb2.ModerationOptions:
    return generation_pb2.ModerationOptions(
        check_input=options.check_input,
        check_output=options.check_output,
        policy=None if options.policy is None else policy_message(options.policy),
        policy_name=options.policy_name,
        model=options.model,
        check_every_tokens=options.check_every_tokens,
    )


def _findings(result: generation_pb2.ModerationResult) -> ModerationFindings:
    return ModerationFindings(
        input=convert.read_classification(result.input) if result.HasField("input") else None,
        output=convert.read_classification(result.output) if result.HasField("output") else None,
    )


def _tool_calls(calls: Iterable[moderation_pb2.ToolCall]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call.id, call.name, call.arguments_json) for call in calls)


def _logprobs(tokens: Iterable[generation_pb2.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token.token_id,
            token.text,
            token.logprob,
            tuple(Alternative(other.token_id, other.text, other.logprob) for other in token.top),
        )
        for token in tokens
    )
