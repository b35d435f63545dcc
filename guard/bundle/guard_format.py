"""How one guard model is asked and how its answer is read: data, not code, so that each bundle carries its own.

The Llama Guard 3 1B instance is ``guard.prompt.LLAMA_GUARD_3_1B``; the embedded guard's comes from its adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from guard.bundle.fields import Fields

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
        fields = Fields(value, where)
        answer = Fields(fields.take_object("answer"), f"{where}.answer")
        result = cls(
            opening=fields.take(str, "opening"),
            category_line=fields.take(str, "category_line"),
            conversation=fields.take(str, "conversation"),
            turn=fields.take(str, "turn"),
            closing=fields.take(str, "closing"),
            user_role=fields.take(str, "user_role"),
            assistant_role=fields.take(str, "assistant_role"),
            categories=_by_code(fields.take_map(str, "categories")),
            reads_custom_categories=fields.take(bool, "reads_custom_categories"),
            answer=AnswerTokens(
                before_verdict=answer.take_tuple(int, "before_verdict"),
                safe=answer.take(int, "safe"),
                unsafe=answer.take(int, "unsafe"),
                before_category=answer.take_tuple(int, "before_category"),
                categories=_by_code(answer.take_map(int, "categories")),
                separator=answer.take_tuple(int, "separator"),
                end=answer.take(int, "end"),
            ),
        )
        answer.finish()
        fields.finish()
        return result


def _by_code(categories: dict[str, T]) -> dict[str, T]:
    """S1 to S9 before S10: the order of the prompt, which a manifest's sorted keys do not keep."""
    return dict(sorted(categories.items(), key=lambda item: (len(item[0]), item[0])))
