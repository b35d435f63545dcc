from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from export.graph.rope import inverse_frequencies, rope_tables
from export.spec import Llama3RopeScaling
from export.synthetic import LLAMA_3_2_1B, TINY


def llama3_frequency(frequency: float, scaling: Llama3RopeScaling) -> float:
    """Meta's apply_scaling, written out case by case."""
    wavelength = 2 * math.pi / frequency
    if wavelength < scaling.original_max_positions / scaling.high_freq_factor:
        return frequency
    if wavelength > scaling.original_max_positions / scaling.low_freq_factor:
        return frequency / scaling.factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / span
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def test_plain_frequencies_are_powers_of_theta() -> None:
    spec = replace(TINY, rope_scaling=None)
    expected = [spec.rope_theta ** (-2 * i / spec.head_dim) for i in range(spec.head_dim // 2)]
    np.testing.assert_allclose(inverse_frequencies(spec), expected, rtol=1e-6)


@pytest.mark.parametrize("spec", [TINY, LLAMA_3_2_1B], ids=["tiny", "1b"])
def test_llama3_scaling_treats_short_middle_and_long_wavelengths_as_meta_does(spec: object) -> None:
    assert isinstance(spec, type(TINY)) and spec.rope_scaling is not None
    plain = inverse_frequencies(replace(spec, rope_scaling=None)).astype(np.float64)
    expected = [llama3_frequency(frequency, spec.rope_scaling) for frequency in plain]
    scaled = inverse_frequencies(spec)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    ratios = plain / scaled
    assert ratios[0] == pytest.approx(1) and ratios[-1] == pytest.approx(spec.rope_scaling.factor)


def test_tables_hold_cosine_and_sine_of_position_times_frequency() -> None:
    cosines, sines = rope_tables(TINY, 300)
    angles = np.arange(300)[:, None] * inverse_frequencies(TINY)[None, :].astype(np.float64)
    np.testing.assert_allclose(cosines, np.cos(angles), atol=2e-5)
    np.testing.assert_allclose(sines, np.sin(angles), atol=2e-5)
    assert cosines.dtype == np.float32 and cosines.shape == (300, TINY.head_dim // 2)
    assert (cosines[0] == 1).all() and (sines[0] == 0).all()
