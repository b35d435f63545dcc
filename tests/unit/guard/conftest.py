from __future__ import annotations

import re
from pathlib import Path

import pytest

from guard.prompt import LLAMA_GUARD_3_1B
from guard.testing import write_byte_tokenizer
from guard.tokenizer import Tokenizer

CONTROL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>")


@pytest.fixture(scope="session")
def control() -> tuple[str, ...]:
    """The control tokens of the test tokenizer; they include all that the Llama Guard prompt uses."""
    trusted = LLAMA_GUARD_3_1B.opening + LLAMA_GUARD_3_1B.closing
    assert set(re.findall(r"<\|\w+\|>", trusted)) <= set(CONTROL)
    return CONTROL


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, control: tuple[str, ...]) -> Tokenizer:
    """One token a byte, and the control tokens."""
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return Tokenizer(path, write_byte_tokenizer(path, control))
