"""What it costs to judge a text while it is being written, by its length.

Two ways with the same checkpoints: StreamClassify's session, which keeps the KV cache of the text and computes what is
new, and judging the whole text again at every checkpoint. Counts the tokens that the model computed and the seconds it
ran; writes ``stream_cost.json``, ``.md`` and ``.svg``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.chart import Line, Panel, chart
from benchmarks.latency import cpu_model
from guard.bundle import open_bundle
from guard.classifier import Classifier, ClassifyTask
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.decode_batch import DecodeBatch
from guard.engine.engine import Engine
from guard.engine.kv_cache import Float32, KvCache
from guard.engine.runner import Runner, load_runner
from guard.engine.settings import EngineSettings
from guard.policy import Policy
from guard.streaming import StreamTask
from guard.tokenizer import Tokenizer
from guard.verdict import Verdict

_SENTENCE = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "
_QUESTION = Message(Role.USER, "Tell me what happened in town.")
#: Nothing reaches a score of 1, so no check ends a stream early.
_POLICY = Policy(threshold=1.0)
_EVERY = 64


class CountingRunner:
    """A runner that counts the ``tokens`` it computed and the ``seconds`` that took."""

    def __init__(self, runner: Runner) -> None:
        self.shape, self.rows = runner.shape, runner.rows
        self.tokens, self.seconds = 0, 0.0
        self._runner = runner

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        """One step."""
        started = time.perf_counter()
        logits = self._runner.forward(cache, token_ids, wanted)
        self.seconds += time.perf_counter() - started
        self.tokens += len(token_ids)
        return logits

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        """Never needed: a verdict takes no decode step."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cost:
    """Model work for a text of ``text_tokens`` that was judged at ``checks`` checkpoints."""

    text_tokens: int
    checks: int
    stream_tokens: int
    stream_s: float
    again_tokens: int
    again_s: float


@dataclass(frozen=True)
class Result:
    """Everything measured, and on what."""

    cpu: str
    model: str
    every_tokens: int
    costs: tuple[Cost, ...]


def main() -> None:
    """Measures, writes the three files and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guard", required=True, metavar="DIR", help="bundle of the guard model")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the files")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[128, 256, 512, 1024, 2048], metavar="N", help="lengths of the text"
    )
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="0 is the container's CPU quota")
    args = parser.parse_args()
    bundle = open_bundle(args.guard)
    runner = CountingRunner(load_runner(bundle, args.threads))
    tokenizer = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
    classifier = Classifier(bundle, runner, Engine(runner, EngineSettings(), "benchmark"))
    list(stream(classifier, _SENTENCE))  # the fixed prompt is computed once, for both
    costs = tuple(measure(classifier, runner, tokenizer, length) for length in args.tokens)
    classifier.close()
    model = f"{bundle.manifest.name} ({bundle.manifest.quantization.name})"
    result = Result(f"{len(os.sched_getaffinity(0))} x {cpu_model()}", model, _EVERY, costs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "stream_cost.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    (args.out / "stream_cost.md").write_text(document(result), encoding="utf-8")
    (args.out / "stream_cost.svg").write_text(figure(result), encoding="utf-8")
    print(table(result))


def measure(classifier: Classifier, runner: CountingRunner, tokenizer: Tokenizer, length: int) -> Cost:
    """The cost of a text of about ``length`` tokens, both ways, at the same places."""
    spans = tokenizer.spans(_SENTENCE * (length // 8))
    text = (_SENTENCE * (length // 8))[: spans[length - 1][1]]
    before = runner.tokens, runner.seconds
    places = list(stream(classifier, text))
    between = runner.tokens, runner.seconds
    for place in places:
        judge_again(classifier, text[:place])
    after = runner.tokens, runner.seconds
    (stream_tokens, again_tokens), (stream_s, again_s) = (
        [later[which] - earlier[which] for earlier, later in pairwise((before, between, after))] for which in (0, 1)
    )
    return Cost(length, len(places), int(stream_tokens), stream_s, int(again_tokens), again_s)


def stream(classifier: Classifier, text: str) -> Iterator[int]:
    """Stream ``text``; yields the checkpoints, in characters."""
    task = StreamTask((_QUESTION,), Target.RESPONSE, _POLICY, every_tokens=_EVERY)
    session = classifier.stream(task)
    try:
        session.add(text)
        while (ticket := session.next_check() or session.check_rest()) is not None:
            yield ticket.future.result().judged
        if session.result().verdict is not Verdict.SAFE:
            raise RuntimeError("the benchmark's text must not be flagged")
    finally:
        session.close()


def judge_again(classifier: Classifier, text: str) -> None:
    """What a caller without StreamClassify does: Classify all the text there is."""
    conversation = Conversation((_QUESTION, Message(Role.ASSISTANT, text)))
    classifier.classify(ClassifyTask(conversation, Target.RESPONSE, _POLICY))


def table(result: Result) -> str:
    """Markdown."""
    lines = [
        "| tokens of text | checks | computed, streamed | computed, again | ratio | s, streamed | s, again |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {cost.text_tokens:,} | {cost.checks} | {cost.stream_tokens:,} | {cost.again_tokens:,}"
        f" | {cost.again_tokens / cost.stream_tokens:.1f} | {cost.stream_s:.2f} | {cost.again_s:.2f} |"
        for cost in result.costs
    ]
    return "\n".join(lines)


def document(result: Result) -> str:
    """The table, how to read it and how to repeat it."""
    first, last = result.costs[0], result.costs[-1]
    each = (last.stream_tokens - first.stream_tokens) / (last.text_tokens - first.text_tokens)
    return f"""# The cost of StreamClassify

A text is judged every {result.every_tokens} tokens while it is being written. Streamed: the KV cache keeps policy,
conversation and text, so a check computes the new tokens and the prompt's closing. Again: Classify on the whole text at
the same places; only the fixed start of the prompt is reused.

{result.model} on {result.cpu}. Token counts are exact; seconds depend on the machine and on what else it does.

![tokens computed and seconds by length of the text](stream_cost.svg)

{table(result)}

Streamed, a token of text costs {each:.2f} computed tokens, however long the text is: the work is linear. Judged again,
it grows with the square of the length.

Repeat: `python -m benchmarks.stream_cost --guard models/embedded-guard --out docs/benchmarks`
"""


def figure(result: Result) -> str:
    """SVG: tokens computed, and seconds."""
    panels = []
    for title, streamed, again in (
        ("tokens computed", "stream_tokens", "again_tokens"),
        ("seconds of model time", "stream_s", "again_s"),
    ):
        lines = [
            Line(name, color, [(cost.text_tokens, float(getattr(cost, field))) for cost in result.costs])
            for name, color, field in (("judged again", "#c0392b", again), ("StreamClassify", "#1f77b4", streamed))
        ]
        panels.append(Panel(title, "tokens of text", lines))
    return chart(f"Judging a growing text every {result.every_tokens} tokens", panels)


if __name__ == "__main__":
    main()
