"""The sampler draws from what transformers' own logits processors, in their order, leave of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from guard.engine.sampler import Sampler, SamplingParams

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROWS = 3000
PROMPT = [5, 17, 17, 2999]


def processors(params: SamplingParams) -> Any:
    """As GenerationMixin._get_logits_processor puts them in order."""
    made = transformers.LogitsProcessorList()
    if params.logit_bias:
        bias = [[[token], value] for token, value in params.logit_bias.items()]
        made.append(transformers.SequenceBiasLogitsProcessor(bias))
    if params.repetition_penalty != 1.0:
        made.append(transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    made.append(transformers.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        made.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        made.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p:
        made.append(transformers.MinPLogitsWarper(params.min_p))
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.6, "top_p": 0.9},
        {"top_k": 40},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 200, "top_p": 0.7, "min_p": 0.02},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "top_k": 50, "logit_bias": {5: -3.0, 8: 4.0}},
        {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.1, "min_p": 0.05, "logit_bias": {17: 5.0}},
    ],
)
@pytest.mark.parametrize("spread", [0.3, 1.5, 5.0])
def test_draws(fields: dict[str, Any], spread: float) -> None:
    """Each draw is where the cumulative distribution of transformers passes the sampler's one random number."""
    seed = 11
    params = SamplingParams(**({"temperature": 1.0, "seed": seed} | fields))
    sampler, points = Sampler(params, PROMPT), np.random.Generator(np.random.Philox(seed))
    process, random = processors(params), np.random.default_rng(3)
    text = list(PROMPT)
    for _ in range(100):
        logits = random.normal(0, spread, ROWS).astype(np.float32)
        left = process(torch.tensor([text]), torch.tensor(logits[None]).clone())
        mass = np.cumsum(torch.softmax(left[0].double(), 0).numpy())
        point = points.random()
        expected = {int(np.searchsorted(mass, near, side="right")) for near in (point - 1e-5, point, point + 1e-5)}
        text.append(sampler.choose(logits))
        assert text[-1] in expected
