"""Random adapters for synthetic checkpoints: LoRA weights, and a guard's own head rows and prompt format."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

import tokenizers

from export.checkpoint.adapter import GUARD_FILE, HEAD_FILE, LORA_CONFIG_FILE, LORA_FILE
from export.spec import ModelSpec
from export.synthetic import write_json, write_random_safetensors
from guard.bundle.guard_format import AnswerTokens, GuardFormat
from guard.errors import InvalidInputError
from guard.prompt import LLAMA_GUARD_3_1B

_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make_adapter(
    out: Path,
    spec: ModelSpec,
    tokenizer_json: bytes,
    *,
    seed: int = 0,
    rank: int = 4,
    lora: bool = True,
    guard: bool = True,
) -> Path:
    """Write a random adapter for a checkpoint of ``spec`` to the new directory ``out``; returns ``out``.

    ``lora`` adds PEFT LoRA weights for every linear layer, ``guard`` a prompt format (Llama Guard's, with this
    tokenizer's ids) and head rows for its answer tokens. Raises InvalidInputError for an ``out`` that exists.
    """
    if out.exists():
        raise InvalidInputError("out", f"{out.name} exists already")
    out.mkdir(parents=True)
    if lora:
        _write_lora(out, spec, seed, rank)
    if guard:
        guard_format = llama_guard_format(tokenizer_json)
        ids = guard_format.answer.head_token_ids()
        write_json(out / GUARD_FILE, {"format": asdict(guard_format), "head_token_ids": list(ids)})
        write_random_safetensors(out / HEAD_FILE, {"weight": (len(ids), spec.hidden_size)}, seed, "F32")
    return out


def llama_guard_format(tokenizer_json: bytes) -> GuardFormat:
    """Llama Guard 3 1B's format with the answer's token ids of another tokenizer of Llama 3's kind.

    Raises InvalidInputError naming an answer text that is not one token there.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json.decode("utf-8"))

    def single(text: str) -> int:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) != 1:
            raise InvalidInputError("tokenizer_json", f"{text!r} is {len(ids)} tokens")
        return ids[0]

    answer = AnswerTokens(
        before_verdict=(single("\n\n"),),
        safe=single("safe"),
        unsafe=single("unsafe"),
        before_category=(single("\n"), single("S")),
        categories={code: single(code.removeprefix("S")) for code in LLAMA_GUARD_3_1B.categories},
        separator=(single(",S"),),
        end=single("<|eot_id|>"),
    )
    return replace(LLAMA_GUARD_3_1B, answer=answer)


def _write_lora(out: Path, spec: ModelSpec, seed: int, rank: int) -> None:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "use_rslora": False,
        "bias": "none",
        "target_modules": list(_TARGETS),
        "modules_to_save": None,
    }
    write_json(out / LORA_CONFIG_FILE, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in spec.expected_tensors().items():
        module = name.removesuffix(".weight")
        if module.endswith(_TARGETS):
            shapes[f"base_model.model.{module}.lora_A.weight"] = (rank, shape[1])
            shapes[f"base_model.model.{module}.lora_B.weight"] = (shape[0], rank)
    write_random_safetensors(out / LORA_FILE, shapes, seed, "F32")
