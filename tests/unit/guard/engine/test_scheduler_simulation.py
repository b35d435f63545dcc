"""Seeded simulation: random arrivals, leavers, deadlines and failures, on a clock that only model steps move.

For each seed: no request is lost or answered twice; each text is the one that its prompt gets alone; the KV caches
never pass the budget, and nothing is held when all is done; a job that decodes waits at most one round (a step of all
that decode, and a chunk of about ``step_s``) for its next token; a caller who left, or is late, is told in the next
round; requests start in the order in which they came. More seeds: GUARDLET_SIMULATION_SEEDS=5000. Failure test 4.
Failure test 22.
"""

from __future__ import annotations

import os

import pytest

from guard.bundle import Bundle
from guard.tokenizer import Tokenizer
from tests.unit.guard.builders import write_bundle

from .simulated import Day
from .simulated_model import Clock

SEEDS = int(os.environ.get("GUARDLET_SIMULATION_SEEDS", "200"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", "instruct")


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_day(seed: int, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in ("engine.sequence", "engine.engine", "generator"):
        monkeypatch.setattr(f"guard.{module}.time", clock)
    letters = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control).encode_text("abc")
    day = Day(seed, bundle, letters, clock)
    day.run()
    assert day.complaints == []
