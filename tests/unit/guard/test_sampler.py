from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.engine.sampler import Sampler, SamplingParams
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
    ],
)
def test_parameters_out_of_range_name_the_field(field: str, value: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]  # one field of each type
    assert caught.value.field == field


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        SamplingParams(seed=seed)
