"""The tokenizer inside a GGUF file's metadata, rebuilt as a Hugging Face ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from export.checkpoint.bpe import AddedToken, tokenizer_json
from export.checkpoint.gguf_file import GgufFile
from export.messages import quoted
from guard.bundle.manifest import Tokens
from guard.errors import CheckpointError, UnsupportedError

#: ``tokenizer.ggml.pre`` to our family; the names are those of llama.cpp (src/llama-vocab.cpp).
_FAMILIES: Final[Mapping[str, str]] = {
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama-v3": "llama3",
    "llama3": "llama3",
    "gpt-2": "gpt2",
    "default": "llama.cpp",
}
#: ``tokenizer.ggml.token_type`` (``enum llama_token_type`` in llama.h).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

#: Control tokens that end an answer even where the metadata names only one of them, as llama.cpp takes them.
_END_TEXTS: Final = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>")


def read_tokenizer(file: GgufFile) -> tuple[bytes, Tokens]:
    """The rebuilt ``tokenizer.json`` and the token ids that matter.

    Raises UnsupportedError for a tokenizer that is not byte-level BPE or whose pre-tokenizer is not known here, and
    CheckpointError for broken metadata.
    """
    model = file.metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnsupportedError(
            f"{file.name}: tokenizer.ggml.model {quoted(model)}: only 'gpt2' (byte-level BPE) is read"
        )
    pre = file.metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in _FAMILIES:
        known = ", ".join(_FAMILIES)
        raise UnsupportedError(f"{file.name}: tokenizer.ggml.pre {quoted(pre)}: only {known} are supported")
    texts = _texts(file, "tokenizer.ggml.tokens")
    added = _added_tokens(file, texts)
    by_text = {token.text: token for token in added}
    bos = _special(file, "bos", texts)
    with_bos = file.metadata.get("tokenizer.ggml.add_bos_token", _FAMILIES[pre] == "llama3")
    data = tokenizer_json(
        _vocabulary(file, texts, added),
        [_merge(file, text) for text in _texts(file, "tokenizer.ggml.merges")],
        added,
        family=_FAMILIES[pre],
        bos=by_text.get(texts[bos]) if with_bos is True and bos is not None else None,
    )
    control = {token.text: token.id for token in added if token.special}
    named = [_special(file, name, texts) for name in ("eos", "eot", "eom")]
    stop = {token_id for token_id in named if token_id is not None} | {control[t] for t in _END_TEXTS if t in control}
    if not stop:
        raise CheckpointError(f"{file.name}: tokenizer.ggml.eos_token_id: missing")
    return data, Tokens(bos=bos, stop=tuple(sorted(stop)), control=control)


def _texts(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not value:
        raise CheckpointError(f"{file.name}: {key}: expected a list of texts")
    return value


def _added_tokens(file: GgufFile, texts: list[str]) -> list[AddedToken]:
    key = "tokenizer.ggml.token_type"
    types = file.metadata.get(key)
    if not isinstance(types, np.ndarray) or types.dtype.kind not in "iu" or len(types) != len(texts):
        raise CheckpointError(f"{file.name}: {key}: expected one integer for each token")
    kinds: list[int] = types.tolist()
    unknown = set(kinds) - {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED}
    if unknown:
        raise UnsupportedError(f"{file.name}: {key}: type {min(unknown)} in a byte-level vocabulary")
    return [
        AddedToken(index, texts[index], special=kind != _USER_DEFINED)
        for index, kind in enumerate(kinds)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]


def _vocabulary(file: GgufFile, texts: list[str], added: list[AddedToken]) -> dict[str, int]:
    """Text to id without the added tokens that close the list: those get the same ids when the tokenizer is loaded.

    Added tokens elsewhere must stay, because the ids of the vocabulary may have no holes.
    """
    outside = {token.id for token in added}
    size = len(texts)
    while size - 1 in outside:
        size -= 1
    vocab = {text: index for index, text in enumerate(texts[:size])}
    if len(vocab) != size or len(set(texts)) != len(texts):
        raise CheckpointError(f"{file.name}: tokenizer.ggml.tokens: a token is there twice")
    return vocab


def _merge(file: GgufFile, text: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not left or not space or not right or " " in right:
        raise CheckpointError(f"{file.name}: tokenizer.ggml.merges: {quoted(text)} is not a pair")
    return left, right


def _special(file: GgufFile, name: str, texts: list[str]) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.metadata.get(key)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value < len(texts):
        raise CheckpointError(f"{file.name}: {key}: expected a token id below {len(texts)}")
    return value
