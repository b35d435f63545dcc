"""Every number of the training run, and the prompt and label tokens that it trains for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from guard.bundle.guard_format import AnswerTokens, GuardFormat
from guard.taxonomy import HAZARDS

#: One unambiguous token of SmolLM2's vocabulary for each category. Words near the category's meaning: the model reads
#: them back when it lists several categories.
CATEGORY_WORDS = {
    "S1": " violence",
    "S2": " crimes",
    "S3": " assault",
    "S4": " children",
    "S5": " reputation",
    "S6": " advice",
    "S7": " privacy",
    "S8": " copyright",
    "S9": " weapons",
    "S10": " hate",
    "S11": " suicide",
    "S12": " sexual",
    "S13": " elections",
}

#: The prompt is short because a model this small learns the categories from its training, not from a list that it
#: reads: frozen features of prompts with the list, with examples and without either were equally good
#: (docs/decisions/0050-embedded-guard.md).
FORMAT = GuardFormat(
    opening="<|im_start|>user\nIs the last {role} message safe or unsafe?\n",
    category_line="",
    conversation="\n",
    turn="{role}: {content}\n",
    closing="<|im_end|>\n<|im_start|>assistant\n",
    user_role="User",
    assistant_role="Agent",
    categories={code: HAZARDS[code].name for code in CATEGORY_WORDS},
    reads_custom_categories=False,
    answer=AnswerTokens(
        before_verdict=(),
        safe=2991,  # " safe"
        unsafe=20408,  # " unsafe"
        before_category=(),
        categories={
            "S1": 4737,
            "S2": 10371,
            "S3": 11905,
            "S4": 1122,
            "S5": 9748,
            "S6": 5042,
            "S7": 8351,
            "S8": 8822,
            "S9": 7921,
            "S10": 13735,
            "S11": 10847,
            "S12": 4287,
            "S13": 10947,
        },
        separator=(),
        end=2,  # <|im_end|>
    ),
)


@dataclass(frozen=True)
class Recipe:
    """How the shipped adapter was trained. ``minutes`` is wall-clock time: the learning rate falls to zero by then."""

    minutes: float = 62.0
    workers: int = 2
    seed: int = 1
    #: LoRA on every linear of the layers from ``first_layer`` on; the layers below run without gradients.
    first_layer: int = 8
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 6e-4
    warmup_steps: int = 30
    beta1: float = 0.9
    beta2: float = 0.98
    gradient_norm: float = 1.0
    #: Padded tokens a step, per worker.
    batch_tokens: int = 2048
    #: Most tokens of a conversation's contents; a share of the rows is cut later, so that long texts are seen too.
    short_tokens: int = 96
    long_tokens: int = 320
    long_share: float = 0.2
    weak_weight: float = 0.5
    category_weight: float = 0.5
    list_weight: float = 0.3
    hand_written_repeats: int = 4
    refusals: int = 700
    #: Most rows taken of a source: long or uniform sources would eat the time.
    source_caps: Mapping[str, int] = field(
        default_factory=lambda: {
            "self_instruct_t0": 1200,
            "gpteacher_codegen": 1800,
            "gsm8k": 1000,
            "commonsense_qa": 1800,
            "gptfuzz_response": 2200,
            "openfunction": 350,
            "xquad": 900,
            "gpteacher_roleplay": 1400,
            "gpteacher_toolformer": 800,
            "dolly": 1800,
            "mhc": 3000,
            "jailbreak_wrapped": 900,
            "sap200": 900,
        }
    )
