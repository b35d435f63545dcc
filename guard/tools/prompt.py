"""Tools and calls as chat templates read them, and conversations for templates that know no tools."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from guard.conversation import Message, Role, ToolCall, call_arguments
from guard.generation import Tool

#: JSON Schema's own words, which templates look for (``parameters.properties``, ``type == "string"``).
_SCHEMA_WORDS: Final = frozenset(
    [
        "type",
        "properties",
        "required",
        "description",
        "items",
        "enum",
        "const",
        "default",
        "title",
        "format",
        "additionalProperties",
        "anyOf",
        "oneOf",
        "allOf",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "pattern",
        "nullable",
        "$defs",
        "$ref",
        "object",
        "array",
        "string",
        "number",
        "integer",
        "boolean",
        "null",
    ]
)
_OFFER: Final = (
    "You can call these functions, each described by a JSON Schema:\n\n{functions}\n\nTo call one of them, answer with "
    'nothing but one JSON object that has the keys "name", the name of the function, and "parameters", an object of '
    "its arguments. Then its result comes back to you. When no function helps, answer in words."
)


def tool_value(tool: Tool, text: Callable[[str], str]) -> dict[str, Any]:
    """A tool as transformers' ``apply_chat_template`` passes it; ``text`` is put on every string of the caller's."""
    function = {
        "name": text(tool.name),
        "description": text(tool.description),
        "parameters": _mapped(tool.parameters, text),
    }
    return {"type": "function", "function": function}


def message_values(messages: Sequence[Message], text: Callable[[str], str]) -> list[dict[str, Any]]:
    """Messages as ``apply_chat_template`` takes them; ``text`` is put on every string of the caller's.

    Raises InvalidInputError when the arguments of a call are no JSON object.
    """
    names: dict[str, str] = {}
    values: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        value: dict[str, Any] = {"role": message.role.value, "content": text(message.content)}
        # Templates ask whether the key is there, so it is only where there are calls.
        if message.tool_calls:
            names.update({call.id: call.name for call in message.tool_calls})
            value["tool_calls"] = [
                _call_value(call, f"messages[{index}].tool_calls[{number}]", text)
                for number, call in enumerate(message.tool_calls)
            ]
        if message.role is Role.TOOL:
            value["tool_call_id"] = text(message.tool_call_id)
            value["name"] = text(names.get(message.tool_call_id, ""))
        values.append(value)
    return values


def one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with one call in each assistant message, its result right after it: for templates that
    take no more than one. Expects messages that ``check_generation_turns`` accepted.
    """
    turned: list[Message] = []
    for index, message in enumerate(messages):
        if message.tool_calls:
            answers = messages[index + 1 : index + 1 + len(message.tool_calls)]
            results = {answer.tool_call_id: answer for answer in answers}
            for number, call in enumerate(message.tool_calls):
                content = message.content if number == 0 else ""
                turned += [Message(Role.ASSISTANT, content, (call,)), results[call.id]]
        elif message.role is not Role.TOOL:  # those came with their calls
            turned.append(message)
    return turned


def without_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The same conversation in plain messages, for templates that know no tools.

    The functions open the system message, calls are the JSON that the model was asked to write, and results are user
    messages: the one other role that every template has. Results that belong together are one message.
    """
    names: dict[str, str] = {}
    turned: list[Message] = []
    for index, message in enumerate(messages):
        if message.role is Role.TOOL:
            result = f"The result of {names.get(message.tool_call_id, '')}:\n{message.content}"
            if index and messages[index - 1].role is Role.TOOL:
                result = f"{turned.pop().content}\n\n{result}"
            turned.append(Message(Role.USER, result))
        elif message.tool_calls:
            names.update({call.id: call.name for call in message.tool_calls})
            calls = [_call_text(call, f"messages[{index}].tool_calls") for call in message.tool_calls]
            turned.append(Message(message.role, "\n".join([message.content, *calls] if message.content else calls)))
        else:
            turned.append(message)
    if not tools:
        return turned
    functions = "\n".join(json.dumps(tool_value(tool, str)["function"], ensure_ascii=False) for tool in tools)
    offer = _OFFER.format(functions=functions)
    if turned[0].role is Role.SYSTEM:
        return [Message(Role.SYSTEM, f"{turned[0].content}\n\n{offer}"), *turned[1:]]
    return [Message(Role.SYSTEM, offer), *turned]


def _call_value(call: ToolCall, field: str, text: Callable[[str], str]) -> dict[str, Any]:
    arguments = _mapped(call_arguments(call, field), text)
    return {"type": "function", "id": text(call.id), "function": {"name": text(call.name), "arguments": arguments}}


def _call_text(call: ToolCall, field: str) -> str:
    return json.dumps({"name": call.name, "parameters": call_arguments(call, field)}, ensure_ascii=False)


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    """``value`` with ``text`` put on each of its strings, keys too, but on JSON Schema's own words."""
    if isinstance(value, str):
        return value if value in _SCHEMA_WORDS else text(value)
    if isinstance(value, Mapping):
        return {_mapped(key, text): _mapped(item, text) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, text) for item in value]
    return value
