"""The order of the categories is part of the prompt's bytes, so it must survive a manifest, whose keys are sorted."""

from __future__ import annotations

import json
from dataclasses import asdict

from guard.bundle.guard_format import GuardFormat
from guard.prompt import LLAMA_GUARD_3_1B


def test_category_order_survives_sorted_json() -> None:
    text = json.dumps(asdict(LLAMA_GUARD_3_1B), sort_keys=True)
    read = GuardFormat.from_json(json.loads(text), "guard")
    assert list(read.categories.items()) == list(LLAMA_GUARD_3_1B.categories.items())
    assert list(read.answer.categories.items()) == list(LLAMA_GUARD_3_1B.answer.categories.items())
