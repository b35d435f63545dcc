"""Regular expressions of JSON Schemas, matched in time linear in the text.

Callers write the expression and the model the text, and both meet on the engine's thread: Python's backtracking ``re``
would let ``(a+)+$`` stop the service.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from guard.errors import UnsupportedError
from guard.tools.values import canonical

MISSING_EXTRA: Final = "tools: not without the extra guardlet[structured]"
_END: Final = 256


class Pattern:
    """A ``pattern`` of JSON Schema: found anywhere in a string unless anchored.

    Raises ValueError for what is no regular expression, has look-around or word borders, or grows too large;
    UnsupportedError when llguidance is not installed.
    """

    def __init__(self, pattern: str) -> None:
        tokenizer = _byte_tokenizer()
        import llguidance

        grammar = llguidance.LLMatcher.grammar_from_json_schema({"type": "string", "pattern": pattern})
        self._matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        if self._matcher.is_error():
            raise ValueError("not a regular expression that can be matched in linear time")

    def found_in(self, text: str) -> bool:
        """Whether the pattern is found in ``text``, which has no lone surrogate."""
        self._matcher.reset()
        tokens = list(canonical(text).encode())
        return bool(self._matcher.try_consume_tokens(tokens) == len(tokens) and self._matcher.is_accepting())


class _Bytes:
    """A vocabulary of the 256 bytes and an end token, as ``TokenizerWrapper`` reads it."""

    eos_token_id = _END
    bos_token_id = None
    tokens: tuple[Any, ...] = (*(bytes([value]) for value in range(_END)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def _byte_tokenizer() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UnsupportedError(MISSING_EXTRA) from error
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), slices=[])
