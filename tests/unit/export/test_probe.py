from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.pipeline import ExportRequest, export_model
from guard.bundle import open_bundle
from guard.bundle.manifest import Probe
from guard.engine.runner import Runner, load_runner
from guard.errors import BundleError
from guard.runtime import check_probe


@pytest.fixture(scope="module", params=["none", "int8", "int4"])
def loaded(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Runner, Probe]:
    out = tmp_path_factory.mktemp("probe") / "bundle"
    export_model(ExportRequest(str(tiny), out, "instruct", request.param, max_kl=10.0))
    bundle = open_bundle(out)
    assert bundle.manifest.parity is not None
    return load_runner(bundle, 1), bundle.manifest.parity.probe


def test_the_known_answer_comes_out_again(loaded: tuple[Runner, Probe]) -> None:
    runner, probe = loaded
    assert len(probe.rows) == len(probe.logits) == 16
    check_probe(runner, probe)


def test_another_answer_is_refused(loaded: tuple[Runner, Probe]) -> None:
    runner, probe = loaded
    shifted = tuple(logit + 1.1 * probe.tolerance * (-1) ** index for index, logit in enumerate(probe.logits))
    for wrong in (shifted, tuple(float("nan") for _ in shifted)):
        with pytest.raises(BundleError, match="other answers here"):
            check_probe(runner, replace(probe, logits=(0.0, *wrong[1:])))


@pytest.mark.parametrize(
    "change", [{"token_ids": ()}, {"token_ids": (10**6,)}, {"rows": (10**6,) * 16}, {"rows": ()}, {"logits": (1.0,)}]
)
def test_a_probe_of_another_model_is_refused(loaded: tuple[Runner, Probe], change: dict[str, tuple[int, ...]]) -> None:
    runner, probe = loaded
    with pytest.raises(BundleError, match=r"manifest\.parity\.probe"):
        check_probe(runner, replace(probe, **change))  # type: ignore[arg-type]
