"""POST /v1/chat/completions: the answers of GenerationService as OpenAI's, whole or in chunks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from guard.v1 import generation_pb2, moderation_pb2
from server.openai_http.fields import EXTENSION, shown

_FINISH_REASONS = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_STOP_SEQUENCE: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    generation_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_End = generation_pb2.GenerateResponse | generation_pb2.StreamGenerateResponse


def completion(response: generation_pb2.GenerateResponse) -> dict[str, Any]:
    """The whole answer."""
    first = generation_pb2.Choice(
        text=response.text,
        finish_reason=response.finish_reason,
        tool_calls=response.tool_calls,
        logprobs=response.logprobs,
    )
    return {
        "id": f"chatcmpl-{response.request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": response.model,
        "choices": [_choice(choice) for choice in (first, *response.further_choices)],
        "usage": _usage(response.usage),
        EXTENSION: _extension(response, response.request_id),
    }


class Chunks:
    """The chunks of one stream, in order."""

    def __init__(self, choices: int, with_usage: bool, with_logprobs: bool) -> None:
        self._choices = choices
        self._with_usage = with_usage
        self._with_logprobs = with_logprobs
        self._head: dict[str, Any] = {}
        self._calls: Counter[int] = Counter()
        self._request_id = ""

    def of(self, part: generation_pb2.StreamGenerateResponse) -> list[dict[str, Any]]:
        """What one response of the stream becomes."""
        if not self._head:
            self._request_id = part.request_id
            self._head = {
                "id": f"chatcmpl-{part.request_id}",
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": part.model,
            }
            opening = {"role": "assistant", "content": ""}
            return [self._chunk([_delta(index, opening)]) for index in range(self._choices)]
        chunks = []
        index, delta = part.choice_index, self._content(part)
        if delta or part.logprobs:
            chunks.append(self._chunk([_delta(index, delta, self._logprobs(part.logprobs))]))
        if part.finish_reason:
            end = self._chunk([_delta(index, {}, reason=_FINISH_REASONS[part.finish_reason])])
            if part.HasField("usage"):
                end[EXTENSION] = _extension(part, self._request_id)
            chunks.append(end)
        if part.HasField("usage") and self._with_usage:
            chunks.append(self._chunk([]) | {"usage": _usage(part.usage)})
        return chunks

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self._with_usage else {}
        return {**self._head, "choices": choices, **usage}

    def _content(self, part: generation_pb2.StreamGenerateResponse) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if part.text:
            delta["content"] = part.text
        if part.tool_calls:
            start = self._calls[part.choice_index]
            self._calls[part.choice_index] += len(part.tool_calls)
            calls = enumerate(_tool_calls(part.tool_calls), start)
            delta["tool_calls"] = [{"index": index, **call} for index, call in calls]
        return delta

    def _logprobs(self, tokens: Iterable[generation_pb2.TokenLogprob]) -> dict[str, Any] | None:
        return _logprobs(tokens) if self._with_logprobs else None


def _delta(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _choice(choice: generation_pb2.Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text or None, "refusal": None}
    if choice.tool_calls:
        message["tool_calls"] = _tool_calls(choice.tool_calls)
    elif not choice.text:
        message["content"] = ""
    return {
        "index": choice.index,
        "message": message,
        "logprobs": _logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": _FINISH_REASONS[choice.finish_reason],
    }


def _tool_calls(calls: Iterable[moderation_pb2.ToolCall]) -> list[dict[str, Any]]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
        for call in calls
    ]


def _logprobs(tokens: Iterable[generation_pb2.TokenLogprob]) -> dict[str, Any]:
    content = [
        {
            **_token(token.text, token.logprob),
            "top_logprobs": [_token(other.text, other.logprob) for other in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    """``bytes`` is null for a token that is a part of a character, whose text does not say which part."""
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _usage(usage: moderation_pb2.Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _extension(end: _End, request_id: str) -> dict[str, Any]:
    """What OpenAI's answer has no place for."""
    extension = {
        "request_id": request_id,
        "timings": shown(end.timings),
        "tokens_per_second": end.tokens_per_second,
    }
    if end.HasField("moderation"):
        extension["moderation"] = shown(end.moderation)
    return extension
