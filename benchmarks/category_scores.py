"""What the category scores cost: in the same pass as the verdict, or in a step of their own for unsafe texts only."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from guard.bundle import open_bundle
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.kv_cache import KvCache
from guard.engine.runner import Runner, load_runner
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer

_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water. "
_SENTENCES = (1, 4)


@dataclass(frozen=True)
class Cost:
    """The fastest of all rounds, in ms, for a prompt whose fixed prefix is cached: other load on the machine only adds.
    ``tokens`` are computed for the verdict alone.
    """

    tokens: int
    verdict_ms: float
    with_categories_ms: float
    categories_after_ms: float

    @property
    def break_even(self) -> float:
        """The share of unsafe texts above which one pass for all is cheaper."""
        return (self.with_categories_ms - self.verdict_ms) / self.categories_after_ms


def main() -> None:
    """Measures and prints a JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guard", required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15, metavar="N")
    args = parser.parse_args()
    bundle = open_bundle(args.guard)
    guard_format = bundle.manifest.guard
    assert guard_format is not None, "not a guard bundle"
    runner = load_runner(bundle, args.threads)
    prompts = GuardPromptBuilder(guard_format, Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control))
    answer = guard_format.answer
    forced = [answer.unsafe, *answer.before_category]
    for sentences in _SENTENCES:
        conversation = Conversation((Message(Role.USER, _WORDS * sentences),))
        prompt = prompts.build(conversation, Target.PROMPT, Policy())
        prefix, rest = prompt.token_ids[: prompt.prefix_tokens], prompt.token_ids[prompt.prefix_tokens :]
        cost = measure(runner, prefix, [*rest, *answer.before_verdict], forced, args.rounds)
        print(json.dumps({**asdict(cost), "forced_tokens": len(forced), "break_even": round(cost.break_even, 3)}))


def measure(runner: Runner, prefix: Sequence[int], question: Sequence[int], forced: Sequence[int], rounds: int) -> Cost:
    """Time the three steps in turn, so that what slows the machine slows all of them."""
    cache = KvCache(runner.shape, len(prefix) + len(question) + len(forced))
    runner.forward(cache, prefix, [len(prefix) - 1])
    verdict, together, after = [], [], []
    for _ in range(rounds):
        cache.truncate(len(prefix))
        verdict.append(_ms(lambda: runner.forward(cache, question, [len(question) - 1])))
        after.append(_ms(lambda: runner.forward(cache, forced, [len(forced) - 1])))
        cache.truncate(len(prefix))
        wanted = [len(question) - 1, len(question) + len(forced) - 1]
        together.append(_ms(partial(runner.forward, cache, [*question, *forced], wanted)))
    return Cost(len(question), *(round(min(times), 2) for times in (verdict, together, after)))


def _ms(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    main()
