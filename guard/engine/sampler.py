"""Choosing the next token from logits.

All work is on float32 vectors of the whole vocabulary (128,256 entries for Llama 3) and on the few entries that are
left of them; nothing sorts the whole vocabulary unless its distribution is nearly flat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from guard.errors import InvalidInputError, ModelOutputError

MAX_TEMPERATURE = 2.0
MAX_REPETITION_PENALTY = 2.0
#: Of presence and frequency penalty, either side of 0; as in OpenAI's API.
MAX_PENALTY = 2.0
#: Of logit_bias, either side of 0; as in OpenAI's API.
MAX_BIAS = 100.0
MAX_BIASES = 1024

Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Where the search for the nucleus begins and goes on: weights relative to the best token's.
_LEAST_WEIGHTS = (1e-2, 1e-4, 0.0)
#: The sums of float32 weights are right to about this, so that rounding alone adds no token to a nucleus.
_ROUNDING = 1e-6
#: The smallest float32 that keeps its precision; 0 / temperature has to stay 0.
_LEAST_TEMPERATURE = float(np.finfo(np.float32).tiny)
#: Weights are summed in blocks of so many, in float64 only across and inside one block.
_BLOCK = 512


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn from a model's logits, in the order of transformers' logits processors.

    1. ``logit_bias`` (token id to -100..100) is added.
    2. ``repetition_penalty`` r, of tokens in prompt or text: positive logits / r, negative ones * r (Keskar et al.
       2019, "CTRL"). 1 changes nothing.
    3. ``presence_penalty`` p and ``frequency_penalty`` f: logit - p - f * n for a token that the text, without its
       prompt, has n > 0 times (OpenAI's API reference).
    4. ``temperature`` t divides; 0 is greedy, which steps 5 to 7 cannot change.
    5. ``top_k`` keeps the k most likely, 0 = all.
    6. ``top_p`` keeps the smallest set of most likely tokens that has this share of the probability that is left
       (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration").
    7. ``min_p`` keeps tokens of at least so many times the best one's probability (Nguyen et al. 2024, "Min-p
       Sampling").

    Tokens that are exactly as likely as the last one kept are kept too. Same ``seed``, same text. Raises
    InvalidInputError naming the field.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= MAX_TEMPERATURE:
            raise InvalidInputError("temperature", f"expected 0 to {MAX_TEMPERATURE:g}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidInputError("top_p", "expected a number above 0 and at most 1")
        if self.top_k < 0:
            raise InvalidInputError("top_k", "expected 0 (all tokens) or more")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise InvalidInputError("seed", "expected 0 to 2^64 - 1")
        if not 0.0 <= self.min_p <= 1.0:
            raise InvalidInputError("min_p", "expected 0 to 1")
        if not 0.0 < self.repetition_penalty <= MAX_REPETITION_PENALTY:
            raise InvalidInputError(
                "repetition_penalty", f"expected a number above 0, at most {MAX_REPETITION_PENALTY:g}"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -MAX_PENALTY <= getattr(self, name) <= MAX_PENALTY:
                raise InvalidInputError(name, f"expected {-MAX_PENALTY:g} to {MAX_PENALTY:g}")
        if len(self.logit_bias) > MAX_BIASES:
            raise InvalidInputError("logit_bias", f"{len(self.logit_bias)} entries, the limit is {MAX_BIASES}")
        for token_id, bias in self.logit_bias.items():
            if token_id < 0:
                raise InvalidInputError(f"logit_bias[{token_id}]", "expected a token id, 0 or more")
            if not -MAX_BIAS <= bias <= MAX_BIAS:
                raise InvalidInputError(f"logit_bias[{token_id}]", f"expected {-MAX_BIAS:g} to {MAX_BIAS:g}")

    def check_vocabulary(self, size: int) -> None:
        """Raises InvalidInputError for a biased token id that a vocabulary of ``size`` tokens does not have."""
        for token_id in self.logit_bias:
            if token_id >= size:
                raise InvalidInputError(f"logit_bias[{token_id}]", f"the model has the token ids 0 to {size - 1}")


class Sampler:
    """Draws the tokens of one sequence and remembers them. ``prompt`` is what comes before them, as rows of the logits.

    The same seed gives the same rows for the same logits: there is one random number a token, however many candidates.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.Philox(params.seed))
        self._penalizes_repetition = params.repetition_penalty != 1.0
        self._penalizes_text = params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._prompt = prompt if self._penalizes_repetition else ()
        self._bias_rows = np.array(list(params.logit_bias), np.intp)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        self._seen: Bools | None = None  # rows of the prompt and the text, if repetition is penalized
        self._counts: Float32 | None = None  # how often the text has each row, if that is penalized

    def choose(self, logits: Float32, allowed: Bools | None = None) -> int:
        """The row of the next token in ``logits`` float32 [rows], out of those that are ``allowed`` (bool [rows]).

        Raises ModelOutputError when the logits are not finite, or nothing is allowed.
        """
        if not np.isfinite(logits).all():
            raise ModelOutputError("the model's logits are not finite")
        scores = self._adjusted(logits)
        if allowed is None:
            row = self._choose(scores)
        else:
            rows = np.flatnonzero(allowed)
            if not len(rows):
                raise ModelOutputError("no token may come next")
            row = int(rows[self._choose(scores[rows])])
        self._note(row)
        return row

    def _adjusted(self, logits: Float32) -> Float32:
        """Steps 1 to 3 of SamplingParams; ``logits`` itself when there is nothing to do."""
        params = self._params
        if not (len(self._bias) or self._penalizes_repetition or self._penalizes_text):
            return logits
        scores = logits.copy()
        scores[self._bias_rows] += self._bias
        if self._penalizes_repetition:
            if self._seen is None:
                self._seen = np.zeros(len(logits), np.bool_)
                self._seen[np.asarray(self._prompt, np.intp)] = True
            rows = np.flatnonzero(self._seen)
            penalty = np.float32(params.repetition_penalty)
            scores[rows] = np.where(scores[rows] < 0, scores[rows] * penalty, scores[rows] / penalty)
        if self._penalizes_text:
            if self._counts is None:
                self._counts = np.zeros(len(logits), np.float32)
            rows = np.flatnonzero(self._counts)
            scores[rows] -= np.float32(params.presence_penalty)
            scores[rows] -= np.float32(params.frequency_penalty) * self._counts[rows]
        return scores

    def _note(self, row: int) -> None:
        if self._seen is not None:
            self._seen[row] = True
        if self._counts is not None:
            self._counts[row] += 1

    def _choose(self, scores: Float32) -> int:
        """Steps 4 to 7 of SamplingParams, then the draw."""
        if self._params.temperature == 0.0:
            return int(np.argmax(scores))
        temperature = np.float32(max(self._params.temperature, _LEAST_TEMPERATURE))
        with np.errstate(over="ignore"):  # a tiny temperature: weight 0 for all but the best, which is right
            weights = np.exp((scores - scores.max()) / temperature)
        least = self._least_weight(weights)
        point = self._random.random()
        if least == 0.0:
            return _drawn(weights, point)
        rows = np.flatnonzero(weights >= least)
        return int(rows[_drawn(weights[rows], point)])

    def _least_weight(self, weights: Float32) -> float:
        """The smallest of ``weights``, which are relative to the best one's, that is kept."""
        params = self._params
        least = params.min_p
        if 0 < params.top_k < len(weights):
            least_of_k = _largest(weights, params.top_k)
            least = max(least, least_of_k)
            # The nucleus is one of what top_k leaves, whatever min_p takes from it afterwards.
            weights = weights[weights >= least_of_k]
        return max(least, _least_of_nucleus(weights, params.top_p)) if params.top_p < 1.0 else least


def logprobs(logits: Float32, row: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural logarithms of softmax(``logits`` float32 [rows]): of ``row``, and of the ``top`` largest as (row, value)
    pairs, best first, of equal ones the lower row first.
    """
    best = float(logits.max())
    normalizer = best + math.log(float(np.exp(logits - logits.max()).sum(dtype=np.float64)))
    # Rounding in the sum must not make a certain token more than certain.
    own = min(0.0, float(logits[row]) - normalizer)
    count = min(top, len(logits))
    if count == 0:
        return own, []
    rows = np.flatnonzero(logits >= _largest(logits, count))
    rows = rows[np.argsort(-logits[rows], kind="stable")][:count]
    return own, [(int(other), min(0.0, float(logits[other]) - normalizer)) for other in rows]


def _largest(values: Float32, count: int) -> float:
    """The ``count``-th largest of ``values``."""
    at = len(values) - count
    return float(np.partition(values, at)[at])


def _least_of_nucleus(weights: Float32, share: float) -> float:
    """The smallest weight of the smallest set of largest weights that has ``share`` of their sum."""
    needed = share * float(weights.sum(dtype=np.float64)) * (1 - _ROUNDING)
    for least in _LEAST_WEIGHTS:
        largest = np.sort(weights[weights >= least])[::-1]
        mass = np.cumsum(largest, dtype=np.float64)
        if mass[-1] >= needed:
            break
    return float(largest[np.searchsorted(mass, needed)])


def _drawn(weights: Float32, point: float) -> int:
    """The index where the cumulative distribution of ``weights`` passes ``point``, 0 <= point < 1."""
    starts = np.arange(0, len(weights), _BLOCK)
    blocks = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = point * blocks[-1]
    block = _passed(blocks, target)
    within = weights[starts[block] : starts[block] + _BLOCK]
    before = blocks[block - 1] if block else 0.0
    return int(starts[block]) + _passed(np.cumsum(within, dtype=np.float64), target - before)


def _passed(mass: npt.NDArray[np.float64], target: float) -> int:
    """The first index whose cumulative ``mass`` is above ``target``; where rounding leaves none, the last with any mass
    of its own.
    """
    return int(min(np.searchsorted(mass, target, side="right"), np.searchsorted(mass, mass[-1])))
