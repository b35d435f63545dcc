"""The adapter that is shipped is the one that the training code describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from guard.bundle.guard_format import GuardFormat
from guard.taxonomy import HAZARDS
from training.recipe import CATEGORY_WORDS, FORMAT, Recipe

ADAPTER = Path(__file__).parents[3] / "adapters" / "embedded-guard"


def test_its_format_is_the_recipe_s() -> None:
    value = json.loads((ADAPTER / "guard.json").read_text(encoding="utf-8"))
    assert GuardFormat.from_json(value["format"], "guard.json") == FORMAT
    assert tuple(value["head_token_ids"]) == FORMAT.answer.head_token_ids()


def test_every_category_has_its_own_token() -> None:
    answer = FORMAT.answer
    labels = [answer.safe, answer.unsafe, answer.end, *answer.categories.values()]
    assert len(set(labels)) == len(labels) == 16
    assert list(CATEGORY_WORDS) == list(answer.categories) == [code for code in HAZARDS if code != "S14"]


def test_its_head_has_one_finite_row_a_label() -> None:
    (weight,) = load_file(ADAPTER / "guard_head.safetensors").values()
    assert weight.shape == (16, 576)
    assert np.isfinite(weight).all()
    assert np.linalg.norm(weight, axis=1).min() > 0


def test_its_lora_has_the_recipe_s_layers_and_rank() -> None:
    recipe = Recipe()
    config = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (recipe.rank, recipe.alpha)
    tensors = load_file(ADAPTER / "adapter_model.safetensors")
    assert {int(name.split(".")[4]) for name in tensors} == set(range(recipe.first_layer, 30))
    assert len(tensors) == (30 - recipe.first_layer) * 7 * 2
    for name, tensor in tensors.items():
        assert recipe.rank in tensor.shape
        assert np.isfinite(tensor).all()
        assert np.abs(tensor).max() > 0, name


def test_no_data_is_shipped() -> None:
    names = {path.name for path in ADAPTER.iterdir()}
    weights = {"adapter_config.json", "adapter_model.safetensors", "guard.json", "guard_head.safetensors"}
    assert names == weights | {"README.md"}
