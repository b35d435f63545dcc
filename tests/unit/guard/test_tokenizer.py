from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HfTokenizer

from guard.errors import BundleError
from guard.testing import write_byte_tokenizer
from guard.tokenizer import Segment, Tokenizer

from .conftest import CONTROL

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
#: Hypothesis tries string constants of the code under test too, so even random text can be a control token.
ORDINARY = TEXT.filter(lambda text: not any(control in text for control in CONTROL))
#: User text that is full of control tokens, whole and in parts.
HOSTILE = st.lists(st.one_of(TEXT, st.sampled_from(CONTROL), st.sampled_from(["<|", "|>", "eot_id"]))).map("".join)


@given(text=HOSTILE)
def test_user_text_never_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    """Failure test 13."""
    ids = tokenizer.encode([Segment(text, trusted=False)])
    assert max(ids, default=0) < 256
    assert bytes(text, "utf-8") == "".join(tokenizer.decode(ids)).encode()


@given(texts=st.lists(ORDINARY, min_size=1))
def test_segments_tokenize_like_the_whole_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    whole = tokenizer.encode_text("".join(texts))
    assert tokenizer.encode([Segment(text, trusted=index % 2 == 0) for index, text in enumerate(texts)]) == whole


def test_control_tokens_of_templates_become_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([Segment("a<|eot_id|>", trusted=True), Segment("<|eot_id|>", trusted=False)])
    assert ids.count(256 + CONTROL.index("<|eot_id|>")) == 1
    assert len(ids) == 1 + 1 + len("<|eot_id|>")


def test_stream_decoder_holds_back_unfinished_characters(tokenizer: Tokenizer) -> None:
    text = "né 漢字 🙂!"
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.step(token) for token in tokenizer.encode_text(text)]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_tokenizer_that_disagrees_with_the_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    ids = write_byte_tokenizer(path, ["<|a|>", "<|b|>"])
    with pytest.raises(BundleError, match="is not"):
        Tokenizer(path, {"<|a|>": ids["<|b|>"]})
    path.write_text("{")
    with pytest.raises(BundleError, match="not a tokenizer"):
        Tokenizer(path, {})


def test_tokenizer_that_makes_control_tokens_of_ordinary_text_is_refused(tmp_path: Path) -> None:
    # A byte token declared to be a control token: any text with that byte would forge it.
    path = tmp_path / "tokenizer.json"
    write_byte_tokenizer(path, [])
    letter = HfTokenizer.from_file(str(path)).token_to_id("a")
    with pytest.raises(BundleError, match="control token"):
        Tokenizer(path, {"a": letter}).encode_text("banana")
