"""Does the same text get the same verdict in the one-pass and the exact mode, and alone as beside others?

Reads labelled rows as guard eval does. Every row is judged alone in both modes, then all rows again together.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from guard.classifier import Classifier, ClassifyTask
from guard.engine.settings import EngineSettings
from guard.errors import ModelOutputError
from guard.evaluation.rows import read_data
from guard.runtime import load_guard
from guard.verdict import Judgement, Verdict


@dataclass(frozen=True)
class Agreement:
    """Counts of rows. ``same_verdict`` and ``same_categories`` (of those unsafe in both, the flagged ones) compare the
    modes; ``unreadable`` is what the exact mode refused. ``largest_score_difference`` is alone against together.
    """

    rows: int
    same_verdict: int
    unsafe: int
    same_categories: int
    unreadable: int
    together_same_verdict: int
    largest_score_difference: float


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True, metavar="DIR")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="rows, as for guard eval")
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="the first so many (%(default)s)")
    args = parser.parse_args()
    classifier = load_guard(args.guard, EngineSettings(max_queued=args.rows))
    try:
        print(json.dumps(asdict(agreement(classifier, read_tasks(args.data)[: args.rows]))))
    finally:
        classifier.close()


def agreement(classifier: Classifier, tasks: Sequence[ClassifyTask]) -> Agreement:
    """Judge every task alone in both modes and together with the others; the engine's queue must hold them all."""
    alone = [classifier.classify(task) for task in tasks]
    exact = [_exact(classifier, task) for task in tasks]
    tickets = [classifier.submit(task) for task in tasks]
    together = [ticket.future.result() for ticket in tickets]
    pairs = [(one, other) for one, other in zip(alone, exact, strict=True) if other is not None]
    unsafe = [pair for pair in pairs if all(judgement.verdict is Verdict.UNSAFE for judgement in pair)]
    return Agreement(
        rows=len(tasks),
        same_verdict=sum(one.verdict is other.verdict for one, other in pairs),
        unsafe=len(unsafe),
        same_categories=sum(_flagged(one) == _flagged(other) for one, other in unsafe),
        unreadable=len(tasks) - len(pairs),
        together_same_verdict=sum(one.verdict is other.verdict for one, other in zip(alone, together, strict=True)),
        largest_score_difference=max(_differences(zip(alone, together, strict=True)), default=0.0),
    )


def read_tasks(path: Path) -> list[ClassifyTask]:
    """One task a row; raises what ``read_data`` raises."""
    return [ClassifyTask(row.conversation, row.target) for row in read_data(path).rows]


def _exact(classifier: Classifier, task: ClassifyTask) -> Judgement | None:
    try:
        return classifier.classify(replace(task, mode="exact"))
    except ModelOutputError:
        return None


def _flagged(judgement: Judgement) -> set[str]:
    return {category.code for category in judgement.categories if category.flagged}


def _differences(pairs: Iterable[tuple[Judgement, Judgement]]) -> Iterable[float]:
    for one, other in pairs:
        yield abs(one.unsafe_score - other.unsafe_score)
        scores = {category.code: category.score for category in other.categories}
        yield from (abs(category.score - scores[category.code]) for category in one.categories)


if __name__ == "__main__":
    main()
