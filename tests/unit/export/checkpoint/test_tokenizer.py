from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers

from export.checkpoint.tokenizer import check_tokenizer
from export.synthetic_tokenizer import llama3_tokenizer
from guard.errors import CheckpointError


def tokenizer(**changes: Any) -> bytes:
    return json.dumps(json.loads(llama3_tokenizer(512, ())) | changes).encode()


def test_added_and_control_tokens() -> None:
    value = json.loads(tokenizer())
    value["added_tokens"][3]["special"] = False
    checked = check_tokenizer(json.dumps(value).encode(), 512, "t.json")
    assert checked.added["<|begin_of_text|>"] == 496
    assert len(checked.added) == 16
    assert checked.added.keys() - checked.control.keys() == {"<|reserved_special_token_1|>"}


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    check_tokenizer(tokenizer(), 512, "t.json")
    with pytest.raises(CheckpointError, match=r"t\.json: largest token id 511, the model has 511 rows"):
        check_tokenizer(tokenizer(), 511, "t.json")


def test_truncation_and_padding_are_taken_out() -> None:
    cutting = tokenizers.Tokenizer.from_str(tokenizer().decode())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=64)
    checked = check_tokenizer(cutting.to_str().encode(), 512, "t.json")
    loaded = tokenizers.Tokenizer.from_str(checked.json.decode())
    assert loaded.truncation is None
    assert loaded.padding is None
    assert len(loaded.encode("one two three four five six", add_special_tokens=False).ids) > 4


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"\xff",
        tokenizer(model={"type": "Nothing"}),
        tokenizer(added_tokens={}),
        tokenizer(added_tokens=["<|eot_id|>"]),
        tokenizer(added_tokens=[{"id": 496, "content": ""}]),
        tokenizer(added_tokens=[json.loads(tokenizer())["added_tokens"][0]] * 2),
    ],
)
def test_what_does_not_load_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"t\.json"):
        check_tokenizer(data, 512, "t.json")


def test_an_added_token_whose_id_is_not_what_the_file_says_is_refused() -> None:
    value = json.loads(tokenizer(post_processor=None))
    value["added_tokens"] = value["added_tokens"][5:6]
    with pytest.raises(CheckpointError, match=r"<\|step_id\|>.*another id than 501"):
        check_tokenizer(json.dumps(value).encode(), 512, "t.json")
