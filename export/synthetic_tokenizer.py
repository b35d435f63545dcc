"""A generated tokenizer of Llama 3's kind for synthetic checkpoints: right ids where they matter, filler elsewhere."""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Iterator
from typing import Final

from export.checkpoint.bpe import BYTE_ALPHABET, AddedToken, byte_text, tokenizer_json
from guard.errors import InvalidInputError

#: Where Llama 3's control tokens begin, and how many rows its vocabulary has.
LLAMA3_CONTROL_START: Final = 128_000
LLAMA3_VOCAB_SIZE: Final = 128_256

#: The control tokens by their place after ``LLAMA3_CONTROL_START``; the others are reserved.
_CONTROL_NAMES: Final = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    5: "<|step_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}

#: Tokens of a guard's answer and of numbers, with their ids in Llama 3's vocabulary (read with Meta's tokenizer.model).
_LABELS: Final = {
    "\n\n": 271,
    "10": 605,
    "12": 717,
    "11": 806,
    "14": 975,
    "13": 1032,
    "safe": 19_193,
    ",S": 21_861,
    "unsafe": 39_257,
}
#: Merges that build the labels, in rank order.
_MERGES: Final = (
    ("\n", "\n"),
    *(("1", digit) for digit in "01234"),
    ("s", "a"),
    ("sa", "f"),
    ("saf", "e"),
    (",", "S"),
    ("u", "n"),
    ("un", "safe"),
)

SMALLEST_VOCABULARY: Final = 320


def llama3_tokenizer(vocab_size: int, texts: Iterable[str]) -> bytes:
    """A byte-level BPE ``tokenizer.json`` of ``vocab_size`` ids whose control and label tokens are Llama 3's.

    From 128,256 ids on, they stand at Llama 3's own ids; below, the control tokens are the last 16 ids in the same
    order and the labels follow the 256 bytes. Words of ``texts`` become single tokens as far as there is room,
    then short letter strings fill the vocabulary. Raises InvalidInputError when ``vocab_size`` is too small.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InvalidInputError("vocab_size", f"{vocab_size} is below {SMALLEST_VOCABULARY}")
    full = vocab_size >= LLAMA3_VOCAB_SIZE
    controls = _control_tokens(LLAMA3_CONTROL_START, 256) if full else _control_tokens(vocab_size - 16, 16)
    tokens: dict[int, str] = dict(enumerate(BYTE_ALPHABET.values()))
    if full:
        tokens |= {token_id: byte_text(text) for text, token_id in _LABELS.items()}
    free = (token_id for token_id in range(256, controls[0].id) if token_id not in tokens)
    vocab = {text: token_id for token_id, text in tokens.items()}
    for text in _fillers(texts):
        if text not in vocab:
            token_id = next(free, None)
            if token_id is None:
                break
            vocab[text] = token_id
    merges = [(byte_text(left), byte_text(right)) for left, right in _MERGES]
    return tokenizer_json(vocab, merges, controls, family="llama3", bos=controls[0])


def _control_tokens(start: int, count: int) -> list[AddedToken]:
    reserved = (f"<|reserved_special_token_{index}|>" for index in itertools.count())
    names = [_CONTROL_NAMES.get(index) or next(reserved) for index in range(count)]
    return [AddedToken(start + index, name, special=True) for index, name in enumerate(names)]


def _fillers(texts: Iterable[str]) -> Iterator[str]:
    """Vocabulary entries in order of their worth: labels and what their merges need, words, letter strings."""
    for left, right in _MERGES:
        yield byte_text(left + right)
    for text in texts:
        for word in re.findall("[A-Za-z]+", text):
            yield byte_text(" " + word)
            yield word
    for length in (2, 3, 4):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)
            yield byte_text(" " + "".join(letters))
