"""The benchmark of agreement counts what it says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from benchmarks.agreement import agreement, read_tasks
from guard.conversation import Role, Target
from guard.engine.kv_cache import Float32
from guard.testing import logits_for
from tests.unit.guard.builders import SEPARATOR
from tests.unit.guard.scripted import BAD_WORD, ROWS, answers, started


def rows(path: Path, *texts: str) -> Path:
    lines = [{"messages": [{"role": "user", "content": text}], "label": "safe"} for text in texts]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


def test_rows_are_read(tmp_path: Path) -> None:
    (task,) = read_tasks(rows(tmp_path / "rows.jsonl.gz", "a\u2028b"))
    assert task.target is Target.PROMPT
    assert [(message.role, message.content) for message in task.conversation.messages] == [(Role.USER, "a\u2028b")]


def test_agreement_is_counted(tmp_path: Path) -> None:
    tasks = read_tasks(rows(tmp_path / "rows.jsonl.gz", BAD_WORD, "bread", "garbled", f"{BAD_WORD} again"))

    def answer(seen: tuple[int, ...]) -> Float32:
        garbled = bytes(ord(letter) - ord("!") for letter in "garbled") in bytes(token for token in seen if token < 256)
        # Neither safe nor unsafe: the one pass compares the two all the same, the exact mode refuses.
        return logits_for({SEPARATOR: 5.0}, ROWS) if garbled and seen[-1] == 290 else answers(seen)

    with started(tmp_path / "bundle", answer) as (classifier, _):
        found = agreement(classifier, tasks)
    assert (found.rows, found.unreadable, found.same_verdict, found.unsafe) == (4, 1, 3, 2)
    assert found.same_categories == 0  # the list has S10 too, which the one pass does not see
    assert (found.together_same_verdict, found.largest_score_difference) == (4, 0.0)
