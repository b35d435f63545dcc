"""Rows from the hate speech dataset of a white supremacy forum (de Gibert et al., ALW2 2018, CC-BY-SA-3.0):
``python -m training.stormfront CLONE > stormfront.jsonl``, CLONE being one of github.com/Vicomtech/hate-speech-dataset.

The sentences of a post are joined; it is unsafe (S10) when one of them was labelled as hate. Argumentative posts that
are not hateful are what the other sources lack.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections import defaultdict
from pathlib import Path

#: The longest harmless posts and any hateful ones, so many of each.
_SAFE, _UNSAFE = 1300, 700
_SHORTEST = 25  # characters
_LONG_ENOUGH = 300


def posts(clone: Path) -> tuple[list[str], list[str]]:
    """The texts of harmless and of hateful posts."""
    sentences: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    with (clone / "annotations_metadata.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["label"] in ("hate", "noHate"):
                post, _, number = row["file_id"].rpartition("_")
                text = (clone / "all_files" / f"{row['file_id']}.txt").read_text(encoding="utf-8").strip()
                sentences[post].append((int(number), row["label"], text))
    safe: list[str] = []
    unsafe: list[str] = []
    for parts in sentences.values():
        text = " ".join(text for _, _, text in sorted(parts))
        if len(text) >= _SHORTEST:
            (unsafe if any(label == "hate" for _, label, _ in parts) else safe).append(text)
    return safe, unsafe


def main() -> None:
    """Write the rows to standard output."""
    parser = argparse.ArgumentParser(description="Rows from the hate speech dataset of a white supremacy forum.")
    parser.add_argument("clone", type=Path, help="a clone of Vicomtech/hate-speech-dataset")
    safe, unsafe = posts(parser.parse_args().clone)
    random.seed(0)
    random.shuffle(safe)
    random.shuffle(unsafe)
    safe.sort(key=lambda text: -min(len(text), _LONG_ENOUGH))
    for texts, label, quality in (safe[:_SAFE], "safe", "weak"), (unsafe[:_UNSAFE], "unsafe", "human"):
        for text in texts:
            row = {"messages": [{"role": "user", "content": text}], "label": label, "lang": "en", "quality": quality}
            print(json.dumps({**row, "categories": ["S10"] if label == "unsafe" else [], "source": "stormfront"}))


if __name__ == "__main__":
    main()
