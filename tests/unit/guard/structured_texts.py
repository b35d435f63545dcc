"""Writing texts under a constraint with a model that knows nothing: random logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from guard.generation import ChoiceFormat, JsonFormat, OutputFormat, RegexFormat
from guard.structured import FormatCompiler
from guard.tokenizer import Tokenizer

CONTROL = ("<|im_start|>", "<|im_end|>", "<|eot|>")
#: More than the tokenizer has, as padded embeddings are.
VOCAB_SIZE = 1024


class RandomWriter:
    """Writes texts with random logits over a small byte-pair vocabulary that has all bytes, as real ones have."""

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        control = _write_tokenizer(path)
        self.control_ids = set(control.values())
        self.stop_ids = [control["<|im_end|>"], control["<|eot|>"]]
        self.tokenizer = Tokenizer(path, control)
        self.compiler = FormatCompiler(path, VOCAB_SIZE, self.stop_ids)
        self.vocabulary = HfTokenizer.from_file(str(path)).get_vocab_size()
        # What ends strings, lists, parts of addresses and objects: a text that has become long is led to its end.
        self._closing = [self.tokenizer.encode_text(sign)[0] for sign in '"]@:}']

    def write(self, output_format: OutputFormat, seed: int, long: int = 60, limit: int = 4000) -> str:
        """A text under the format's constraint; after ``long`` tokens it prefers to end."""
        constraint, ids = self.compiler.constraint(output_format), list[int]()
        noise = np.random.default_rng(seed)
        while len(ids) < limit:
            allowed = constraint.allowed()
            logits = np.where(allowed, noise.normal(size=VOCAB_SIZE), -np.inf)
            if len(ids) >= long:
                logits[self._closing] += np.arange(60, 10, -10)
                logits[self.stop_ids] += 100
            token = int(np.argmax(logits))
            if token in self.stop_ids:
                return self.tokenizer.decode(ids)
            assert token not in self.control_ids and token < self.vocabulary
            constraint.accept(token)
            ids.append(token)
        raise AssertionError("the text did not end")

    def takes(self, output_format: OutputFormat, text: str) -> bool:
        """Whether the constraint lets ``text`` be written and end."""
        constraint = self.compiler.constraint(output_format)
        for token in self.tokenizer.encode_text(text):
            if not constraint.allowed()[token]:
                return False
            constraint.accept(token)
        stops = constraint.allowed()[self.stop_ids]
        assert stops.all() or not stops.any()
        return bool(stops.all())


def case_format(case: dict[str, object]) -> OutputFormat:
    """The format of a line of tests/data/structured_cases.jsonl."""
    match case:
        case {"schema": dict(schema)}:
            return JsonFormat(schema)
        case {"regex": str(pattern)}:
            return RegexFormat(pattern)
        case {"choices": list(choices)}:
            return ChoiceFormat(tuple(choices))
    raise ValueError("neither schema, regex nor choices")


def _write_tokenizer(path: Path) -> dict[str, int]:
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [json.dumps({"name": "the", "value": [True, None, 12.5], "text": "on the one hand,\n  and"})] * 8
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(CONTROL)
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(path))
    return {text: tokenizer.token_to_id(text) for text in CONTROL}
