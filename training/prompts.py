"""Labelled rows -> token ids and targets, through the same prompt builder that the runtime uses."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Checkpoint
from guard.bundle.guard_format import GuardFormat
from guard.conversation import Conversation, Message, Target
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer
from training.data import Row
from training.recipe import Recipe

Float32 = npt.NDArray[np.float32]
_POLICY = Policy()


@dataclass(frozen=True)
class Aim:
    """What the head should say after the token at ``position``: probabilities [head rows], and how much it counts."""

    position: int
    target: Float32
    weight: float


@dataclass(frozen=True)
class Example:
    """One training sequence."""

    role: Target
    token_ids: tuple[int, ...]
    aims: tuple[Aim, ...]


class Prompts:
    """Builds the sequences of one guard format and tokenizer."""

    def __init__(self, guard_format: GuardFormat, tokenizer: Tokenizer) -> None:
        self._answer = guard_format.answer
        self._tokenizer = tokenizer
        self._builder = GuardPromptBuilder(guard_format, tokenizer)
        self.head_token_ids = self._answer.head_token_ids()
        self._head_row = {token: row for row, token in enumerate(self.head_token_ids)}

    @classmethod
    def of_checkpoint(cls, guard_format: GuardFormat, checkpoint: Checkpoint) -> Prompts:
        """With the checkpoint's own tokenizer."""
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "tokenizer.json")
            path.write_bytes(checkpoint.tokenizer_json)
            return cls(guard_format, Tokenizer(path, checkpoint.tokens.control))

    def prompt(self, conversation: Conversation, target: Target) -> tuple[int, ...]:
        """Token ids of the guard prompt."""
        return self._builder.build(conversation, target, _POLICY).token_ids

    def prefix(self, target: Target) -> tuple[int, ...]:
        """The tokens with which every prompt for ``target`` begins."""
        texts = ("zebra 1", "Apples")
        first, second = (self.prompt(Conversation((Message(target.role, text),)), target) for text in texts)
        # A response is usually judged after its prompt, which begins with the other role's label.
        other = Target.RESPONSE if target is Target.PROMPT else Target.PROMPT
        if target is Target.RESPONSE:
            messages = (Message(other.role, texts[0]), Message(target.role, texts[1]))
            second = self.prompt(Conversation(messages), target)
        shared = 0
        while first[shared] == second[shared]:
            shared += 1
        return first[:shared]

    def example(self, row: Row, content_tokens: int, recipe: Recipe, rng: random.Random) -> Example:
        """The sequence for ``row``: its prompt, then for an unsafe row with categories their list in random order.

        The list teaches the exact mode: after the categories said so far, any of the others, or the end.
        """
        token_ids = list(self.prompt(shorten(row.conversation, content_tokens, self._tokenizer), row.target))
        weight = recipe.weak_weight if row.weak else 1.0
        verdict = self._answer.unsafe if row.unsafe else self._answer.safe
        aims = [Aim(len(token_ids) - 1, self._distribution([verdict]), weight)]
        left = [self._answer.categories[code] for code in row.categories if code in self._answer.categories]
        if row.unsafe and left:
            rng.shuffle(left)
            token_ids.append(self._answer.unsafe)
            category_weight = weight * recipe.category_weight
            aims.append(Aim(len(token_ids) - 1, self._distribution(left), category_weight))
            while left:
                token_ids.append(left.pop(0))
                aims.append(
                    Aim(
                        len(token_ids) - 1,
                        self._distribution(left or [self._answer.end]),
                        category_weight * recipe.list_weight,
                    )
                )
        return Example(row.target, tuple(token_ids), tuple(aims))

    def _distribution(self, tokens: list[int]) -> Float32:
        target = np.zeros(len(self.head_token_ids), np.float32)
        target[[self._head_row[token] for token in tokens]] = 1 / len(tokens)
        return target


def shorten(conversation: Conversation, tokens: int, tokenizer: Tokenizer) -> Conversation:
    """At most about ``tokens`` tokens of content, for training only: the middle of a long message goes, the last
    message keeps at least two thirds of the room.
    """
    messages: list[Message] = []
    contents = [message.content.strip() for message in conversation.messages]
    lengths = [len(tokenizer.encode_text(content)) for content in contents]
    left = tokens
    for index in range(len(contents) - 1, -1, -1):
        earlier = sum(lengths[:index])
        room = left if index == 0 else max(left * 2 // 3, left - earlier)
        content = contents[index] if lengths[index] <= room else _without_middle(contents[index], room, tokenizer)
        if not content.strip():
            break
        messages.append(Message(conversation.messages[index].role, content))
        left -= min(room, lengths[index])
    return Conversation(tuple(reversed(messages)))


def _without_middle(content: str, room: int, tokenizer: Tokenizer) -> str:
    """The first five and last three eighths of ``room`` tokens, on two lines."""
    if room < 2:
        return ""
    ids = tokenizer.encode_text(content)
    head = max(1, room * 5 // 8)
    return f"{tokenizer.decode(ids[:head])}\n{tokenizer.decode(ids[head - room :])}"
