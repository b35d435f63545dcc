"""How one guard model is asked and how its answer is read: data, not code, so that each bundle carries its own.

The Llama Guard 3 1B instance is ``guard.prompt.LLAMA_GUARD_3_1B``; the embedded guard's comes from its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from guard.bundle.fields import read_object

T = TypeVar("T")


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids of the answer protocol.

    The model is prefilled with ``prompt + before_verdict + (unsafe,) + before_category``. Logits after the last token
    of ``prompt + before_verdict`` give P(unsafe) = softmax over {unsafe, safe}; logits after the last token of the
    whole give the distribution of the first listed category. The exact mode decodes greedily instead:
    ``before_verdict, safe|unsafe, before_category, category, (separator, category)*, end``.
    """

    before_verdict: tuple[int, ...]
    safe: int
    unsafe: int
    before_category: tuple[int, ...]
    categories: Mapping[str, int]
    separator: tuple[int, ...]
    end: int

    def head_token_ids(self) -> tuple[int, ...]:
        """The only token ids whose logits a guard ever reads, ascending: the rows of a pruned LM head."""
        ids = {*self.before_verdict, self.safe, self.unsafe, *self.before_category, *self.separator, self.end}
        return tuple(sorted(ids | set(self.categories.values())))


@dataclass(frozen=True)
class GuardFormat:
    """The guard prompt as pieces of text around the conversation.

    Rendered: ``opening.format(role) + category lines + conversation + turns + closing.format(role)`` where each
    category line is ``category_line.format(code, name)`` and each turn ``turn.format(role, content)``; only
    ``str.replace`` of the named fields is used, never ``str.format`` on user text. Control tokens may be written in
    ``opening``, ``conversation`` and ``closing`` only; those are trusted text.
    """

    opening: str
    category_line: str
    conversation: str
    turn: str
    closing: str
    user_role: str
    assistant_role: str
    categories: Mapping[str, str]
    #: False when the model was trained on one fixed category list and does not read others from its prompt.
    reads_custom_categories: bool
    answer: AnswerTokens

    @classmethod
    def from_json(cls, value: Any, where: str) -> GuardFormat:
        """Parse the JSON object at ``where``; raises BundleError naming the field that is wrong."""
        return read_object(cls, value, where).in_order()

    def in_order(self) -> GuardFormat:
        """With S1 to S9 before S10: the order of the prompt, which a manifest's sorted keys do not keep."""
        answer = replace(self.answer, categories=_by_code(self.answer.categories))
        return replace(self, categories=_by_code(self.categories), answer=answer)


def _by_code(categories: Mapping[str, T]) -> dict[str, T]:
    return dict(sorted(categories.items(), key=lambda item: (len(item[0]), item[0])))
