"""The prompts that calibration runs: conversations of this project's own, as the bundle's runtime would build them."""

from __future__ import annotations

import json
from importlib.resources import files

from export.checkpoint.model import Checkpoint
from export.template_check import TODAY, template_variables
from guard.bundle.guard_format import GuardFormat
from guard.chat_template import ChatTemplate
from guard.conversation import Conversation, Message, Role, Target
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer

#: Tokens of each prompt that are used: with all ten a 1B model's forward pass takes a minute on two cores.
_TOKENS = 384


def calibration_prompts(
    checkpoint: Checkpoint, guard: GuardFormat | None, tokenizer: Tokenizer
) -> list[tuple[int, ...]]:
    """Token ids of each prompt: for a guard every other one judges the last answer, the others the last question."""
    limit = min(_TOKENS, checkpoint.spec.max_positions)
    if guard is not None:
        builder = GuardPromptBuilder(guard, tokenizer)
        judged = [_judged(index, texts) for index, texts in enumerate(_texts())]
        return [tuple(builder.build(*each, Policy()).token_ids[:limit]) for each in judged]
    template = ChatTemplate(checkpoint.chat_template or "", template_variables(checkpoint))
    return [tuple(tokenizer.encode(template.segments(_conversation(texts), TODAY))[:limit]) for texts in _texts()]


def _texts() -> list[list[str]]:
    """Texts of user and assistant in turn, of several languages, safe and unsafe."""
    lines = files("export.quantize").joinpath("calibration.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _judged(index: int, texts: list[str]) -> tuple[Conversation, Target]:
    return (_conversation(texts), Target.RESPONSE) if index % 2 else (_conversation(texts[:-1]), Target.PROMPT)


def _conversation(texts: list[str]) -> Conversation:
    roles = [Role.ASSISTANT if index % 2 else Role.USER for index in range(len(texts))]
    return Conversation(tuple(Message(role, text) for role, text in zip(roles, texts, strict=True)))
