from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoint import open_checkpoint
from export.pipeline import ExportRequest, export_model
from export.quantize.profile import profile
from export.quantize.prompts import calibration_prompts
from guard.bundle.open import TOKENIZER_FILE
from guard.prompt import LLAMA_GUARD_3_1B
from guard.tokenizer import Tokenizer


@pytest.mark.parametrize("task", ["guard", "instruct"])
def test_prompts_are_the_runtimes_and_no_longer_than_the_context(
    tiny: Path, tiny_guard: Path, tmp_path: Path, task: str
) -> None:
    checkpoint = open_checkpoint(str(tiny_guard if task == "guard" else tiny))
    (tmp_path / TOKENIZER_FILE).write_bytes(checkpoint.tokenizer_json)
    tokenizer = Tokenizer(tmp_path / TOKENIZER_FILE, checkpoint.tokens.control)
    guard = (checkpoint.guard_format or LLAMA_GUARD_3_1B) if task == "guard" else None
    prompts = calibration_prompts(checkpoint, guard, tokenizer)
    assert len(prompts) == len(set(prompts)) == 10
    assert all(50 < len(prompt) <= 384 for prompt in prompts)
    assert {prompt[0] for prompt in prompts} == {prompts[0][0]}
    short = calibration_prompts(replace(checkpoint, spec=replace(checkpoint.spec, max_positions=40)), guard, tokenizer)
    assert short == [prompt[:40] for prompt in prompts]


@pytest.mark.parametrize("quantization", ["int4", "int4-small"])
def test_a_calibrated_export_is_nearer_to_the_reference(tiny: Path, tmp_path: Path, quantization: str) -> None:
    assert profile(quantization).calibrated and not profile("int8").calibrated
    distances = []
    for calibrate in (True, False):
        out = tmp_path / str(calibrate)
        request = ExportRequest(str(tiny), out, "instruct", quantization, calibrate=calibrate, max_kl=10)
        parity = export_model(request).parity
        assert parity is not None
        distances.append(parity.mean_kl)
    assert distances[0] < distances[1]
