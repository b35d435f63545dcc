"""The checkpoint's own chat template judges our prompts: the same bytes and the same token ids, or no export."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HfTokenizer

from export.checkpoint.model import Checkpoint
from guard.bundle.guard_format import GuardFormat
from guard.bundle.manifest import Task
from guard.chat_template import ChatTemplate
from guard.conversation import Conversation, Message, Role, Target
from guard.errors import CheckpointError, ParityError, UnsupportedError
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer

#: Contents of the turns, taken in order: plain, padded, several lines, scripts and emoji, brackets, code.
_CONTENTS = (
    "What is the capital of Peru?",
    "  Lima.\n",
    "First line\n\nthird line, with a tab:\tend",
    "Größe, naïveté, 東京, Привет, मौसम, 🙂👍🏽",
    "{{ not a template }} and {%- neither -%} this; 3 < 4 && 5 > 2",
    'for i in range(10): print(f"{i:>3}")  # 100%',
)
#: The date for templates that print one.
TODAY = date(2024, 7, 26)


def check_template(checkpoint: Checkpoint, task: Task, guard_format: GuardFormat | None, tokenizer_path: Path) -> str:
    """Compare the prompts that the runtime will build with the checkpoint's own template.

    Returns what was checked, or why nothing could be. Raises ParityError naming the conversation and the first offset
    that differs, CheckpointError when the template is missing.
    """
    if guard_format is not None and checkpoint.guard_format is not None:
        return "the guard's prompt format came with its adapter, which has no template to compare with"
    if checkpoint.chat_template is None:
        raise CheckpointError("the checkpoint has no chat template, so the prompts cannot be checked")
    tokenizer = Tokenizer(tokenizer_path, checkpoint.tokens.control)
    plain = HfTokenizer.from_file(str(tokenizer_path))
    render = _PlainTemplate(checkpoint.chat_template, template_variables(checkpoint))
    if guard_format is not None:
        return _check_guard(guard_format, tokenizer, plain, render)
    return _check_instruct(checkpoint, tokenizer, plain, render)


class _PlainTemplate:
    """A chat template rendered the plain way, as Hugging Face transformers does it."""

    def __init__(self, source: str, variables: dict[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise CheckpointError("the checkpoint's chat template is not valid Jinja") from error
        self._variables = variables

    def __call__(self, messages: list[dict[str, Any]]) -> str | None:
        """The rendered prompt, or None when the template refuses the conversation."""
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                date_string=TODAY.strftime("%d %b %Y"),
                strftime_now=TODAY.strftime,
                **self._variables,
            )
        except TemplateError:
            return None


def _check_guard(guard: GuardFormat, tokenizer: Tokenizer, plain: HfTokenizer, render: _PlainTemplate) -> str:
    _check_answer_tokens(guard, plain)
    builder = GuardPromptBuilder(guard, tokenizer)
    for turns in range(1, len(_CONTENTS) + 1):
        conversation = _conversation(turns)
        target = Target.RESPONSE if conversation.messages[-1].role is Role.ASSISTANT else Target.PROMPT
        # Llama Guard's template reads the content as a list of parts; from a plain string it renders nothing.
        parts = [
            {"role": message.role.value, "content": [{"type": "text", "text": message.content}]}
            for message in conversation.messages
        ]
        where = f"conversation of {turns} turns"
        ours = builder.render(conversation, target, Policy())
        ids = builder.build(conversation, target, Policy()).token_ids
        _compare(where, ours, ids, render(parts), plain)
    return f"{len(_CONTENTS)} conversations equal the checkpoint's chat template in bytes and token ids"


def _check_answer_tokens(guard: GuardFormat, plain: HfTokenizer) -> None:
    """The ids that the answer protocol reads must be the tokenizer's own for the text that the model writes."""
    answer = guard.answer
    verdicts = {"safe": answer.safe, "unsafe": answer.unsafe}
    for text, token in verdicts.items():
        _compare_ids(f"answer {text!r}", (*answer.before_verdict, token), _plain_ids(plain, f"\n\n{text}"))
    for code, token in answer.categories.items():
        ids = (*answer.before_verdict, answer.unsafe, *answer.before_category, token)
        _compare_ids(f"answer {code}", ids, _plain_ids(plain, f"\n\nunsafe\n{code}"))


def _check_instruct(checkpoint: Checkpoint, tokenizer: Tokenizer, plain: HfTokenizer, render: _PlainTemplate) -> str:
    template = ChatTemplate(checkpoint.chat_template or "", template_variables(checkpoint))
    checked = 0
    for system in (False, True):
        for turns in range(1, len(_CONTENTS) + 1, 2):
            conversation = _conversation(turns, system)
            messages = [{"role": message.role.value, "content": message.content} for message in conversation.messages]
            expected = render(messages)
            if expected is None:  # a template may refuse system messages; the runtime then refuses them too
                continue
            where = f"conversation of {turns} turns{' after a system message' if system else ''}"
            try:
                segments = template.segments(conversation, TODAY)
            except UnsupportedError as error:
                raise ParityError(f"{where}: {error}") from error
            ours = "".join(segment.text for segment in segments)
            _compare(where, ours, tokenizer.encode(segments), expected, plain)
            checked += 1
    if not checked:
        raise CheckpointError("the checkpoint's chat template refuses every conversation")
    return f"{checked} conversations equal the checkpoint's chat template in bytes and token ids"


def _conversation(turns: int, system: bool = False) -> Conversation:
    messages = [
        Message(Role.ASSISTANT if index % 2 else Role.USER, content) for index, content in enumerate(_CONTENTS[:turns])
    ]
    first = [Message(Role.SYSTEM, "Answer briefly.")] if system else []
    return Conversation((*first, *messages))


def template_variables(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a chat template may read beside the messages, as ``guard.generator`` passes it."""
    text = {token_id: token for token, token_id in checkpoint.tokens.control.items()}
    bos = "" if checkpoint.tokens.bos is None else text.get(checkpoint.tokens.bos, "")
    return {"bos_token": bos, "eos_token": text.get(min(checkpoint.tokens.stop), "")}


def _compare(where: str, ours: str, ids: Sequence[int], expected: str | None, plain: HfTokenizer) -> None:
    if expected is None:
        raise ParityError(f"{where}: the checkpoint's chat template refuses it")
    left, right = ours.encode(), expected.encode()
    offset = _first_difference(left, right)
    if offset is not None:
        raise ParityError(f"{where}: the prompt differs from the checkpoint's chat template at byte {offset}")
    _compare_ids(where, ids, _plain_ids(plain, expected))


def _compare_ids(where: str, ours: Sequence[int], expected: Sequence[int]) -> None:
    offset = _first_difference(ours, expected)
    if offset is not None:
        raise ParityError(f"{where}: token ids differ from the checkpoint's tokenizer at token {offset}")


def _plain_ids(plain: HfTokenizer, text: str) -> list[int]:
    ids: list[int] = plain.encode(text, add_special_tokens=False).ids
    return ids


def _first_difference(left: Sequence[int], right: Sequence[int]) -> int | None:
    for index, (first, second) in enumerate(zip(left, right, strict=False)):
        if first != second:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


def _raise(message: str) -> None:
    raise TemplateError(message)
