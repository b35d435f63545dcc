"""Rendering a checkpoint's own chat template so that no caller's text can become control tokens.

The template (sandboxed Jinja, as in Hugging Face transformers) is rendered twice: with the real messages and tools, and
with a unique slot in place of every string in them that a caller wrote: contents, names, descriptions, the keys and
strings of schemas and arguments. The second rendering shows which text is the template's (trusted) and where the
callers' text goes; the first proves that putting the texts into the slots gives exactly what the template meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from guard.conversation import Conversation, Message, Role
from guard.errors import BundleError, UnsupportedError
from guard.generation import Tool
from guard.tokenizer import Segment
from guard.tools.prompt import message_values, one_call_each, tool_value, without_tools

#: A private-use character: no template contains it, and texts that do only make the slot's name longer.
_MARK = "\uf8ff"
_REWRITES = "messages: the model's chat template rewrites message text"


class ChatTemplate:
    """One compiled chat template. ``variables`` are what it may read beside the messages (``bos_token`` and the
    like).
    """

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        """Compile ``source``; raises BundleError when it is not Jinja."""
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
            self.knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except TemplateError as error:
            raise BundleError("the chat template is not valid Jinja") from error
        self._shows_calls = "tool_calls" in source
        self._variables = dict(variables)

    def segments(self, conversation: Conversation, today: date, tools: Sequence[Tool] = ()) -> list[Segment]:
        """The prompt up to where the assistant's answer begins, the template's text and the callers' apart.

        Expects a conversation that ``check_generation_turns`` accepted, and tools that ``check_tools`` accepted.
        ``today`` is for templates that print a date. A template that knows no ``tools`` gets plain messages that say
        the same (``guard.tools.prompt.without_tools``), and one that refuses several calls in a message gets them one
        after the other. Raises UnsupportedError when the template refuses the conversation, leaves out a tool, a call
        or a result, or rewrites text in a way that cannot be followed.
        """
        messages: Sequence[Message] = conversation.messages
        if not self.knows_tools:
            messages, tools = without_tools(messages, tools), ()
        elif not self._shows_calls and any(message.tool_calls for message in messages):
            raise UnsupportedError("messages: the model's chat template leaves tool calls out")
        try:
            return self._segments(messages, tools, today)
        except TemplateError as error:
            if any(len(message.tool_calls) > 1 for message in messages):
                return self._segments_of_single_calls(messages, tools, today)
            raise UnsupportedError("messages: the model's chat template refuses this conversation") from error

    def _segments_of_single_calls(
        self, messages: Sequence[Message], tools: Sequence[Tool], today: date
    ) -> list[Segment]:
        try:
            return self._segments(one_call_each(messages), tools, today)
        except TemplateError as error:
            raise UnsupportedError("messages: the model's chat template refuses this conversation") from error

    def _segments(self, messages: Sequence[Message], tools: Sequence[Tool], today: date) -> list[Segment]:
        texts: dict[str, None] = {}

        def note(text: str) -> str:
            texts[text] = None
            return text

        real = self._render(messages, tools, note, today)
        texts.pop("", None)  # templates ask whether there is any text
        mark = _unused_mark(texts)
        slots = {text: f"{mark}{index}{_MARK}" for index, text in enumerate(texts)}
        shape = self._render(messages, tools, lambda text: slots.get(text, text), today)
        _check_shown(shape, slots, messages, tools)
        return _fill_slots(real, re.split(f"{mark}([0-9]+){_MARK}", shape), list(texts))

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], text: Callable[[str], str], today: date
    ) -> str:
        """The rendered template, ``text`` put on every string of the callers'. Raises TemplateError when it refuses."""
        values = message_values(messages, text)
        try:
            return self._template.render(
                messages=values,
                tools=[tool_value(tool, text) for tool in tools] or None,
                add_generation_prompt=True,
                date_string=today.strftime("%d %b %Y"),
                strftime_now=today.strftime,
                **self._variables,
            )
        except (TypeError, ValueError, ArithmeticError) as error:  # a template that did not think of such messages
            raise TemplateError("the template fails") from error


def _check_shown(shape: str, slots: Mapping[str, str], messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Raise UnsupportedError when ``shape`` lacks a tool or a result that the model should see."""
    if not all(slots[tool.name] in shape for tool in tools):
        raise UnsupportedError("tools: the model's chat template leaves them out")
    for index, message in enumerate(messages):
        if message.role is Role.TOOL and message.content and slots[message.content] not in shape:
            raise UnsupportedError(f"messages[{index}].content: the model's chat template leaves it out")


def _fill_slots(real: str, parts: Sequence[str], texts: Sequence[str]) -> list[Segment]:
    """``parts`` alternates template text and slot numbers. Raises UnsupportedError if the slots cannot explain
    ``real``.
    """
    segments, position = [], 0
    for index, part in enumerate(parts):
        if index % 2 == 0:
            chosen = part if real.startswith(part, position) else None
        else:
            following = parts[index + 1]
            forms = _forms(texts[int(part)])
            chosen = next((form for form in forms if real.startswith(form + following, position)), None)
        if chosen is None:
            raise UnsupportedError(_REWRITES)
        segments.append(Segment(chosen, trusted=index % 2 == 0))
        position += len(chosen)
    if position != len(real):
        raise UnsupportedError(_REWRITES)
    return [segment for segment in segments if segment.text]


def _forms(text: str) -> Iterator[str]:
    """What templates make of a text: they keep it, trim it, or write it into JSON."""
    yield text
    yield text.strip()
    yield json.dumps(text, ensure_ascii=False)[1:-1]
    yield json.dumps(text.strip(), ensure_ascii=False)[1:-1]


def _unused_mark(texts: Mapping[str, None]) -> str:
    number = 0
    while any(f"{_MARK}{number}:" in text for text in texts):
        number += 1
    return f"{_MARK}{number}:"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' ``tojson``: unlike Jinja's own, it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
