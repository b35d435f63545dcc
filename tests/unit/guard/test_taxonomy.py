from __future__ import annotations

from guard.prompt import LLAMA_GUARD_3_1B
from guard.taxonomy import HAZARDS

OPENAI = {
    "harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm",
    "self-harm/instructions", "self-harm/intent", "sexual", "sexual/minors", "violence", "violence/graphic",
}  # fmt: skip


def test_codes_are_in_order_and_cover_the_model() -> None:
    assert list(HAZARDS) == [f"S{number}" for number in range(1, 15)]
    assert list(LLAMA_GUARD_3_1B.categories) == list(HAZARDS)[:13]


def test_openai_names_are_real() -> None:
    assert {name for hazard in HAZARDS.values() for name in hazard.openai} <= OPENAI
