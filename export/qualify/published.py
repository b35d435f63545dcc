"""What others have published about Llama Guard 3 1B, as data with its sources."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

#: How far outside the published range a bootstrap interval may end: subsets and label rules differ by a few points.
TOLERANCE = 0.03


@dataclass(frozen=True)
class PublishedScore:
    """F1 (lowest and highest published) and false-positive rate on one benchmark."""

    benchmark: str
    judged: str
    f1: tuple[float, float]
    false_positive_rate: float | None
    source: str

    def agrees(self, interval: tuple[float, float]) -> bool:
        """Whether a measured F1's interval meets the published range, widened by TOLERANCE."""
        return interval[0] <= self.f1[1] + TOLERANCE and interval[1] >= self.f1[0] - TOLERANCE


def published_scores() -> dict[str, PublishedScore]:
    """By benchmark."""
    value = json.loads((resources.files(__package__) / "published_scores.json").read_text(encoding="utf-8"))
    scores = [PublishedScore(**{**score, "f1": tuple(score["f1"])}) for score in value["scores"]]
    return {score.benchmark: score for score in scores}
