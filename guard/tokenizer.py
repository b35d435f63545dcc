"""Text to token ids with one rule above all: text that a user wrote never becomes a control token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer as HfTokenizer
from tokenizers.decoders import DecodeStream

from guard.errors import BundleError


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt. Control tokens are recognized in ``trusted`` pieces (templates), never in others (users'
    text).
    """

    text: str
    trusted: bool


class Tokenizer:
    """A Hugging Face ``tokenizer.json`` with the control tokens kept apart."""

    def __init__(self, path: Path, control: Mapping[str, int]) -> None:
        """Load ``path``; ``control`` maps each control token's text to its id. Raises BundleError if they disagree."""
        try:
            self._tokenizer = HfTokenizer.from_file(str(path))
        except Exception as error:  # the Rust loader raises bare Exception
            raise BundleError(f"{path.name}: not a tokenizer") from error
        for text, token_id in control.items():
            if self._tokenizer.token_to_id(text) != token_id:
                raise BundleError(f"{path.name}: control token {text!r} is not {token_id}")
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._control = dict(control)
        self._control_ids = frozenset(control.values())
        alternatives = "|".join(re.escape(text) for text in sorted(control, key=len, reverse=True))
        self._control_pattern = re.compile(f"({alternatives})") if control else None

    def encode_text(self, text: str) -> list[int]:
        """Token ids of text in which nothing is a control token."""
        # A batch of one: unlike encode, it releases the interpreter lock (1.2 s for a megabyte) and skips offsets.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if not self._control_ids.isdisjoint(ids):
            raise BundleError("tokenizer.json: encodes ordinary text to a control token")
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of a text that begins a document: what the tokenizer puts before it (Llama 3's begin of text), then
        the text, in which nothing is a control token.
        """
        before: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return before + self.encode_text(text)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end, in characters, of each token of ``text``."""
        spans: list[tuple[int, int]] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].offsets
        return spans

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        """Token ids of a prompt: the same as tokenizing the whole text at once, except that users' text has no
        control tokens.

        Adjacent ordinary text is tokenized together, because byte-pair merges cross the borders of segments.
        """
        ids: list[int] = []
        ordinary: list[str] = []
        for segment in segments:
            for piece in self._pieces(segment):
                if segment.trusted and piece in self._control:
                    ids += self._flush(ordinary)
                    ids.append(self._control[piece])
                else:
                    ordinary.append(piece)
        return ids + self._flush(ordinary)

    def _pieces(self, segment: Segment) -> list[str]:
        if not segment.trusted or self._control_pattern is None:
            return [segment.text]
        return self._control_pattern.split(segment.text)

    def _flush(self, ordinary: list[str]) -> list[int]:
        text = "".join(ordinary)
        ordinary.clear()
        return self.encode_text(text) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; control tokens give nothing, broken UTF-8 gives U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream_decoder(self) -> StreamDecoder:
        """A decoder for tokens that arrive one at a time."""
        return StreamDecoder(self._tokenizer)


class StreamDecoder:
    """Turns tokens into text as they arrive, holding back bytes that are not yet a whole character."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def step(self, token_id: int) -> str:
        """The text that ``token_id`` completes; empty while a character is unfinished."""
        return self._stream.step(self._tokenizer, token_id) or ""
