"""The trainer's forward pass and gradients (needs torch: the reference extra)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.checkpoint import open_checkpoint
from export.checkpoint.model import Checkpoint
from export.reference import reference_logits
from export.synthetic import TINY, make_checkpoint

torch = pytest.importorskip("torch")
llama = pytest.importorskip("training.llama")
fused = pytest.importorskip("training.fused")

HEAD = (3, 5, 8)
PREFIX = (7, 9, 11)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("model") / "tiny"
    return open_checkpoint(str(make_checkpoint(path, replace(TINY, rope_scaling=None))))


def _features(checkpoint: Checkpoint, lora: Any, gradients: bool = False) -> Any:
    sequences = [(*PREFIX, 20, 21), (*PREFIX, 30, 31, 32, 33)]
    model = llama.Llama(checkpoint)
    return llama.features(model, lora, 1, PREFIX, sequences, [[4], [4, 6]], gradients)


def test_features_match_the_numpy_reference(checkpoint: Checkpoint) -> None:
    lora = llama.Lora(checkpoint.spec, 1, 2, 4)
    rows = checkpoint.tensors.read("lm_head.weight")[list(HEAD)]
    ours = _features(checkpoint, lora).numpy() @ rows.T
    sequences = [[*PREFIX, 20, 21], [*PREFIX, 30, 31, 32, 33]]
    expected = np.concatenate(reference_logits(checkpoint.spec, checkpoint.tensors, sequences, [[4], [4, 6]], HEAD))
    # bfloat16 products: about three significant digits.
    assert np.abs(ours - expected).max() < 0.03 * np.abs(expected).max()


def test_lora_changes_the_features_and_gets_every_gradient(checkpoint: Checkpoint) -> None:
    lora = llama.Lora(checkpoint.spec, 1, 2, 4)
    before = _features(checkpoint, lora)
    generator = torch.Generator().manual_seed(0)
    for _, b in lora.pairs.values():
        b.data.normal_(std=0.3, generator=generator)
    after = _features(checkpoint, lora, gradients=True)
    assert (after - before).abs().max() > 0.01
    assert {name.split(".")[2] for name in lora.pairs} == {"1"}
    gradients = torch.autograd.grad((after * torch.linspace(-1, 1, after.shape[-1])).sum(), lora.parameters)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("parts", [1, 3])
def test_lora_linear_has_the_gradients_of_its_formula(parts: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16).float().requires_grad_()

    x, a = random(2, 5, 16), random(parts * 4, 16)
    bs = [random(8, 4) for _ in range(parts)]
    weight = random(parts * 8, 16).detach()
    low = (x @ a.T).chunk(parts, -1)
    plain = x @ weight.T + 0.5 * torch.cat([part @ b.T for part, b in zip(low, bs, strict=True)], -1)
    ours = fused.LoraLinear.apply(x.to(torch.bfloat16), weight.to(torch.bfloat16), a, 0.5, *bs).float()
    _close(ours, plain)
    upstream = torch.randn(plain.shape, generator=generator)
    for mine, expected in zip(
        torch.autograd.grad((ours * upstream).sum(), [x, a, *bs]),
        torch.autograd.grad((plain * upstream).sum(), [x, a, *bs]),
        strict=True,
    ):
        _close(mine, expected)


def test_rms_norm_rotate_and_swiglu_have_the_gradients_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 2, 16, generator=generator).to(torch.bfloat16).float().requires_grad_()
    weight, angles = torch.rand(16, generator=generator) + 0.5, torch.rand(1, 3, 1, 8, generator=generator)
    cosine, sine = angles.cos(), angles.sin()
    first, second = x.chunk(2, -1)
    cases = [
        (
            fused.RmsNorm.apply(x, weight),
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + fused.RMS_EPSILON) * weight,
        ),
        (
            fused.Rotate.apply(x, cosine, sine),
            torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1),
        ),
        (fused.SwiGlu.apply(x), torch.nn.functional.silu(first) * second),
    ]
    for ours, plain in cases:
        _close(ours.float(), plain)
        upstream = torch.randn(plain.shape, generator=generator)
        (mine,) = torch.autograd.grad((ours.float() * upstream).sum(), [x], retain_graph=True)
        (expected,) = torch.autograd.grad((plain * upstream).sum(), [x], retain_graph=True)
        _close(mine, expected)


def _close(ours: Any, expected: Any) -> None:
    assert (ours - expected).norm() < 0.01 * expected.norm()


def test_another_rotary_scaling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rotary"):
        llama.Llama(open_checkpoint(str(make_checkpoint(tmp_path / "scaled"))))
