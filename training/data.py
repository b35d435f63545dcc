"""Labelled rows: JSON lines from the user's files, and the few hundred that were written for this project."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from guard.conversation import Conversation, Message, Role, Target, check_moderation_turns
from guard.errors import InvalidInputError

HERE: Final = Path(__file__).parent
#: Texts and refusals written for this project (Apache-2.0): harmless questions with frightening words, plain questions
#: and statements in many languages, answers, and harmful texts beside them.
HAND_WRITTEN: Final = (HERE / "hand_written.jsonl", *sorted((HERE / "texts").glob("*.jsonl")))
REFUSALS: Final = HERE / "refusals.txt"
HAND_WRITTEN_SOURCE: Final = "hand_written"
#: Unsafe rows of these sources are posts, not requests: nobody refuses them.
POST_SOURCES: Final = frozenset({"hatecheck", "mhc", "davidson", "edos"})


@dataclass(frozen=True)
class Row:
    """A conversation whose last message was labelled. ``weak`` labels count less."""

    conversation: Conversation
    target: Target
    label: Literal["safe", "unsafe"]
    categories: tuple[str, ...]
    lang: str
    source: str
    weak: bool

    @property
    def unsafe(self) -> bool:
        """Whether the last message is unsafe."""
        return self.label == "unsafe"


def read_rows(path: Path) -> list[Row]:
    """Rows of a ``.jsonl`` or ``.jsonl.gz`` file.

    Fields: ``messages`` ([{"role": "user"|"assistant", "content"}]; the last one is judged), ``label``
    ("safe"|"unsafe"), and optionally ``categories``, ``lang``, ``source``, ``quality`` ("weak" counts less).
    Raises InvalidInputError naming the line.
    """
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        try:
            rows.append(_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, InvalidInputError) as error:
            raise InvalidInputError(f"{path.name}:{number}", f"not a labelled row ({type(error).__name__})") from None
    return rows


def hand_written_rows(paths: Iterable[Path] = HAND_WRITTEN) -> list[Row]:
    """The rows in ``paths``: JSON lines of lang, label, categories and either messages or text, a lone prompt."""
    rows = []
    for line in (line for path in paths for line in path.read_text(encoding="utf-8").splitlines()):
        value = json.loads(line)
        messages = value.get("messages") or [{"role": "user", "content": value["text"]}]
        rows.append(_row({**value, "messages": messages, "source": HAND_WRITTEN_SOURCE}))
    return rows


def refusal_rows(rows: Iterable[Row], count: int, rng: random.Random) -> list[Row]:
    """Safe responses: unsafe requests among ``rows``, each with one of our refusals after it."""
    refusals = REFUSALS.read_text(encoding="utf-8").splitlines()
    asked = [row for row in rows if row.unsafe and row.target is Target.PROMPT and row.source not in POST_SOURCES]
    chosen = rng.sample(asked, min(count, len(asked)))
    return [
        Row(
            Conversation((row.conversation.messages[-1], Message(Role.ASSISTANT, rng.choice(refusals)))),
            Target.RESPONSE,
            "safe",
            (),
            row.lang,
            HAND_WRITTEN_SOURCE,
            weak=False,
        )
        for row in chosen
    ]


def capped(rows: Iterable[Row], caps: Mapping[str, int]) -> list[Row]:
    """The first ``caps[source]`` rows of each source; sources without a cap whole."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.source] += 1
        if row.source not in caps or seen[row.source] <= caps[row.source]:
            kept.append(row)
    return kept


def _row(value: Mapping[str, Any]) -> Row:
    messages = tuple(Message(Role(message["role"]), message["content"]) for message in value["messages"])
    conversation = Conversation(messages)
    target = Target.PROMPT if messages[-1].role is Role.USER else Target.RESPONSE
    check_moderation_turns(conversation, target)
    if value["label"] not in ("safe", "unsafe"):
        raise ValueError("label")
    return Row(
        conversation,
        target,
        value["label"],
        tuple(value.get("categories", ())),
        value.get("lang", "en"),
        value.get("source", "data"),
        value.get("quality") == "weak",
    )
