"""How well and how fast the instruct model tags: own short texts, probabilities calibrated and as the model gives them.

    python -m benchmarks.tagging --instruct DIR

The texts are in ``tagging.jsonl``. The prompt was chosen on the split ``dev``; ``test`` was not looked at for that.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guard.engine.settings import EngineSettings
from guard.runtime import load_instruct
from guard.tagger import Label, Tagger, Tagging, TagTask

TEXTS = Path(__file__).with_name("tagging.jsonl")
INSTRUCTIONS = {
    "topic": "Decide which team should answer the customer's message.",
    "sentiment": "Decide which sentiment the text expresses.",
    "language": "Decide in which language the text is written.",
}
LABELS = {
    "topic": (
        Label("billing", "Invoices, charges, payments and refunds."),
        Label("technical", "Errors, crashes and things that do not work."),
        Label("shipping", "Delivery, tracking and parcels."),
        Label("account", "Passwords, log-in and personal data."),
        Label("sales", "Prices, plans and questions before buying."),
    ),
    "sentiment": (Label("positive"), Label("negative"), Label("neutral")),
    "language": tuple(map(Label, ("English", "German", "French", "Spanish", "Italian"))),
}
#: About 50 tokens.
_LONG = (
    "I ordered two lamps on Monday and paid with my card, but until now I have only got one of them, and the invoice "
    "that came with the parcel says three. Number {number}. Could you please find out what went wrong and write to me?"
)
_BINS = 10


@dataclass(frozen=True)
class Quality:
    """Over ``texts`` texts: the share that got the right label, the expected calibration error of the probability of
    the label chosen (ten bins, Guo et al. 2017), and the mean negative log probability of the right label.
    """

    texts: int
    accuracy: float
    calibration_error: float
    log_loss: float


def main() -> None:
    """Prints a table of the quality, and the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instruct", required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tags", type=int, default=100, metavar="N", help="tags for the speed; 0 leaves it out")
    args = parser.parse_args()
    generator = load_instruct(args.instruct, EngineSettings(threads=args.threads))
    tagger = Tagger(generator)
    try:
        rows = [json.loads(line) for line in TEXTS.read_text("utf-8").splitlines()]
        print("| split | task | labels | texts | calibrated | accuracy | calibration error | log loss |")
        print("|---|---|---|---|---|---|---|---|")
        for split in ("dev", "test"):
            for name in LABELS:
                chosen = [row for row in rows if row["task"] == name and row["split"] == split]
                for calibrated in (False, True):
                    found = quality(tagger, name, chosen, calibrated)
                    print(
                        f"| {split} | {name} | {len(LABELS[name])} | {found.texts} | {'yes' if calibrated else 'no'} | "
                        f"{found.accuracy:.2f} | {found.calibration_error:.2f} | {found.log_loss:.2f} |"
                    )
        if args.tags:
            print(speed(tagger, args.tags))
    finally:
        generator.close()


def quality(tagger: Tagger, name: str, rows: Sequence[dict[str, str]], calibrated: bool) -> Quality:
    """Tag ``rows`` {text, label} and compare."""
    right: list[bool] = []
    confidence: list[float] = []
    losses: list[float] = []
    for row in rows:
        tagging = tagger.tag(
            TagTask(LABELS[name], text=row["text"], instruction=INSTRUCTIONS[name], calibrated=calibrated)
        )
        right.append(tagging.label == row["label"])
        confidence.append(tagging.scores[0].probability)
        losses.append(-np.log({score.name: score.probability for score in tagging.scores}[row["label"]]))
    bins = np.minimum((np.array(confidence) * _BINS).astype(int), _BINS - 1)
    error = sum(
        abs(np.mean(np.array(right)[bins == one]) - np.mean(np.array(confidence)[bins == one])) * np.mean(bins == one)
        for one in set(bins.tolist())
    )
    return Quality(len(rows), float(np.mean(right)), float(error), float(np.mean(losses)))


def speed(tagger: Tagger, count: int) -> str:
    """Tags a second of different texts of about 50 tokens with five described labels, the prompt's beginning cached.

    The processor time says what a quiet machine would take: other load on the machine adds nothing to it.
    """

    def task(number: int) -> TagTask:
        return TagTask(LABELS["topic"], text=_LONG.format(number=number), instruction=INSTRUCTIONS["topic"])

    tagger.tag(task(0))
    began, busy = time.perf_counter(), time.process_time()
    last: Tagging | None = None
    for number in range(1, count + 1):
        last = tagger.tag(task(number))
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    assert last is not None
    computed = last.prompt_tokens - last.cached_tokens
    return (
        f"\n{count / seconds:.1f} tags/s one after another, {1e3 * seconds / count:.1f} ms and "
        f"{1e3 * busy / count:.1f} ms of processor time each: {last.prompt_tokens} prompt tokens, {computed} computed"
    )


if __name__ == "__main__":
    main()
