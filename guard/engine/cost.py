"""What work costs on this machine, learned from the steps that were made: the estimate behind "too late anyway".

A job says what it may need at most (``Work``). Caches, early answers and drafts make it less, so two things are learned
apart: seconds for a prefilled token and for a decode step, and the part of what jobs announced that was computed.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of the newest step in the running means of times.
_NEWEST = 0.3
#: Steps of fewer tokens tell what a step costs rather than what a token does.
_SMALLEST_CHUNK = 16
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
        self._rows = 1.0  # of a decode step, of late
        self._prompts, self._texts = _Part(), _Part()
        self._jobs = 0

    @property
    def known(self) -> bool:
        """Whether enough was seen to say what a job costs."""
        return self._jobs >= _ENOUGH_JOBS

    def note_prefill(self, tokens: int, seconds: float) -> None:
        """A chunk of a prompt was computed."""
        if tokens >= _SMALLEST_CHUNK or not self.token_s:
            self.token_s += (_NEWEST if self.token_s else 1.0) * (seconds / tokens - self.token_s)

    def note_decode(self, rows: int, seconds: float) -> None:
        """A decode step of ``rows`` sequences was made."""
        first = not self.step_s
        self.step_s += (1.0 if first else _NEWEST) * (seconds - self.step_s)
        self._rows += (1.0 if first else _NEWEST) * (rows - self._rows)

    def note_job(self, work: Work, done: Done) -> None:
        """A job has ended with a result."""
        self._jobs += 1
        if work.prompt_tokens:
            self._prompts.add(done.prompt_tokens, work.prompt_tokens)
        if work.new_tokens:
            self._texts.add(done.steps, work.new_tokens)

    def own_s(self, work: Work) -> float:
        """How long a job takes once it has started and is served first: each of its steps takes as long as it takes."""
        return self.prefill_s(work) + self._texts.value * work.new_tokens * self.step_s

    def prefill_s(self, work: Work) -> float:
        """The part of that for the prompt."""
        return self._prompts.value * work.prompt_tokens * self.token_s

    def engine_s(self, work: Work, done: Done) -> float:
        """What the rest of a job will take of the engine's time: a decode step is shared by all that decode."""
        prompt_tokens = max(0.0, self._prompts.value * work.prompt_tokens - done.prompt_tokens)
        steps = max(0.0, self._texts.value * work.new_tokens - done.steps)
        return prompt_tokens * self.token_s + steps * self.step_s * work.choices / max(self._rows, work.choices)
