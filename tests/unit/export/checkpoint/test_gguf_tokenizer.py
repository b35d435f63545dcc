from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from export.checkpoint.bpe import BYTE_ALPHABET, byte_text
from export.checkpoint.files import RandomAccessFile
from export.checkpoint.gguf_file import GgufFile
from export.checkpoint.gguf_tokenizer import read_tokenizer
from export.checkpoint.huggingface import open_directory
from guard.bundle.manifest import Tokens
from guard.errors import CheckpointError, UnsupportedError

from .gguf_files import GgufContent, llama_content

TEXTS = (
    "safe unsafe\n\nS1,S10,S13 Check if there is 12345 3.14",
    "def f(x):\n\treturn x ** 2  # 100%",
    "I'll DON'T we're",
    "Größe 東京 \u0663\u0664 \u00bd 🙂\u200d",
    "  \n \n\n trailing  ",
)


@pytest.fixture
def content(tiny: Path) -> GgufContent:
    checkpoint = open_directory(tiny)
    return llama_content(replace(checkpoint, spec=replace(checkpoint.spec, rope_scaling=None)))


def rebuilt(content: GgufContent, tmp_path: Path, **changes: Any) -> tuple[tokenizers.Tokenizer, Tokens]:
    """The tokenizer with ``tokenizer.ggml.*`` fields changed, or left out when the new value is ``...``."""
    named = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in (content.metadata | named).items() if value is not ...}
    path = GgufContent(metadata).write(tmp_path / "x.gguf")
    data, tokens = read_tokenizer(GgufFile(RandomAccessFile(path)))
    return tokenizers.Tokenizer.from_str(data.decode()), tokens


def encode(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    tokens: list[str] = tokenizer.encode(text, add_special_tokens=False).tokens
    return tokens


def test_the_same_ids_as_the_original(content: GgufContent, tiny: Path, tmp_path: Path) -> None:
    original = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    tokenizer, _ = rebuilt(content, tmp_path)
    for text in (*TEXTS, "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"):
        assert tokenizer.encode(text).ids == original.encode(text).ids
    assert tokenizer.get_vocab(with_added_tokens=True) == original.get_vocab(with_added_tokens=True)


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "gpt-2", "default"])
def test_every_text_survives(content: GgufContent, tmp_path: Path, pre: str) -> None:
    tokenizer, _ = rebuilt(content, tmp_path, pre=pre)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_how_the_families_split(content: GgufContent, tmp_path: Path) -> None:
    words = (
        "Ġ",
        "1",
        "2",
        "3",
        "4",
        "Ġ1",
        "12",
        "123",
        "1234",
        "Ġ12",
        "Ġ123",
        "Ġ1234",
        "a",
        ".",
        "a.",
        "Ġ.",
        "1.",
        "ĠĠ",
    )
    alphabet = [text for text in BYTE_ALPHABET.values() if text not in words]
    vocabulary = [*alphabet, *dict.fromkeys(words), "<e>"]
    pairs = ["Ġ 1", "Ġ1 2", "Ġ12 3", "Ġ123 4", "1 2", "12 3", "123 4", "a .", "Ġ .", "1 .", "Ġ Ġ"]
    fields: dict[str, Any] = {
        "tokens": vocabulary,
        "token_type": [1] * (len(vocabulary) - 1) + [3],
        "merges": pairs,
        "bos_token_id": ...,
        "eos_token_id": len(vocabulary) - 1,
    }
    expected = {
        "smollm": ["Ġ", "1", "2", "3", "4", "Ġ.", "a", "."],
        "gpt-2": ["Ġ1234", "Ġ.", "a", "."],
        "llama-bpe": ["Ġ", "123", "4", "Ġ.", "a", "."],
        "default": ["Ġ", "123", "4", "Ġ", ".", "a", "."],
    }
    for pre, tokens in expected.items():
        assert encode(rebuilt(content, tmp_path, pre=pre, **fields)[0], " 1234 .a.") == tokens, pre
    # SmolLM cuts digits out first, so the spaces before one are a piece of their own.
    assert encode(rebuilt(content, tmp_path, pre="smollm", **fields)[0], "a  1") == ["a", "ĠĠ", "1"]
    assert encode(rebuilt(content, tmp_path, pre="gpt-2", **fields)[0], "a  1") == ["a", "Ġ", "Ġ1"]


def test_added_tokens_in_front_keep_their_ids(content: GgufContent, tmp_path: Path) -> None:
    texts = content.metadata["tokenizer.ggml.tokens"]
    front = ["<s>", "<user>"]
    tokenizer, tokens = rebuilt(
        content,
        tmp_path,
        tokens=front + texts,
        token_type=[3, 4, *content.metadata["tokenizer.ggml.token_type"]],
        bos_token_id=0,
    )
    assert tokenizer.encode("<s><user>!", add_special_tokens=False).ids == [0, 1, 2]
    assert tokens.bos == 0
    assert tokens.control["<s>"] == 0
    assert "<user>" not in tokens.control
    assert tokens.control["<|eot_id|>"] == 507


def test_bos_is_added_when_the_metadata_or_the_family_says_so(content: GgufContent, tmp_path: Path) -> None:
    def first(**changes: Any) -> int:
        ids: list[int] = rebuilt(content, tmp_path, **changes)[0].encode("!").ids
        return ids[0]

    assert first() == 496
    assert first(add_bos_token=False) == 0
    assert first(pre="smollm") == 0
    assert first(pre="smollm", add_bos_token=True) == 496


def test_stop_tokens(content: GgufContent, tmp_path: Path) -> None:
    assert rebuilt(content, tmp_path)[1].stop == (497, 504, 505)
    assert rebuilt(content, tmp_path, eos_token_id=500, eot_token_id=501, eom_token_id=502)[1].stop == (
        497,
        500,
        501,
        502,
        504,
        505,
    )


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"model": "llama"}, UnsupportedError, "model 'llama'"),
        ({"model": ...}, UnsupportedError, "model None"),
        ({"pre": "qwen2"}, UnsupportedError, "pre 'qwen2'"),
        ({"pre": ...}, UnsupportedError, "pre None"),
        ({"tokens": ...}, CheckpointError, "tokens"),
        ({"tokens": 5}, CheckpointError, "tokens"),
        ({"merges": ...}, CheckpointError, "merges"),
        ({"merges": ["ab"]}, CheckpointError, "'ab' is not a pair"),
        ({"merges": ["a b c"]}, CheckpointError, "'a b c' is not a pair"),
        ({"token_type": ...}, CheckpointError, "token_type"),
        ({"token_type": [1, 1]}, CheckpointError, "token_type"),
        ({"token_type": [1.0] * 512}, CheckpointError, "token_type"),
        ({"token_type": [6] * 512}, UnsupportedError, "type 6"),
        ({"bos_token_id": 512}, CheckpointError, "bos_token_id"),
        ({"eos_token_id": "2"}, CheckpointError, "eos_token_id"),
        ({"tokens": ["a"] * 512}, CheckpointError, "twice"),
    ],
)
def test_broken_or_foreign_tokenizers_are_refused(
    content: GgufContent, tmp_path: Path, changes: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=rf"tokenizer\.ggml.*{named}"):
        rebuilt(content, tmp_path, **changes)


def test_an_answer_must_be_able_to_end(content: GgufContent, tmp_path: Path) -> None:
    plain = [1] * len(content.metadata["tokenizer.ggml.tokens"])
    with pytest.raises(CheckpointError, match="eos_token_id"):
        rebuilt(content, tmp_path, token_type=plain, eos_token_id=...)


def test_the_byte_alphabet() -> None:
    assert len(set(BYTE_ALPHABET.values())) == 256
    assert byte_text("a b\n\x00é") == "aĠbĊĀÃ©"
