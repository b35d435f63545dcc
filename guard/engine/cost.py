"""What work costs on this machine, learned from the steps that were made: the estimate behind "too late anyway".

A job says what it may need at most (``Work``). Caches, early answers and drafts make it less, so two things are learned
apart: seconds for a prefilled token and for a decode step, and the part of what jobs announced that was computed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

#: Steps whose median is what a step takes: one that the machine held up does not count.
_STEPS = 15
#: Of tokens of a prompt. Smaller ones tell what a step costs rather than what a token does.
SMALLEST_CHUNK = 16
#: What an older job counts against the next one in the learned parts: about the last twenty matter.
_FADE = 0.95
#: Finished jobs before the parts are trusted: the first ones fill caches that later ones use.
_ENOUGH_JOBS = 8


@dataclass(frozen=True)
class Work:
    """The most that a job may need: prompt tokens to compute, then ``new_tokens`` decode steps of ``choices`` rows."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    choices: int = 1

    @property
    def tokens(self) -> int:
        """All that may go through the model."""
        return self.prompt_tokens + self.choices * self.new_tokens


@dataclass
class Done:
    """What was computed for one job so far. The engine's thread counts, others read."""

    prompt_tokens: int = 0
    steps: int = 0
    #: One for each text that a step went on with, however much of a draft was computed beside it.
    decoded_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All that went through the model; what was cached did not."""
        return self.prompt_tokens + self.decoded_tokens


class _Part:
    """What part of the announced amounts was needed, over the last jobs."""

    def __init__(self) -> None:
        self._done = self._announced = 0.0

    def add(self, done: float, announced: float) -> None:
        self._done = _FADE * self._done + done
        self._announced = _FADE * self._announced + announced

    @property
    def value(self) -> float:
        return self._done / self._announced if self._announced else 0.0


class CostModel:
    """Times are in seconds. The engine's thread tells it what happened, any thread may ask."""

    def __init__(self) -> None:
        self.token_s = 0.0  # of a prefilled token
        self.step_s = 0.0  # of a decode step, at the batch sizes of late
        self._rows = 1.0  # of a decode step
        self._token_times, self._step_times, self._step_rows = (deque[float](maxlen=_STEPS) for _ in range(3))
        self._prompts, self._texts = _Part(), _Part()
        self._jobs = 0

    @property
    def known(self) -> bool:
        """Whether enough was seen to say what a job costs."""
        return self._jobs >= _ENOUGH_JOBS

    def note_prefill(self, tokens: int, seconds: float) -> None:
        """A chunk of a prompt was computed."""
        if tokens >= SMALLEST_CHUNK or not self.token_s:
            self._token_times.append(seconds / tokens)
            self.token_s = median(self._token_times)

    def note_decode(self, rows: int, seconds: float) -> None:
        """A decode step of ``rows`` sequences was made."""
        self._step_times.append(seconds)
        self._step_rows.append(rows)
        self.step_s, self._rows = median(self._step_times), median(self._step_rows)

    def note_job(self, work: Work, done: Done) -> None:
        """A job has ended with a result."""
        self._jobs += 1
        if work.prompt_tokens:
            self._prompts.add(done.prompt_tokens, work.prompt_tokens)
        if work.new_tokens:
            self._texts.add(done.steps, work.new_tokens)

    def own_s(self, work: Work) -> float:
        """How long a job takes once it has started and is served first: each of its steps takes as long as it takes."""
        return self._prefill_s(work) + self._texts.value * work.new_tokens * self.step_s

    def wait_s(self, work: Work, before: Sequence[float], max_active: int) -> float:
        """How long a job waits for others, if those that come ``before`` it will take so many seconds of the engine.

        It starts when all but ``max_active - 1`` of them have ended. The rest run beside it: while its prompt is
        computed, each of them gets as much of the engine; the time of a decode step is that of all of them already.
        """
        mean_s = sum(before) / len(before) if before else 0.0
        beside = min(len(before), max_active - 1)
        return (len(before) - beside) * mean_s + beside * min(mean_s, self._prefill_s(work))

    def engine_s(self, work: Work, done: Done) -> float:
        """What the rest of a job will take of the engine's time: a decode step is shared by all that decode."""
        prompt_tokens = max(0.0, self._prompts.value * work.prompt_tokens - done.prompt_tokens)
        steps = max(0.0, self._texts.value * work.new_tokens - done.steps)
        return prompt_tokens * self.token_s + steps * self.step_s * work.choices / max(self._rows, work.choices)

    def _prefill_s(self, work: Work) -> float:
        return self._prompts.value * work.prompt_tokens * self.token_s
