"""The guard prompt: conversation + policy -> segments -> token ids, byte for byte what the model was trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from guard.bundle.guard_format import AnswerTokens, GuardFormat
from guard.conversation import Conversation, Role, Target, check_moderation_turns
from guard.errors import InvalidInputError, UnsupportedError
from guard.policy import Policy
from guard.tokenizer import Segment, Tokenizer

#: Llama Guard 3 1B. Text: the chat template that ships with the model. Token ids: Meta's tokenizer.model (the
#: 20-token output head of its INT4 build has the same ids). "according our", the space before <|eot_id|> and before
#: each "-" are the original's.
LLAMA_GUARD_3_1B = GuardFormat(
    opening=(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        "Task: Check if there is unsafe content in '{role}' messages in conversations "
        "according our safety policy with the below categories.\n\n"
        "<BEGIN UNSAFE CONTENT CATEGORIES>\n"
    ),
    category_line="{code}: {name}\n",
    conversation="<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\n",
    turn="{role}: {content}\n\n",
    closing=(
        "<END CONVERSATION>\n\n"
        "Provide your safety assessment for ONLY THE LAST {role} message in the above conversation:\n"
        " - First line must read 'safe' or 'unsafe'.\n"
        " - If unsafe, a second line must include a comma-separated list of violated categories. "
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    ),
    user_role="User",
    assistant_role="Agent",
    categories={
        "S1": "Violent Crimes.",
        "S2": "Non-Violent Crimes.",
        "S3": "Sex Crimes.",
        "S4": "Child Exploitation.",
        "S5": "Defamation.",
        "S6": "Specialized Advice.",
        "S7": "Privacy.",
        "S8": "Intellectual Property.",
        "S9": "Indiscriminate Weapons.",
        "S10": "Hate.",
        "S11": "Self-Harm.",
        "S12": "Sexual Content.",
        "S13": "Elections.",
    },
    reads_custom_categories=True,
    answer=AnswerTokens(
        before_verdict=(271,),  # "\n\n"
        safe=19193,
        unsafe=39257,
        before_category=(198, 50),  # "\n", "S"
        categories={
            **{f"S{number}": 15 + number for number in range(1, 10)},
            "S10": 605,
            "S11": 806,
            "S12": 717,
            "S13": 1032,
        },
        separator=(21861,),  # ",S"
        end=128009,
    ),
)


@dataclass(frozen=True)
class GuardPrompt:
    """A rendered prompt. The first ``prefix_tokens`` ids depend on policy and target only: their KV can be reused."""

    token_ids: tuple[int, ...]
    prefix_tokens: int
    #: The conversation contained this format's delimiters or turn labels; they were defused (see ``defuse``).
    forged_delimiters: bool


class GuardPromptBuilder:
    """Builds the prompts of one guard model."""

    def __init__(self, guard_format: GuardFormat, tokenizer: Tokenizer) -> None:
        self._format = guard_format
        self._tokenizer = tokenizer
        self._forgery = _forgery_pattern(guard_format)
        # One prefix for each policy and target, asked for by every prompt.
        self._prefix_ids = lru_cache(maxsize=64)(tokenizer.encode)

    def build(self, conversation: Conversation, target: Target, policy: Policy) -> GuardPrompt:
        """Raises InvalidInputError naming the message or policy field, UnsupportedError for categories the model
        cannot read.
        """
        prefix, rest, forged = self._segments(conversation, target, policy)
        token_ids = self._tokenizer.encode([*prefix, *rest])
        shared = common_prefix(self._prefix_ids(tuple(prefix)), token_ids)
        return GuardPrompt(tuple(token_ids), shared, forged)

    def render(self, conversation: Conversation, target: Target, policy: Policy) -> str:
        """The prompt as text, to compare with a checkpoint's own template."""
        prefix, rest, _ = self._segments(conversation, target, policy)
        return "".join(segment.text for segment in (*prefix, *rest))

    def _segments(
        self, conversation: Conversation, target: Target, policy: Policy
    ) -> tuple[list[Segment], list[Segment], bool]:
        check_moderation_turns(conversation, target)
        judged = self._role_name(target.role)
        kept = judged_categories(self._format, policy)
        shown = kept if self._format.reads_custom_categories else self._format.categories
        prefix = [Segment(self._format.opening.replace("{role}", judged), trusted=True)]
        # Custom names are a caller's text, so category lines are not trusted to hold control tokens.
        prefix += [
            Segment(_fill(self._format.category_line, code=code, name=text), trusted=False)
            for code, text in shown.items()
        ]
        prefix.append(Segment(self._format.conversation, trusted=True))
        rest, forged = [], False
        for message in conversation.messages:
            content, found = self.defuse(message.content.strip())
            forged |= found
            rest.append(
                Segment(_fill(self._format.turn, role=self._role_name(message.role), content=content), trusted=False)
            )
        rest.append(Segment(self._format.closing.replace("{role}", judged), trusted=True))
        return prefix, rest, forged

    def _role_name(self, role: Role) -> str:
        return self._format.user_role if role is Role.USER else self._format.assistant_role

    def defuse(self, content: str) -> tuple[str, bool]:
        """Make text harmless that imitates the prompt's own structure; the flag says whether any did.

        ``<END CONVERSATION>`` becomes ``(END CONVERSATION)`` and a line that starts with a turn label ``Agent:``
        becomes ``Agent -``, so the prompt has exactly one of each delimiter and each turn label only where a turn
        begins. Texts without such parts, that is nearly all, are untouched, and the prompt stays byte-exact.
        """
        defused, count = self._forgery.subn(_defused, content)
        return defused, count > 0


def judged_categories(guard_format: GuardFormat, policy: Policy) -> dict[str, str]:
    """Code to prompt text of the categories that ``policy`` has the model judge, in prompt order.

    Raises InvalidInputError naming the policy's field, UnsupportedError for categories that the model cannot read.
    """
    known = dict(guard_format.categories)
    for custom in policy.custom_categories:
        if not guard_format.reads_custom_categories or custom.code not in guard_format.answer.categories:
            allowed = "no custom categories"
            if guard_format.reads_custom_categories:
                allowed = f"only the codes {', '.join(guard_format.answer.categories)}"
            raise UnsupportedError(f"policy.custom_categories: this model reads {allowed}")
        description = f" {custom.description.strip()}" if custom.description.strip() else ""
        known[custom.code] = f"{custom.name.strip().removesuffix('.')}.{description}"
    for name, codes in (
        ("excluded_categories", policy.excluded_categories),
        ("category_thresholds", policy.category_thresholds),
    ):
        unknown = sorted(set(codes) - set(known))
        if unknown:
            raise InvalidInputError(f"policy.{name}", f"this model has no category {unknown[0][:8]!r}")
    kept = {code: text for code, text in known.items() if code not in policy.excluded_categories}
    if not kept:
        raise InvalidInputError("policy.excluded_categories", "excludes every category")
    return kept


def _forgery_pattern(guard_format: GuardFormat) -> re.Pattern[str]:
    """Matches the format's ``<...>`` delimiters anywhere, and its turn labels at the start of any line."""
    trusted = guard_format.opening + guard_format.conversation + guard_format.closing
    delimiters = set(re.findall(r"<(/?[A-Z][A-Z ]+)>", trusted))
    alternatives = "|".join(r"\s+".join(map(re.escape, text.split())) for text in sorted(delimiters)) or r"(?!)"
    labels = f"{re.escape(guard_format.user_role)}|{re.escape(guard_format.assistant_role)}"
    return re.compile(
        rf"<\s*(?P<delimiter>{alternatives})\s*>|(?:(?<=\n)|(?<=\r)|^)(?P<label>[ \t]*(?:{labels}))[ \t]*:",
        re.IGNORECASE,
    )


def _defused(match: re.Match[str]) -> str:
    if match["delimiter"] is not None:
        return f"({match['delimiter']})"
    return f"{match['label']} -"


def _fill(pattern: str, **values: str) -> str:
    """Put values into ``{named}`` fields in one pass, so that a value is never searched for fields itself."""
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], pattern)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for index, (left, right) in enumerate(zip(first, second, strict=False)):
        if left != right:
            return index
    return min(len(first), len(second))
