"""What does a screen save? One server judges each row twice, in turns: with the screen first, and by the guard alone.

Reads labelled rows as guard eval does. What the screen passes on must get the score that it gets without one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.latency import cpu_model
from guard.bundle import read_manifest
from guard.cascade import Screening
from guard.client import Classification, GuardClient
from guard.conversation import Message
from guard.evaluation.rows import read_data, sample
from tools.server_process import ServerProcess

#: Scores of the same text may differ by this much: the prompt is computed in other chunks when more of it was kept.
_SAME_SCORE = 1e-3
Texts = Sequence[Sequence[Message]]


@dataclass(frozen=True)
class Result:
    """Counts of rows, and times in ms at the caller: of both together, of the guard alone, of the screen where it was
    sure. ``time_ratio`` is all time with the screen over all time without; ``same_verdict`` compares all rows,
    ``same_score`` those that the screen passed on.
    """

    cpu: str
    guard: str
    rows: int
    decided: int
    passed_on: int
    failed: int
    same_verdict: int
    same_score: int
    together_mean_ms: float
    together_p50_ms: float
    together_p95_ms: float
    alone_mean_ms: float
    alone_p50_ms: float
    alone_p95_ms: float
    decided_p50_ms: float | None
    time_ratio: float


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True, type=Path, metavar="DIR")
    parser.add_argument("--screen", required=True, metavar="DIR")
    parser.add_argument("--safe-below", required=True, metavar="P", help="the screen's SAFE stands below this score")
    parser.add_argument("--unsafe-above", default="1", metavar="P", help="its UNSAFE above this one (%(default)s)")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="rows, as for guard eval")
    parser.add_argument("--rows", type=int, default=100, metavar="N", help="a random sample (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample (%(default)s)")
    args = parser.parse_args()
    rows = sample(read_data(args.data).rows, args.rows, args.seed)
    guard = read_manifest(args.guard).name
    flags = ["--guard", str(args.guard), "--screen", args.screen]
    flags += ["--screen-safe-below", args.safe_below, "--screen-unsafe-above", args.unsafe_above]
    with ServerProcess(flags, {"GUARD_CACHE_ENTRIES": "0"}) as server, GuardClient(server.address) as client:
        print(json.dumps(asdict(measure(client, guard, [row.conversation.messages for row in rows]))))


def measure(client: GuardClient, guard: str, texts: Texts) -> Result:
    """Judge each of ``texts`` with the screen first, and by the model ``guard`` alone; who begins changes each time."""
    together: list[tuple[Classification, float]] = []
    alone: list[tuple[Classification, float]] = []
    for index, text in enumerate(texts):
        for screened in (True, False) if index % 2 else (False, True):
            (together if screened else alone).append(_timed(client, text, "" if screened else guard))
    decided = [seconds for answer, seconds in together if answer.screening is Screening.DECIDED]
    passed_on = [
        (answer, other)
        for (answer, _), (other, _) in zip(together, alone, strict=True)
        if answer.screening is Screening.PASSED_ON
    ]
    both = [seconds for _, seconds in together], [seconds for _, seconds in alone]
    return Result(
        cpu=cpu_model(),
        guard=guard,
        rows=len(texts),
        decided=len(decided),
        passed_on=len(passed_on),
        failed=sum(answer.screening is Screening.FAILED for answer, _ in together),
        same_verdict=sum(one.verdict is two.verdict for (one, _), (two, _) in zip(together, alone, strict=True)),
        same_score=sum(abs(one.unsafe_score - two.unsafe_score) < _SAME_SCORE for one, two in passed_on),
        together_mean_ms=_ms(statistics.mean(both[0])),
        together_p50_ms=_ms(_percentile(both[0], 0.5)),
        together_p95_ms=_ms(_percentile(both[0], 0.95)),
        alone_mean_ms=_ms(statistics.mean(both[1])),
        alone_p50_ms=_ms(_percentile(both[1], 0.5)),
        alone_p95_ms=_ms(_percentile(both[1], 0.95)),
        decided_p50_ms=_ms(_percentile(decided, 0.5)) if decided else None,
        time_ratio=round(sum(both[0]) / sum(both[1]), 3),
    )


def _timed(client: GuardClient, text: Sequence[Message], model: str) -> tuple[Classification, float]:
    began = time.perf_counter()
    answer = client.classify(list(text), model=model)
    return answer, time.perf_counter() - began


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[max(0, round(share * len(values)) - 1)]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


if __name__ == "__main__":
    main()
