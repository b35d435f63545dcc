"""The sampler against a plain implementation of what SamplingParams says, written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guard.engine.sampler import Sampler, SamplingParams, logprobs
from guard.errors import InvalidInputError, ModelOutputError

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def draws(params: SamplingParams, count: int = 4000) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    sampler = Sampler(params)
    return np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=4) / count


def test_greedy_takes_the_most_likely() -> None:
    assert Sampler(SamplingParams()).choose(np.array([1.0, 5.0, 3.0], np.float32)) == 1


def test_temperature_one_draws_the_models_distribution() -> None:
    assert draws(SamplingParams(temperature=1.0, seed=1)) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)


def test_temperature_sharpens() -> None:
    expected = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    assert draws(SamplingParams(temperature=0.5, seed=1)) == pytest.approx(expected / expected.sum(), abs=0.03)


def test_top_k_and_top_p_cut_the_tail_and_renormalize() -> None:
    assert draws(SamplingParams(temperature=1.0, top_k=2, seed=1)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert draws(SamplingParams(temperature=1.0, top_p=0.8, seed=1)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert draws(SamplingParams(temperature=1.0, top_p=0.81, seed=1))[2] > 0
    assert draws(SamplingParams(temperature=1.0, top_p=0.01, seed=1))[0] == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-12])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9, seed=1))
    assert [sampler.choose(LOGITS * 100) for _ in range(10)] == [0] * 10


@given(seed=st.integers(0, (1 << 64) - 1))
def test_same_seed_same_draws(seed: int) -> None:
    params = SamplingParams(temperature=1.5, seed=seed)
    first, second = Sampler(params), Sampler(params)
    assert [first.choose(LOGITS) for _ in range(20)] == [second.choose(LOGITS) for _ in range(20)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_an_error(bad: float) -> None:
    for params in (SamplingParams(), SamplingParams(temperature=1.0)):
        with pytest.raises(ModelOutputError):
            Sampler(params).choose(np.array([0.0, bad], np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", 2.1),
    ],
)
def test_parameters_out_of_range_name_the_field(field: str, value: float) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InvalidInputError) as caught:
        SamplingParams(**fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("biases", "field"),
    [
        ({7: 100.5}, "logit_bias[7]"),
        ({7: float("nan")}, "logit_bias[7]"),
        ({-1: 1.0}, "logit_bias[-1]"),
        (dict.fromkeys(range(1025), 1.0), "logit_bias"),
    ],
)
def test_biases_out_of_range_name_the_entry(biases: dict[int, float], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SamplingParams(logit_bias=biases)
    assert caught.value.field == field


def test_a_biased_token_has_to_be_one_of_the_models() -> None:
    params = SamplingParams(logit_bias={0: 1.0, 511: 1.0})
    params.check_vocabulary(512)
    with pytest.raises(InvalidInputError, match="0 to 510") as caught:
        params.check_vocabulary(511)
    assert caught.value.field == "logit_bias[511]"


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        SamplingParams(seed=seed)


def reference(
    params: SamplingParams, logits: Sequence[float], prompt: Sequence[int] = (), text: Sequence[int] = ()
) -> list[float]:
    """The probabilities of all rows after the seven steps that SamplingParams lists; temperature above 0."""
    scores = [logit + params.logit_bias.get(row, 0.0) for row, logit in enumerate(logits)]
    for row in {*prompt, *text}:
        scores[row] = (
            scores[row] * params.repetition_penalty if scores[row] < 0 else scores[row] / params.repetition_penalty
        )
    for row in set(text):
        scores[row] -= params.presence_penalty + params.frequency_penalty * text.count(row)
    best = max(scores)
    weights = [math.exp((score - best) / params.temperature) for score in scores]
    by_weight = sorted(weights, reverse=True)
    if 0 < params.top_k < len(weights):
        weights = [weight if weight >= by_weight[params.top_k - 1] else 0.0 for weight in weights]
    if params.top_p < 1.0:
        needed, mass = params.top_p * sum(weights), 0.0
        for least in sorted(weights, reverse=True):
            mass += least
            # Where rounding decides, float32 may decide otherwise.
            assume(abs(mass - needed) > 1e-4 * needed)
            if mass >= needed:
                break
        weights = [weight if weight >= least else 0.0 for weight in weights]
    if params.min_p > 0.0:
        assume(all(weight == 1.0 or abs(weight - params.min_p) > 1e-5 for weight in weights))
    weights = [weight if weight >= params.min_p else 0.0 for weight in weights]
    return [weight / sum(weights) for weight in weights]


def rows_at(probabilities: Sequence[float], point: float) -> set[int]:
    """Where the cumulative distribution passes ``point``, give or take what float32 rounds."""
    mass = np.cumsum(probabilities)
    return {
        min(int(np.searchsorted(mass, near, side="right")), len(mass) - 1)
        for near in (max(0.0, point - 1e-5), point, point + 1e-5)
    }


ROWS = 24
LOGIT = st.integers(-160, 160).map(lambda eighths: eighths / 8)
ROW = st.integers(0, ROWS - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 0.6, 1.0, 2.0]),
    top_p=st.sampled_from([0.3, 0.5, 0.9, 0.99, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 10, 1000]),
    seed=st.integers(0, 1000),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
    presence_penalty=st.sampled_from([-1.5, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 2.0]),
    logit_bias=st.dictionaries(ROW, st.sampled_from([-100.0, -1.0, 2.0, 100.0]), max_size=3),
)


@given(
    params=PARAMS,
    steps=st.lists(st.lists(LOGIT, min_size=ROWS, max_size=ROWS), min_size=1, max_size=4),
    prompt=st.lists(ROW, max_size=8),
)
def test_every_draw_is_that_of_the_plain_implementation(
    params: SamplingParams, steps: list[list[float]], prompt: list[int]
) -> None:
    sampler = Sampler(params, prompt)
    points = np.random.Generator(np.random.Philox(params.seed))  # one number a token
    text: list[int] = []
    for logits in steps:
        expected = rows_at(reference(params, logits, prompt, text), points.random())
        text.append(sampler.choose(np.array(logits, np.float32)))
        assert text[-1] in expected


@given(logits=st.lists(LOGIT, min_size=ROWS, max_size=ROWS), allowed=st.sets(ROW, min_size=1), params=PARAMS)
def test_a_constraint_is_a_smaller_vocabulary(logits: list[float], allowed: set[int], params: SamplingParams) -> None:
    mask = np.isin(np.arange(ROWS), sorted(allowed))
    row = Sampler(params).choose(np.array(logits, np.float32), mask)
    renumbered = {old: new for new, old in enumerate(sorted(allowed))}
    small = SamplingParams(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        seed=params.seed,
        min_p=params.min_p,
        logit_bias={renumbered[row]: bias for row, bias in params.logit_bias.items() if row in allowed},
    )
    assert renumbered[row] == Sampler(small).choose(np.array(logits, np.float32)[mask])


def test_greedy_takes_the_best_that_is_allowed() -> None:
    logits = np.array([1.0, 5.0, 3.0, 4.0], np.float32)
    assert Sampler(SamplingParams()).choose(logits, np.array([True, False, True, False])) == 2


def test_nothing_allowed_is_an_error() -> None:
    with pytest.raises(ModelOutputError):
        Sampler(SamplingParams()).choose(LOGITS, np.zeros(4, np.bool_))


def test_the_logits_stay_as_they_were() -> None:
    logits = LOGITS.copy()
    sampler = Sampler(
        SamplingParams(0.7, repetition_penalty=1.5, presence_penalty=1, frequency_penalty=1, logit_bias={0: 2.0}),
        [1, 2],
    )
    for _ in range(3):
        sampler.choose(logits)
    assert (logits == LOGITS).all()


def test_repetition_is_penalized_in_prompt_and_text_alike() -> None:
    logits = np.array([4.0, 3.0, -1.0, -1.2], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt=[0])
    assert [sampler.choose(logits) for _ in range(2)] == [1, 0]  # 2 3; then 2 1.5
    negative = Sampler(SamplingParams(repetition_penalty=1.5), prompt=[2])
    assert negative.choose(logits, np.array([False, False, True, True])) == 3  # -1.5 -1.2


def test_presence_counts_once_and_frequency_each_time_in_the_text_only() -> None:
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    presence = Sampler(SamplingParams(presence_penalty=0.7), prompt=[0, 0, 0])
    assert [presence.choose(logits) for _ in range(4)] == [0, 1, 0, 0]
    frequency = Sampler(SamplingParams(frequency_penalty=0.3), prompt=[0, 0, 0])
    assert [frequency.choose(logits) for _ in range(5)] == [0, 0, 1, 0, 1]  # 1 .5; .7 .5; .4 .5; .4 .2; .1 .2


def test_bias_bans_and_forces() -> None:
    logits = np.array([20.0, 10.0, -20.0], np.float32)
    assert Sampler(SamplingParams(logit_bias={0: -100.0})).choose(logits) == 1
    assert Sampler(SamplingParams(logit_bias={2: 100.0})).choose(logits) == 2


@pytest.mark.parametrize("rows", [5, 511, 512, 513, 5000])
def test_large_vocabularies_are_drawn_as_small_ones(rows: int) -> None:
    """Chi-square over the deciles: 9 degrees of freedom, where chance passes 27.9 once in a thousand times."""
    logits = np.random.default_rng(rows).normal(0, 2, rows).astype(np.float32)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    sampler = Sampler(SamplingParams(1.0, seed=7))
    drawn = [sampler.choose(logits) for _ in range(4000)]
    groups = np.minimum(np.cumsum(expected) * 10, 9.999).astype(int)
    share = np.bincount(groups, expected, 10)
    counts = np.bincount(groups[drawn], minlength=10)
    possible = share > 0
    assert counts[~possible].sum() == 0
    assert (((counts - share * 4000) ** 2)[possible] / (share[possible] * 4000)).sum() < 27.9


def test_a_row_without_probability_is_never_drawn() -> None:
    logits = np.full(2000, -200.0, np.float32)
    logits[1200] = 0.0
    sampler = Sampler(SamplingParams(1.0, seed=3))
    assert {sampler.choose(logits) for _ in range(200)} == {1200}


@given(logits=st.lists(LOGIT, min_size=1, max_size=40), top=st.integers(0, 20), data=st.data())
def test_logprobs_are_the_log_of_softmax(logits: list[float], top: int, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(logits) - 1))
    own, best = logprobs(np.array(logits, np.float32), row, top)
    normalizer = math.log(sum(math.exp(logit - max(logits)) for logit in logits)) + max(logits)
    assert own == pytest.approx(logits[row] - normalizer, abs=1e-5)
    ranked = sorted(range(len(logits)), key=lambda other: (-logits[other], other))[:top]
    assert [other for other, _ in best] == ranked
    assert [value for _, value in best] == pytest.approx([logits[other] - normalizer for other in ranked], abs=1e-5)
    assert all(value <= 0 for _, value in [(row, own), *best])
