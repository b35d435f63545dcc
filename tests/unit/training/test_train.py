"""One tiny run from rows to an adapter (needs torch: the reference extra)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export.checkpoint import open_checkpoint
from export.synthetic import TINY, make_checkpoint
from guard.conversation import Conversation, Message, Role, Target
from training.data import Row, hand_written_rows
from training.recipe import FORMAT, Recipe

torch = pytest.importorskip("torch")
train = pytest.importorskip("training.train")

#: Label tokens and control tokens of a tiny Llama 3 style vocabulary in the place of SmolLM2's.
TINY_FORMAT = replace(
    FORMAT,
    opening="Is the last {role} message safe or unsafe?\n",
    closing="Answer:\n",
    answer=replace(
        FORMAT.answer,
        safe=1,
        unsafe=2,
        end=3,
        categories={code: 4 + index for index, code in enumerate(FORMAT.categories)},
    ),
)
RECIPE = replace(
    Recipe(),
    minutes=1 / 600,
    workers=1,
    first_layer=1,
    rank=2,
    alpha=4,
    warmup_steps=1,
    batch_tokens=256,
    learning_rate=0.01,
)


def _rows() -> list[Row]:
    def row(text: str, unsafe: bool) -> Row:
        conversation = Conversation((Message(Role.USER, text),))
        categories = ("S2",) if unsafe else ()
        return Row(conversation, Target.PROMPT, "unsafe" if unsafe else "safe", categories, "en", "t", weak=False)

    return [
        row(f"{'steal' if unsafe else 'bake'} it {number}", unsafe) for number in range(8) for unsafe in (True, False)
    ]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(train, "FORMAT", TINY_FORMAT)
    path = make_checkpoint(tmp_path / "base", replace(TINY, rope_scaling=None))
    return train.Trainer(str(path), _rows(), RECIPE)


def _loss(trainer: Any) -> float:
    (batch,) = trainer._batches(trainer.rows[:4], random.Random(0))
    return float(trainer._gradients(batch)[0])


def test_updates_lower_the_loss_and_the_adapter_round_trips(
    trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.adam, "_elapsed", lambda: 0.0)
    before = _loss(trainer)
    rng = random.Random(0)
    for _ in range(8):
        for batch in trainer._batches(trainer.rows, rng):
            loss, gradients = trainer._gradients(batch)
            trainer.adam.update(gradients, rows=len(batch), tokens=1, loss=loss)
    after = _loss(trainer)
    assert after < 0.8 * before

    trainer.save(tmp_path / "adapter", "tiny")
    adapted = open_checkpoint(str(tmp_path / "base"), adapter=tmp_path / "adapter")
    assert adapted.guard_format == TINY_FORMAT
    again = train.Trainer(str(tmp_path / "base"), trainer.rows, RECIPE)
    assert _loss(again) == pytest.approx(before, rel=0.2)
    again.resume(tmp_path / "adapter")
    assert _loss(again) == pytest.approx(after, rel=0.02)


def test_a_worker_stops_when_the_time_is_over(trainer: Any) -> None:
    trainer.adam.start()
    threads = torch.get_num_threads()
    try:
        trainer.work(0)
    finally:
        torch.set_num_threads(threads)
    assert trainer.adam.finished()
    assert "steps" in trainer.adam.progress()


def test_the_learning_rate_is_zero_at_the_end(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.adam.start()
    monkeypatch.setattr(trainer.adam, "_elapsed", lambda: 1.0)
    before = trainer.head.detach().clone()
    trainer.adam.update([torch.ones_like(p) for p in trainer.adam.parameters], rows=1, tokens=1, loss=1.0)
    assert torch.equal(trainer.head.detach(), before)


def test_rows_mix_the_users_the_projects_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"messages": [{"role": "user", "content": "ask"}], "label": "unsafe", "source": "mine"}\n'
        '{"messages": [{"role": "user", "content": "hello"}], "label": "safe", "source": "mine"}\n'
    )
    rows = train.training_rows([path], replace(Recipe(), hand_written_repeats=1, refusals=5))
    assert sum(row.source == "mine" for row in rows) == 2
    own = [row for row in hand_written_rows() if row.target is Target.RESPONSE]
    (refused,) = [row for row in rows if row.target is Target.RESPONSE and row not in own]
    assert not refused.unsafe
    assert sum(row.source == "hand_written" for row in rows) > 500
