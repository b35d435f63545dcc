"""Rows written for these tests, a predictor whose answers a test chooses, and a tiny guard that runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from export.pipeline import ExportRequest, export_model
from export.synthetic import TINY, make_checkpoint
from export.synthetic_adapter import make_adapter
from guard.conversation import Conversation, Message, Role, Target
from guard.evaluation.predictions import Judge, Prediction
from guard.evaluation.rows import DataSet, Row, row_key

JUDGE = Judge("fake", "ab" * 32, "none", "one_pass")


def row(
    text: str,
    *,
    unsafe: bool = False,
    categories: tuple[str, ...] = (),
    lang: str = "en",
    source: str = "",
    number: int = 1,
) -> Row:
    """One prompt."""
    conversation = Conversation((Message(Role.USER, text),))
    key = row_key(conversation, Target.PROMPT)
    return Row(key, number, conversation, Target.PROMPT, unsafe, categories, lang, source)


def data_set(*rows: Row) -> DataSet:
    """``rows`` as if read from a file."""
    return DataSet("rows.jsonl", "cd" * 32, rows, ())


def scored(score: float, *codes: str) -> Prediction:
    """A prediction with ``codes`` leading in order."""
    return Prediction(score, {code: score / 2 ** (place + 1) for place, code in enumerate(codes)})


class FakePredictor:
    """Asks ``answer`` about each row's text and keeps what it was asked."""

    def __init__(self, answer: Callable[[str], Prediction], judge: Judge = JUDGE) -> None:
        self.judge = judge
        self.asked: list[str] = []
        self._answer = answer

    def predict(self, rows: Sequence[Row]) -> Iterator[tuple[Row, Prediction]]:
        for each in rows:
            text = each.conversation.messages[-1].content
            self.asked.append(text)
            yield each, self._answer(text)


def write_jsonl(path: Path, values: Sequence[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def prompts(count: int) -> list[dict[str, Any]]:
    """Labelled prompts in the shape of the default columns, every third one unsafe."""
    return [
        {
            "messages": [{"role": "user", "content": f"Question {index} about the weather in town {index % 7}"}],
            "label": "safe" if index % 3 else "unsafe",
            "categories": [] if index % 3 else ["S1"],
            "lang": "en" if index % 2 else "de",
            "source": "made",
        }
        for index in range(count)
    ]


def make_tiny_guard(directory: Path) -> Path:
    """A guard bundle with random weights."""
    checkpoint = make_checkpoint(directory / "checkpoint", TINY, seed=1)
    adapter = make_adapter(directory / "adapter", TINY, (checkpoint / "tokenizer.json").read_bytes(), seed=3)
    request = ExportRequest(
        source=str(checkpoint),
        out=directory / "bundle",
        task="guard",
        quantization="none",
        adapter=adapter,
        name="tiny-guard",
        parity=False,
    )
    export_model(request)
    return request.out
