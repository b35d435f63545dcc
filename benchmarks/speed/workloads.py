"""What every engine is given: the same token ids, made from the guard bundle's own prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.speed.engine import Classify, Decode, Prefill
from guard.bundle import Bundle, open_bundle
from guard.conversation import Conversation, Message, Role, Target
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer

CONVERSATIONS = (10, 40, 400, 2000)
PREFILLS = (128, 512, 2048)
STREAMS = (1, 2, 4, 8)
DECODE_PROMPT, DECODE_STEPS = 128, 32
#: "\n\n", "safe", end of turn: what a guard that is used as a generator writes at least.
ANSWER_TOKENS = 3
#: "unsafe", "\\n", "S": what our one pass reads the categories behind.
FORCED_TOKENS = 3
_WORDS = "The council met again on Tuesday to talk about the bridge, the school roof and the price of water."
_FILL, _APART = "a", 7


def text_of(count: int, tokens_of: Callable[[str], int]) -> str:
    """A text of exactly so many tokens: the beginning of an endless story, with a short word here and there. Raises
    ValueError when that word is no token.
    """
    words = _WORDS.split() * count
    low, high = 0, count  # a word is at least one token
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens_of(" ".join(words[:middle])) <= count else (low, middle - 1)
    words, place = words[:low], 0
    while tokens_of(" ".join(words)) < count:  # apart: single letters in a row are a disguise, which is read twice
        place = (place + _APART) % (len(words) + 1)
        words.insert(place, _FILL)
    text = " ".join(words)
    if tokens_of(text) != count:
        raise ValueError(f"no text of exactly {count} tokens")
    return text


class Prompts:
    """Guard prompts and plain prompts in one bundle's tokens."""

    def __init__(self, directory: Path) -> None:
        bundle: Bundle = open_bundle(directory)
        self._tokenizer = Tokenizer(bundle.tokenizer_path, bundle.manifest.tokens.control)
        self._format = bundle.manifest.guard

    def classify(self, tokens: int, *, warm: bool, generated: bool = False) -> Classify:
        """A conversation of one message with so many tokens. Read in one pass, the prompt ends with the answer's fixed
        start; generated, the engine writes that itself.
        """
        if self._format is None:
            raise ValueError("not a guard bundle")
        text = text_of(tokens, lambda piece: len(self._tokenizer.encode_text(piece)))
        conversation = Conversation((Message(Role.USER, text),))
        prompt = GuardPromptBuilder(self._format, self._tokenizer).build(conversation, Target.PROMPT, Policy())
        before = () if generated else self._format.answer.before_verdict
        rest = (*prompt.token_ids[prompt.prefix_tokens :], *before)
        return Classify(prompt.token_ids[: prompt.prefix_tokens], rest, text, warm, generated, ANSWER_TOKENS)

    def prefill(self, tokens: int) -> Prefill:
        """A plain prompt."""
        return Prefill(self._plain(tokens))

    def decode(self, streams: int) -> Decode:
        """After a plain prompt."""
        return Decode(self._plain(DECODE_PROMPT), streams, DECODE_STEPS)

    def _plain(self, tokens: int) -> tuple[int, ...]:
        text = text_of(tokens, lambda piece: len(self._tokenizer.encode_plain(piece)))
        return tuple(self._tokenizer.encode_plain(text))
