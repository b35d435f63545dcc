from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from export.checkpoint import open_checkpoint
from export.parity import BOUNDS, check_parity, kl_divergence, measure_parity
from export.pipeline import ExportRequest, export_model
from export.quantize.profile import PROFILES
from guard.bundle import Bundle, open_bundle
from guard.bundle.manifest import Parity, Probe
from guard.errors import ParityError

GOOD = Parity("numpy float32", 10, 0.0, 0.0, 1.0, None, Probe((1,), (0,), (0.0,), 0.1))


@given(st.integers(0, 1000))
def test_kl_is_zero_for_shifted_logits_and_positive_otherwise(seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((3, 20), np.float32)
    assert np.abs(kl_divergence(logits, logits + np.float32(5))).max() < 1e-6
    assert (kl_divergence(logits, logits[:, ::-1]) > 0).all()


def test_kl_of_a_coin() -> None:
    fair, biased = np.log([[0.5, 0.5]]).astype(np.float32), np.log([[0.9, 0.1]]).astype(np.float32)
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert kl_divergence(fair, biased)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PROFILES)
def test_beyond_the_bound_is_refused_with_both_numbers(name: str) -> None:
    bound = BOUNDS[name].mean_kl
    check_parity(replace(GOOD, mean_kl=bound), name)
    with pytest.raises(ParityError, match=f"{name}: mean KL {2 * bound:.3g} .* bound is {bound:.3g}"):
        check_parity(replace(GOOD, mean_kl=2 * bound), name)
    check_parity(replace(GOOD, mean_kl=2 * bound), name, max_kl=3 * bound)
    with pytest.raises(ParityError):
        check_parity(replace(GOOD, mean_kl=bound), name, max_kl=bound / 2)


@pytest.mark.parametrize("name", PROFILES)
def test_a_guard_is_also_held_to_its_score(name: str) -> None:
    bound = BOUNDS[name].unsafe_score
    check_parity(replace(GOOD, max_unsafe_score_difference=bound), name)
    with pytest.raises(ParityError, match="unsafe score differs"):
        check_parity(replace(GOOD, max_unsafe_score_difference=bound * 1.1), name)


def test_nan_is_beyond_every_bound() -> None:
    with pytest.raises(ParityError):
        check_parity(replace(GOOD, mean_kl=float("nan")), "int4", max_kl=1e9)


@pytest.fixture(scope="module")
def bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("parity") / "bundle"
    export_model(ExportRequest(str(tiny), out, "instruct", "none", parity=False))
    return open_bundle(out)


def test_the_measurement_is_repeatable_and_counts_its_positions(tiny: Path, bundle: Bundle) -> None:
    first, second = (measure_parity(open_checkpoint(str(tiny)), bundle, threads) for threads in (1, 2))
    assert first == second
    assert first.positions > 100 and first.top1_agreement == 1 and first.max_abs_logit_difference < 1e-4


def test_a_graph_with_one_wrong_page_of_weights_is_noticed(tiny: Path, bundle: Bundle) -> None:
    data = bundle.directory / "model.onnx.data"
    original = data.read_bytes()
    try:
        # A page in the middle is part of a layer; these values are all in the range of weights.
        middle = len(original) // 2 // 4096 * 4096
        wrong = np.random.default_rng(0).standard_normal(1024, np.float32).tobytes()
        data.write_bytes(original[:middle] + wrong + original[middle + 4096 :])
        parity = measure_parity(open_checkpoint(str(tiny)), bundle, 1)
        with pytest.raises(ParityError):
            check_parity(parity, "none")
    finally:
        data.write_bytes(original)


def test_a_graph_that_gives_nan_is_refused(tiny: Path, bundle: Bundle) -> None:
    data = bundle.directory / "model.onnx.data"
    original = data.read_bytes()
    try:
        data.write_bytes(b"\xff" * len(original))
        with pytest.raises(ParityError, match="not finite"), np.errstate(invalid="ignore"):
            measure_parity(open_checkpoint(str(tiny)), bundle, 1)
    finally:
        data.write_bytes(original)
