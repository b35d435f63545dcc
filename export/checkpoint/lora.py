"""LoRA weights as PEFT saves them, merged slice by slice: W + scale * B @ A (arXiv:2106.09685)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from export.checkpoint.model import Float32
from export.checkpoint.safetensors import SafetensorsFile
from export.messages import quoted
from export.spec import ModelSpec
from guard.errors import CheckpointError, UnsupportedError

_WHERE: Final = "adapter_config.json"
_MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TENSOR: Final = re.compile(
    rf"base_model\.model\.(model\.layers\.\d+\.(?:self_attn|mlp)\.({'|'.join(_MODULES)}))\.lora_([AB])\.weight"
)

#: Fields that say how the adapter was trained or where it applies; the tensors say the latter again.
_IGNORED: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_dropout",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
#: Fields with the values that change nothing about the merge; every field in neither table must be off (``_OFF``).
_ALLOWED: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    # Other initializations (PiSSA, OLoRA, LoftQ) change the base weights too.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
    "megatron_core": ("megatron.core", None),
}
_OFF: Final[tuple[Any, ...]] = (None, False, {}, [])
_BLOCK_ITEMS: Final = 1 << 16  # 256 KiB of float32: the merge works within a core's cache


class Lora:
    """The update of one linear layer: ``scale * B @ A`` with A [rank, in] and B [out, rank], read when it is needed."""

    def __init__(self, file: SafetensorsFile, a: str, b: str, scale: float) -> None:
        self._file = file
        self._a = a
        self._b = b
        self._scale = scale

    def add_to(self, weights: Float32, rows: slice) -> None:
        """Add the update of ``rows`` to ``weights`` [rows, in], in place.

        Rank by rank and not through BLAS, whose sums differ between machines: an export has the same bytes everywhere.
        """
        a = self._file.read(self._a)
        b = self._file.read(self._b, rows) * np.float32(self._scale)
        step = max(1, _BLOCK_ITEMS // a.shape[1])
        update, product = np.empty((2, step, a.shape[1]), np.float32)
        for start in range(0, len(weights), step):
            block = weights[start : start + step]
            total, term = update[: len(block)], product[: len(block)]
            total.fill(0)
            for column, row in zip(b[start : start + step].T, a, strict=True):
                np.multiply(column[:, None], row, out=term)
                total += term
            block += total


def read_lora(config: Mapping[str, Any], file: SafetensorsFile, spec: ModelSpec) -> dict[str, Lora]:
    """Tensor name to update; raises CheckpointError when files and model disagree, UnsupportedError by feature."""
    rank, scale = _scale(config)
    targets = _targets(config)
    pairs: dict[str, dict[str, str]] = {}
    for name in sorted(file.names()):
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise UnsupportedError(
                f"adapter_model.safetensors: {quoted(name)}: only LoRA of {', '.join(_MODULES)} is read"
            )
        if targets is not None and match[2] not in targets:
            raise CheckpointError(f"{_WHERE}: target_modules lacks {match[2]}, of which there are tensors")
        pairs.setdefault(match[1], {})[match[3]] = name
    for target in sorted(targets or ()):
        if not any(module.endswith(f".{target}") for module in pairs):
            raise CheckpointError(f"adapter_model.safetensors: no tensors of target module {target}")
    shapes = spec.expected_tensors()
    loras = {}
    for module, tensors in pairs.items():
        weight = f"{module}.weight"
        if weight not in shapes:
            raise CheckpointError(f"adapter_model.safetensors: the model has no {weight}")
        for part, shape in (("A", (rank, shapes[weight][1])), ("B", (shapes[weight][0], rank))):
            if part not in tensors:
                raise CheckpointError(f"adapter_model.safetensors: {module}.lora_{part} is missing")
            if file.shape(tensors[part]) != shape:
                found = file.shape(tensors[part])
                raise CheckpointError(f"adapter_model.safetensors: {module}.lora_{part} is {found}, expected {shape}")
        loras[weight] = Lora(file, tensors["A"], tensors["B"], scale)
    if not loras:
        raise CheckpointError("adapter_model.safetensors: no LoRA tensors")
    return loras


def _scale(config: Mapping[str, Any]) -> tuple[int, float]:
    """Rank and scale; refuses every setting that would make the merge another one."""
    for name, allowed in _ALLOWED.items():
        if name in config and config[name] not in allowed:
            raise UnsupportedError(f"{_WHERE}: {name} {quoted(config[name])} is not supported")
    known = {*_IGNORED, *_ALLOWED, "r", "lora_alpha", "use_rslora", "target_modules"}
    for name, value in config.items():
        if name not in known and value not in _OFF:
            raise UnsupportedError(f"{_WHERE}: {name[:80]} {quoted(value)} is not supported")
    if config.get("peft_type") is None:
        raise CheckpointError(f"{_WHERE}: peft_type: missing")
    rank, alpha, stabilized = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if type(rank) is not int or not 1 <= rank <= 4096:
        raise CheckpointError(f"{_WHERE}: r: must be an integer between 1 and 4096")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= 1e6:
        raise CheckpointError(f"{_WHERE}: lora_alpha: must be a number above 0")
    if type(stabilized) is not bool:
        raise CheckpointError(f"{_WHERE}: use_rslora: expected a boolean")
    return rank, alpha / (math.sqrt(rank) if stabilized else rank)  # rank-stabilized: arXiv:2312.03732


def _targets(config: Mapping[str, Any]) -> frozenset[str] | None:
    """The target modules by name; None for ``all-linear``."""
    value = config.get("target_modules")
    if value == "all-linear":
        return None
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise UnsupportedError(f"{_WHERE}: target_modules: only a list of names or 'all-linear' is supported")
    unknown = sorted(set(value) - set(_MODULES))
    if unknown:
        raise UnsupportedError(
            f"{_WHERE}: target module {quoted(unknown[0])}: only {', '.join(_MODULES)} are supported"
        )
    return frozenset(value)
