"""llguidance's grammars as constraints. Beside ``guard.tools.patterns`` the only module that imports llguidance (the
extra ``structured``).
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import numpy as np
import numpy.typing as npt

from guard.errors import BundleError, InvalidInputError, UnsupportedError
from guard.generation import ChoiceFormat, Constraint, JsonFormat, OutputFormat, RegexFormat
from guard.structured.checks import check_format
from guard.structured.reasons import reason

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

#: Compiled grammars that are kept: some KB each, 4 MB for enumerations as large as a schema may be.
CACHED_GRAMMARS = 32
PROBED_TOKENS = 4
#: At most one space, after a separator. Free white space is where small models get lost: they write it without end.
#: No ``\\u`` escapes: with them an additional key could overwrite a declared one (``"\\u0069d"`` is "id").
_JSON_STYLE: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "json_allowed_escapes": '"\\bfnrt',
    "lenient": False,
}


class FormatCompiler:
    """Turns output formats into constraints for one model's tokens. Threads may share it.

    ``vocab_size`` is that of the logits: ids beyond the tokenizer's are never allowed. ``stop_ids`` end a text.
    Control tokens, which are the tokenizer's special ones, are never allowed inside a text.
    """

    def __init__(self, tokenizer_path: Path, vocab_size: int, stop_ids: Iterable[int]) -> None:
        self._path = tokenizer_path
        self._vocab_size = vocab_size
        self._stop_ids = sorted(stop_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Compile a small format, which loads what the first one needs. Without the extra, or for a tokenizer that
        cannot be used, nothing happens: whoever asks for a format is told.
        """
        with suppress(UnsupportedError, BundleError):
            self.constraint(ChoiceFormat(("yes", "no")))

    def constraint(self, output_format: OutputFormat) -> Constraint:
        """A new text's constraint; compiles the format unless it is among the latest CACHED_GRAMMARS.

        Raises InvalidInputError naming the field, UnsupportedError without the extra ``structured``.
        """
        field, key = check_format(output_format)
        with self._lock:  # compiling takes milliseconds, 0.5 s at worst: one at a time bounds what callers can burn
            matcher = self._compiled.get(key)
            if matcher is None:
                matcher = self._compile(field, output_format, key)
                self._compiled[key] = matcher
                if len(self._compiled) > CACHED_GRAMMARS:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(key)
            matcher = matcher.deep_copy()
        return GrammarConstraint(matcher, field, self._vocab_size, self._stop_ids)

    def _compile(self, field: str, output_format: OutputFormat, text: str) -> LLMatcher:
        try:
            import llguidance
        except ModuleNotFoundError:
            raise UnsupportedError(
                'response_format: needs the extra "structured" (pip install guardlet[structured])'
            ) from None
        if self._tokenizer is None:
            try:
                self._tokenizer = llguidance.LLTokenizer(
                    _without_control_names(self._path), n_vocab=self._vocab_size, eos_token=self._stop_ids
                )
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise BundleError(f"{self._path.name}: cannot be used to enforce an output format") from error
        grammar = _grammar(field, output_format, text)
        # A fifth of the defaults and less: the worst grammars found (in the tests) fail in 0.1 s instead of 1 s.
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=200_000,
            step_lexer_fuel=50_000,
            step_max_items=20_000,
            max_lexer_states=10_000,
            max_grammar_size=50_000,
            verbose_errors=False,
        )
        matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise InvalidInputError(field, reason(matcher.get_error()))
        matcher.compute_bitmask()  # once, instead of for every text
        self._probe(GrammarConstraint(matcher.deep_copy(), field, self._vocab_size, self._stop_ids))
        return matcher

    def _probe(self, constraint: GrammarConstraint) -> None:
        """Write a few tokens, so that grammars that are too complex, or that no text satisfies, fail before the prompt
        is computed.
        """
        for _ in range(PROBED_TOKENS):
            mask = constraint.allowed()
            mask[self._stop_ids] = False
            if not mask.any():
                return
            constraint.accept(int(np.argmax(mask)))


class GrammarConstraint:
    """One text's state in its grammar; see ``guard.generation.Constraint``."""

    def __init__(self, matcher: LLMatcher, field: str, vocab_size: int, stop_ids: list[int]) -> None:
        self._matcher = matcher
        self._field = field
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids

    def allowed(self) -> npt.NDArray[np.bool_]:
        """bool [vocabulary]: the tokens that may come next; stop tokens exactly where the text may end.

        Raises InvalidInputError when finding out takes more work than the limits allow, or when the model has no
        token to go on with.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise InvalidInputError(self._field, reason(self._matcher.get_error()))
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        mask[self._stop_ids] = self._matcher.is_accepting()
        if not mask.any():
            raise InvalidInputError(self._field, "the model has no tokens for a text that satisfies it")
        return mask

    def accept(self, token_id: int) -> None:
        """Note the token that came. Raises as ``allowed`` does, and ValueError for a token that was not allowed."""
        if self._matcher.consume_token(token_id):
            return
        message = self._matcher.get_error()
        if "doesn't satisfy the grammar" in message:
            raise ValueError(f"token {token_id} was not allowed")
        raise InvalidInputError(self._field, reason(message))


def _grammar(field: str, output_format: OutputFormat, text: str) -> str:
    from llguidance import LLMatcher, regex_to_lark

    match output_format:
        case JsonFormat():
            try:
                return LLMatcher.grammar_from_json_schema(text.partition(":")[2], overrides=_JSON_STYLE)
            except ValueError as error:
                raise InvalidInputError(field, reason(str(error))) from None
        case RegexFormat(pattern):
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(pattern, use_ascii='dws')}/")
        case ChoiceFormat(choices):
            return LLMatcher.grammar_from_regex("|".join(map(_escaped, choices)))
        case _:
            assert_never(output_format)


def _without_control_names(path: Path) -> str:
    """tokenizer.json with names for the control tokens that nobody can guess.

    Where a format leaves one way to go on, llguidance takes the tokens of that text, and a control token's own name in
    a caller's literal would become the control token.
    """
    data = json.loads(path.read_text("utf-8"))
    names = {token["content"]: f"control {secrets.token_hex(16)}" for token in data["added_tokens"] if token["special"]}
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    data["model"]["vocab"] = {names.get(text, text): token_id for text, token_id in data["model"]["vocab"].items()}
    data["post_processor"] = None  # knows them by name too; it adds what begins a prompt
    return json.dumps(data)


def _escaped(text: str) -> str:
    """``text`` as a regular expression that matches nothing else."""
    return "".join(letter if letter.isascii() and letter.isalnum() else f"\\x{{{ord(letter):X}}}" for letter in text)
