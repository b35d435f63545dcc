"""Rendering a checkpoint's own chat template so that message text cannot become control tokens.

The template (sandboxed Jinja, as in Hugging Face transformers) is rendered twice: with the real messages, and with a
unique slot in place of each message's content. The second rendering shows which text is the template's (trusted) and
where the users' text goes; the first proves that putting the texts into the slots gives exactly what the template
meant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from guard.conversation import Conversation
from guard.errors import BundleError, UnsupportedError
from guard.tokenizer import Segment

#: A private-use character: no template contains it, and texts that do only make the slot's name longer.
_MARK = "\uf8ff"


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
        except TemplateError as error:
            raise BundleError("the chat template is not valid Jinja") from error
        self._variables = dict(variables)

    def segments(self, conversation: Conversation, today: date) -> list[Segment]:
        """The prompt up to where the assistant's answer begins, the template's text and the users' apart.

        ``today`` is for templates that print a date. Raises UnsupportedError when the template refuses the
        conversation or rewrites its text in a way that cannot be followed.
        """
        contents = [message.content for message in conversation.messages]
        roles = [message.role.value for message in conversation.messages]
        mark = _unused_mark(contents)
        slots = [f"{mark}{index}{_MARK}" for index in range(len(contents))]
        real = self._render(roles, contents, today)
        shape = self._render(roles, slots, today)
        return _fill_slots(real, re.split(f"{mark}([0-9]+){_MARK}", shape), contents)

    def _render(self, roles: Sequence[str], contents: Sequence[str], today: date) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                date_string=today.strftime("%d %b %Y"),
                strftime_now=today.strftime,
                **self._variables,
            )
        except TemplateError as error:
            raise UnsupportedError("messages: the model's chat template refuses this conversation") from error


def _fill_slots(real: str, parts: Sequence[str], contents: Sequence[str]) -> list[Segment]:
    """``parts`` alternates template text and slot numbers. Raises UnsupportedError if the slots cannot explain
    ``real``.
    """
    segments, position = [], 0
    for index, part in enumerate(parts):
        if index % 2 == 0:
            chosen, following = part, ""
        else:
            content, following = contents[int(part)], parts[index + 1]
            # Templates either keep or trim content.
            chosen = content if real.startswith(content + following, position) else content.strip()
        if not real.startswith(chosen + following, position):
            raise UnsupportedError("messages: the model's chat template rewrites message text")
        segments.append(Segment(chosen, trusted=index % 2 == 0))
        position += len(chosen)
    if position != len(real):
        raise UnsupportedError("messages: the model's chat template rewrites message text")
    return [segment for segment in segments if segment.text]


def _unused_mark(contents: Sequence[str]) -> str:
    number = 0
    while any(f"{_MARK}{number}:" in content for content in contents):
        number += 1
    return f"{_MARK}{number}:"


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
