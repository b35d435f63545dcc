"""A long prompt joins while others stream: how long do they wait for their next token?"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.generation.prompts import STORIES, ask, minutes
from benchmarks.generation.spread import Spread, spread
from guard.engine.sampler import MAX_BIAS, SamplingParams
from guard.engine.settings import EngineSettings
from guard.generation import Delta, GenerateTask
from guard.runtime import load_instruct

_STREAMS = 3
_SENTENCES = 234
_AROUND = 40  # tokens of each stream before the long prompt comes, and after its first token
_LONGEST_WAIT_S = 300.0
#: Room for the streams and the long prompt together: it must not wait for memory.
_KV_BYTES = 1 << 30
_BIN_S = 0.5


@dataclass(frozen=True)
class Joined:
    """Gaps between a stream's tokens in ms, and ``first_token_s`` of the prompt of ``prompt_tokens`` that joined.

    ``alone_s`` is what that takes when nobody else is there. ``worst``: the longest gap that ended in each half second,
    with the second, counted from the streams' first token.
    """

    policy: str
    prompt_tokens: int
    first_token_s: float
    alone_s: float
    before: Spread
    meanwhile: Spread
    after: Spread
    worst: tuple[tuple[float, float], ...]


class _Arrivals:
    """When a stream's tokens came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._changed = threading.Condition()

    def note(self, delta: Delta) -> None:
        """Called on the engine's thread."""
        with self._changed:
            self.times.append(time.monotonic())
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until that many have come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.times) >= count, _LONGEST_WAIT_S):
                raise RuntimeError("a stream stopped")


def measure(directory: str, threads: int) -> tuple[Joined, ...]:
    """With chunks of the default length in time, and with the whole prompt in one step."""
    default = EngineSettings(threads=threads, prefix_bytes=0, kv_bytes=_KV_BYTES)
    whole = replace(default, prefill_chunk=1 << 20, step_s=3600.0)
    return (
        _join(directory, f"chunks of {default.step_s:g} s", default),
        _join(directory, "one chunk", whole),
    )


def _join(directory: str, policy: str, settings: EngineSettings) -> Joined:
    generator = load_instruct(directory, settings)
    try:
        long_task = ask(f"Summarize these minutes.\n\n{minutes(_SENTENCES)}", 1)
        alone_s = generator.generate(long_task).first_token_s
        streams = [_Arrivals() for _ in range(_STREAMS)]
        tickets = [
            generator.submit(_endless(story, generator.bundle.manifest.tokens.stop), stream.note)
            for story, stream in zip(STORIES, streams, strict=False)
        ]
        for stream in streams:
            stream.wait_for(_AROUND)
        joined = time.monotonic()
        long = generator.submit(long_task, lambda delta: None).future.result()
        answered = joined + long.first_token_s
        for stream in streams:
            stream.wait_for(len(stream.times) + _AROUND)
        for ticket in tickets:
            ticket.cancel()
    finally:
        generator.close()
    gaps = [
        (end - joined, 1000 * (end - start))
        for stream in streams
        for start, end in zip(stream.times, stream.times[1:], strict=False)
    ]
    return Joined(
        policy=policy,
        prompt_tokens=long.prompt_tokens,
        first_token_s=long.first_token_s,
        alone_s=alone_s,
        before=spread([gap for at, gap in gaps if at < 0]),
        # A gap belongs to the long prompt's wait when any of it lies there.
        meanwhile=spread([gap for at, gap in gaps if at >= 0 and at - gap / 1000 < answered - joined]),
        after=spread([gap for at, gap in gaps if at - gap / 1000 >= answered - joined]),
        worst=worst_of_bins(gaps),
    )


def _endless(prompt: str, stop: Sequence[int]) -> GenerateTask:
    """A text that the model does not end itself."""
    sampling = SamplingParams(logit_bias=dict.fromkeys(stop, -MAX_BIAS))
    return replace(ask(prompt, 2048), sampling=sampling)


def worst_of_bins(gaps: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The largest value in each bin of time that has any, with the bin's start; time begins with the first one."""
    begin = min(at for at, _ in gaps)
    bins: dict[int, float] = {}
    for at, gap in gaps:
        index = int((at - begin) / _BIN_S)
        bins[index] = max(gap, bins.get(index, 0.0))
    return tuple((index * _BIN_S, round(gap, 1)) for index, gap in sorted(bins.items()))
