"""JSON lines in, JSON lines out, in batches over gRPC: python examples/bulk.py [ADDRESS] < texts.jsonl > verdicts.jsonl

A line in is {"text": "..."}; a line out has its verdict, or its error and no verdict. For large files, with resume and
progress, there is `guard bulk`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from guard.client import Classification, GuardClient, GuardClientError, ServerBusyError, ServerUnavailableError

BATCH = 64
TRIES = 5
Outcome = Classification | GuardClientError


def judged(client: GuardClient, texts: list[str]) -> list[Outcome]:
    """One outcome a text. An item that failed is tried again where that can help, without those that did not."""
    outcomes: list[Outcome | None] = [None] * len(texts)
    for attempt in range(TRIES):
        waiting = [index for index, outcome in enumerate(outcomes) if outcome is None or can_be_repeated(outcome)]
        if not waiting:
            break
        if attempt:
            time.sleep(max(getattr(outcomes[index], "retry_after_s", None) or 1.0 for index in waiting))
        found: Iterable[Outcome]
        try:
            found = client.batch_classify([texts[index] for index in waiting])
        except GuardClientError as error:  # of the batch as a whole
            found = [error] * len(waiting)
        for index, outcome in zip(waiting, found, strict=True):
            outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def can_be_repeated(outcome: Outcome) -> bool:
    return isinstance(outcome, ServerBusyError | ServerUnavailableError)


def line(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, GuardClientError):
        return {"error": outcome.reason}
    return {"verdict": outcome.verdict.value, "unsafe_score": round(outcome.unsafe_score, 4)}


def batches(lines: Iterable[str]) -> Iterator[list[str]]:
    texts = (json.loads(each)["text"] for each in lines)
    while batch := list(islice(texts, BATCH)):
        yield batch


def main(address: str) -> int:
    with GuardClient(address, timeout_s=120) as client:
        for texts in batches(sys.stdin):
            for outcome in judged(client, texts):
                print(json.dumps(line(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or ["127.0.0.1:50051"]))
