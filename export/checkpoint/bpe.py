"""Byte-level BPE in Hugging Face's ``tokenizer.json`` form, for tokenizers that reach us in another form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

#: How each byte is written in a byte-level vocabulary (GPT-2's bytes_to_unicode, github.com/openai/gpt-2 encoder.py):
#: visible Latin-1 characters stand for themselves, the others for U+0100 onwards. In GPT-2's and Llama 3's id order.
_VISIBLE: Final = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN: Final = [byte for byte in range(256) if byte not in set(_VISIBLE)]
BYTE_ALPHABET: Final[Mapping[int, str]] = {
    **{byte: chr(byte) for byte in _VISIBLE},
    **{byte: chr(0x100 + index) for index, byte in enumerate(_HIDDEN)},
}

#: The split of Llama 3 (github.com/meta-llama/llama3, tokenizer.py, pat_str).
_LLAMA3_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
#: What llama.cpp does with a vocabulary whose ``tokenizer.ggml.pre`` is "default" (src/llama-vocab.cpp), in this order.
_LLAMA_CPP_SPLITS: Final = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before any splitting; ``special`` marks a control token."""

    id: int
    text: str
    special: bool


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    """``use_regex`` splits as GPT-2 does before it maps bytes to the alphabet."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


#: How text is cut before merging, by family.
PRE_TOKENIZERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "gpt2": _byte_level(use_regex=True),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)],
    },
    "llama.cpp": {
        "type": "Sequence",
        "pretokenizers": [*map(_split, _LLAMA_CPP_SPLITS), _byte_level(use_regex=False)],
    },
    "llama3": {"type": "Sequence", "pretokenizers": [_split(_LLAMA3_SPLIT), _byte_level(use_regex=False)]},
}


def byte_text(text: str) -> str:
    """``text`` as it is written in a byte-level vocabulary (a space becomes ``Ġ``)."""
    return "".join(BYTE_ALPHABET[byte] for byte in text.encode("utf-8"))


def tokenizer_json(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Sequence[AddedToken],
    *,
    family: str,
    bos: AddedToken | None,
) -> bytes:
    """A ``tokenizer.json`` for byte-level BPE; ``family`` is a key of ``PRE_TOKENIZERS``.

    ``bos`` is put before the text when special tokens are asked for. Llama 3's vocabulary takes a whole piece that it
    knows without merging (``ignore_merges``), the other families always merge.
    """
    value = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token.id,
                "content": token.text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": token.special,
            }
            for token in sorted(added, key=lambda token: token.id)
        ],
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[family],
        "post_processor": None if bos is None else _bos_template(bos),
        "decoder": _byte_level(use_regex=True) | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": family == "llama3",
            "vocab": dict(vocab),
            "merges": [list(pair) for pair in merges],
        },
    }
    return json.dumps(value, ensure_ascii=False).encode()


def _bos_template(bos: AddedToken) -> dict[str, Any]:
    def special(type_id: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": bos.text, "type_id": type_id}}

    def sequence(name: str, type_id: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": [special(0), sequence("A", 0)],
        "pair": [special(0), sequence("A", 0), special(1), sequence("B", 1)],
        "special_tokens": {bos.text: {"id": bos.text, "ids": [bos.id], "tokens": [bos.text]}},
    }
