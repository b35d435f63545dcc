"""Checks of a Hugging Face ``tokenizer.json`` that hold for every kind of checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import tokenizers

from export.checkpoint.files import parse_json_object
from export.messages import quoted
from guard.errors import CheckpointError


@dataclass(frozen=True)
class CheckedTokenizer:
    """A ``tokenizer.json`` that loads, fits the model's vocabulary, and neither truncates nor pads.

    ``added`` maps the text of every added token to its id; ``control`` only those marked special.
    """

    json: bytes
    added: dict[str, int]
    control: dict[str, int]


def check_tokenizer(data: bytes, vocab_size: int, where: str) -> CheckedTokenizer:
    """Raises CheckpointError when the file does not load or has ids beyond ``vocab_size``.

    A stored truncation or padding setting is taken out: silently cutting a text would hide its tail from a guard.
    """
    value = parse_json_object(data, where)
    if value.get("truncation") is not None or value.get("padding") is not None:
        value |= {"truncation": None, "padding": None}
        data = json.dumps(value, ensure_ascii=False).encode()
    try:
        loaded = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception for everything
        raise CheckpointError(f"{where}: the tokenizers library cannot load it") from error
    largest = max(loaded.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < vocab_size:
        raise CheckpointError(f"{where}: largest token id {largest}, the model has {vocab_size} rows")
    added, control = _added_tokens(value, where)
    for text, token_id in added.items():
        if loaded.token_to_id(text) != token_id:
            raise CheckpointError(f"{where}: added token {quoted(text)} loads with another id than {token_id}")
    return CheckedTokenizer(data, added, control)


def _added_tokens(value: dict[str, Any], where: str) -> tuple[dict[str, int], dict[str, int]]:
    added: dict[str, int] = {}
    control: dict[str, int] = {}
    tokens = value.get("added_tokens")
    if tokens is None:
        return added, control
    if not isinstance(tokens, list):
        raise CheckpointError(f"{where}: added_tokens: expected a list")
    for index, token in enumerate(tokens):
        content, token_id = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or not content or type(token_id) is not int or content in added:
            raise CheckpointError(f"{where}: added_tokens[{index}]: expected a new content and an id")
        added[content] = token_id
        if token.get("special") is True:
            control[content] = token_id
    return added, control
