"""POST /v1/chat/completions: OpenAI's question to that of GenerationService.

Every field is read, refused by name, or among those that say nothing about the answer.
"""

from __future__ import annotations

from typing import Any

from guard.errors import InvalidInputError
from guard.tools.values import canonical
from guard.v1 import generation_pb2, moderation_pb2
from server.convert_generation import GenerateRequest
from server.errors import UnsupportedFieldError
from server.openai_http.fields import EXTENSION, Fields, extend, put

_ROLES = {
    "system": moderation_pb2.ROLE_SYSTEM,
    "developer": moderation_pb2.ROLE_SYSTEM,
    "user": moderation_pb2.ROLE_USER,
    "assistant": moderation_pb2.ROLE_ASSISTANT,
    "tool": moderation_pb2.ROLE_TOOL,
}
_TOOL_CHOICES = {
    "none": generation_pb2.TOOL_CHOICE_NONE,
    "auto": generation_pb2.TOOL_CHOICE_AUTO,
    "required": generation_pb2.TOOL_CHOICE_REQUIRED,
}
#: OpenAI's name, ours, and the type in JSON, where a field only changes its name.
_PLAIN: tuple[tuple[str, str, type], ...] = (
    ("max_tokens", "max_tokens", int),
    ("max_completion_tokens", "max_tokens", int),
    ("temperature", "temperature", float),
    ("top_p", "top_p", float),
    ("n", "choices", int),
    ("seed", "seed", int),
    ("presence_penalty", "presence_penalty", float),
    ("frequency_penalty", "frequency_penalty", float),
    ("logprobs", "logprobs", bool),
    ("top_logprobs", "top_logprobs", int),
)
#: Fields with the values that ask for what this server does anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
}
#: Names that callers give to their users and prompts; they change no answer and are not kept.
_LABELS = ("user", "safety_identifier", "prompt_cache_key")
_READ = (
    *("messages", "model", "stop", "tools", "tool_choice", "response_format", "logit_bias"),
    *("stream", "stream_options", EXTENSION),
    *(name for name, _, _ in _PLAIN),
)
#: Fields of GenerateRequest that the extension may have.
_EXTENSION = ("moderation", "top_k", "min_p", "repetition_penalty", "prompt_lookup", "date", "response_format")


def wants_stream(body: Fields) -> bool:
    """Whether the answer is to be a stream."""
    return bool(body.get("stream", bool))


def wants_usage(body: Fields) -> bool:
    """Whether the stream is to end with the usage."""
    options = body.fields("stream_options")
    if options is None:
        return False
    if not wants_stream(body):
        raise InvalidInputError("stream_options", "only with stream")
    options.only(("include_usage",))
    return bool(options.get("include_usage", bool))


def generate_request(body: Fields, request: GenerateRequest, moderated: bool) -> None:
    """Fill ``request``; ``moderated``: the guard is asked in any case. Raises InvalidInputError."""
    _refuse_unknown(body)
    model = body.need("model", str)
    put(request, "model", "" if model == "default" else model, "model")
    for index, message in enumerate(body.objects("messages")):
        _message(message, request.messages.add(), f"messages[{index}]")
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise InvalidInputError("max_tokens", "not together with max_completion_tokens")
    for theirs, ours, kind in _PLAIN:
        put(request, ours, body.get(theirs, kind), theirs)
    request.stop.extend(_stops(body))
    for token, bias in (body.get("logit_bias", dict) or {}).items():
        request.logit_bias[_token_id(token)] = _bias(bias)
    for tool in body.objects("tools"):
        _tool(tool, request.tools.add())
    _tool_choice(body, request)
    _response_format(body.fields("response_format"), request)
    _extension(body, request, moderated)


def _refuse_unknown(body: Fields) -> None:
    body.only((*_READ, *_LABELS, *_NEUTRAL))
    for name, values in _NEUTRAL.items():
        if name in body and body.any(name) not in values:
            raise UnsupportedFieldError(name, "this server does not offer that value")


def _message(given: Fields, message: moderation_pb2.Message, where: str) -> None:
    role = _ROLES.get(given.need("role", str))
    if role is None:
        raise InvalidInputError(f"{where}.role", f"expected {', '.join(_ROLES)}")
    given.only(("role", "content", "tool_calls", "tool_call_id"))
    message.role = role
    message.content = given.text("content")
    put(message, "tool_call_id", given.get("tool_call_id", str), f"{where}.tool_call_id")
    for call in given.objects("tool_calls"):
        call.only(("id", "type", "function", "index"))
        function = _function(call)
        function.only(("name", "arguments"))
        message.tool_calls.add(
            id=call.need("id", str), name=function.need("name", str), arguments_json=function.need("arguments", str)
        )


def _function(given: Fields) -> Fields:
    """The function of a tool, a call or a choice of one."""
    if given.any("type") not in (None, "function"):
        raise UnsupportedFieldError(given.path("type"), "tools are functions here")
    function = given.fields("function")
    if function is None:
        raise InvalidInputError(given.path("function"), "is required")
    return function


def _tool(given: Fields, tool: generation_pb2.Tool) -> None:
    given.only(("type", "function"))
    function = _function(given)
    function.only(("name", "description", "parameters", "strict"))  # arguments always follow their schema
    tool.name = function.need("name", str)
    tool.description = function.get("description", str) or ""
    parameters = function.get("parameters", dict)
    if parameters is not None:
        tool.parameters_json_schema = canonical(parameters)


def _tool_choice(body: Fields, request: GenerateRequest) -> None:
    choice = body.any("tool_choice")
    if choice is None:
        return
    if isinstance(choice, dict):
        request.tool_choice_name = _function(Fields(choice, "tool_choice")).need("name", str)
    elif isinstance(choice, str) and choice in _TOOL_CHOICES:
        request.tool_choice = _TOOL_CHOICES[choice]
    else:
        raise InvalidInputError(
            "tool_choice", f"expected {', '.join(_TOOL_CHOICES)} or an object that names a function"
        )


def _response_format(given: Fields | None, request: GenerateRequest) -> None:
    if given is None:
        return
    wanted, kind = request.response_format, given.need("type", str)
    if kind == "text":
        given.only(("type",))
        wanted.text.SetInParent()
    elif kind == "json_object":
        given.only(("type",))
        wanted.json_schema.SetInParent()
    elif kind == "json_schema":
        given.only(("type", "json_schema"))
        named = given.fields("json_schema")
        if named is None:
            raise InvalidInputError("response_format.json_schema", "is required")
        named.only(("name", "description", "schema", "strict"))  # the answer always follows the schema
        wanted.json_schema.schema = canonical(named.need("schema", dict))
    else:
        raise InvalidInputError("response_format.type", "expected text, json_object or json_schema")


def _extension(body: Fields, request: GenerateRequest, moderated: bool) -> None:
    extension = body.fields(EXTENSION)
    if extension is not None and extension.any("moderation") is True:
        moderated = True
        rest = {name: extension.any(name) for name in extension if name != "moderation"}
        extension = Fields(rest, EXTENSION)
    if extension is not None and "response_format" in extension and "response_format" in body:
        raise InvalidInputError(f"{EXTENSION}.response_format", "not together with response_format")
    extend(request, extension, _EXTENSION)
    if moderated:
        request.moderation.check_input = True
        request.moderation.check_output = True


def _stops(body: Fields) -> list[str]:
    given = body.any("stop")
    if given is None:
        return []
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise InvalidInputError("stop", "expected text or a list of texts")
    return stops


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 9:
        raise InvalidInputError("logit_bias", "expected token ids as keys")
    return int(text)


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError("logit_bias", "expected numbers as values")
    try:
        return float(value)
    except OverflowError:
        raise InvalidInputError("logit_bias", "expected -100 to 100") from None
