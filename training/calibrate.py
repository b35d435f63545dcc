"""Move and scale the verdict's logit: ``python -m training.calibrate --checkpoint MODEL --adapter DIR --rows DEV``.

The head has no bias, so both are folded into the two verdict rows. For the margin z = (unsafe row - safe row) . h of
normed features h, the new margin is scale * (z - boundary). The boundary is where F1 on the rows is highest, so that
0.5 is a sensible threshold; the scale makes scores as likely as they say (temperature scaling, arXiv:1706.04599).
The shift needs a direction u with u . h = 1 on every text: final RMSNorm features have one, fitted by ridge regression.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from guard.conversation import Target
from guard.evaluation.metrics import Bools, Floats, precision_recall
from training.adapter_files import write_guard
from training.data import Row, read_rows
from training.recipe import FORMAT, Recipe
from training.train import Trainer

#: Scales that are tried: from four times less to twice as confident.
_SCALES = np.geomspace(0.25, 2.0, 61)
_RIDGE = 1e-3
_BATCH = 32


def verdict_features(trainer: Trainer, rows: Sequence[Row]) -> Floats:
    """Normed features [rows, hidden] at the last prompt token, long contents shortened as in training."""
    recipe, rng = trainer.recipe, random.Random(0)
    examples = [trainer.prompts.example(row, recipe.long_tokens, recipe, rng) for row in rows]
    result: Floats = np.empty((len(rows), trainer.head.shape[1]))
    for target in Target:
        order = [index for index, example in enumerate(examples) if example.role is target]
        order.sort(key=lambda index: len(examples[index].token_ids))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            result[chosen] = trainer.features([examples[index] for index in chosen], first_aim_only=True).numpy()
    return result


def constant_direction(features: Floats) -> Floats:
    """u [hidden] with features @ u close to 1: ridge regression, relative to the features' mean square."""
    gram = features.T @ features
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    solution: Floats = np.linalg.solve(gram, features.sum(0))
    return solution


def best_boundary(margins: Floats, unsafe: Bools) -> float:
    """The margin at and above which flagging gives the highest F1: halfway to the next lower one of these rows."""
    thresholds, precision, recall = precision_recall(unsafe, margins)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros(len(both)), where=both > 0)
    best = int(np.argmax(f1))
    return float(thresholds[best : best + 2].mean())


def best_scale(margins: Floats, unsafe: Bools) -> float:
    """The scale with the lowest log loss of sigmoid(scale * margin)."""
    signed = np.where(unsafe, margins, -margins)
    losses = [np.logaddexp(0, -scale * signed).mean() for scale in _SCALES]
    return float(_SCALES[int(np.argmin(losses))])


def moved(
    head: npt.NDArray[np.float32], safe: int, unsafe: int, direction: Floats, boundary: float, scale: float
) -> npt.NDArray[np.float32]:
    """``head`` [rows, hidden] with the margin of rows ``unsafe`` and ``safe`` scaled about ``boundary``."""
    middle = (head[unsafe] + head[safe]) / 2
    half = scale * ((head[unsafe] - head[safe]) - boundary * direction) / 2
    result = head.copy()
    result[unsafe], result[safe] = middle + half, middle - half
    return result


def main() -> None:
    """Read the arguments, fit, rewrite the adapter's head."""
    parser = argparse.ArgumentParser(description="Calibrate an embedded guard's verdict.")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--adapter", type=Path, required=True, help="rewritten in place")
    parser.add_argument("--rows", type=Path, required=True, help="rows that were not trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)  # see training.train: threads wait for each other where other work runs
    rows = read_rows(args.rows)
    trainer = Trainer(args.checkpoint, rows, Recipe())
    trainer.resume(args.adapter)
    features = verdict_features(trainer, rows)
    head = trainer.head.detach().numpy()
    ids = trainer.prompts.head_token_ids
    safe, unsafe = ids.index(FORMAT.answer.safe), ids.index(FORMAT.answer.unsafe)
    labels = np.array([row.unsafe for row in rows])
    margins = features @ (head[unsafe] - head[safe])
    boundary = best_boundary(margins, labels)
    scale = best_scale(margins - boundary, labels)
    direction = constant_direction(features)
    write_guard(args.adapter, FORMAT, ids, moved(head, safe, unsafe, direction, boundary, scale))
    spread = float((features @ direction).std())
    print(json.dumps({"boundary": round(boundary, 3), "scale": round(scale, 3), "spread_of_u": round(spread, 4)}))


if __name__ == "__main__":
    main()
