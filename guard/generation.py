"""What a caller asks of a text generator, and what comes back. Frozen, and valid once constructed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from guard.conversation import Conversation, ToolCall
from guard.engine.sampler import SamplingParams
from guard.errors import InvalidInputError

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 8
#: Alternatives of each token, as in OpenAI's API.
MAX_TOP_LOGPROBS = 20


class FinishReason(Enum):
    """Why a text ended: the model ended it, ``max_tokens`` was reached, a stop string came up, the model called tools,
    or the guard stopped it.
    """

    STOP = "stop"
    LENGTH = "length"
    STOP_SEQUENCE = "stop_sequence"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. ``parameters`` is the JSON Schema of its arguments, an object's."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})


class ToolMode(Enum):
    """Whether the model calls tools: as it likes, never, or at least one."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True)
class ToolChoice:
    """``name`` set: that tool must be called."""

    mode: ToolMode = ToolMode.AUTO
    name: str = ""


@dataclass(frozen=True)
class JsonFormat:
    """The text is one JSON value that ``schema`` (a JSON Schema) accepts."""

    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})


@dataclass(frozen=True)
class RegexFormat:
    """The text matches ``pattern`` as a whole."""

    pattern: str


@dataclass(frozen=True)
class ChoiceFormat:
    """The text is one of ``choices``."""

    choices: tuple[str, ...]


OutputFormat = JsonFormat | RegexFormat | ChoiceFormat


@dataclass(frozen=True)
class GenerateTask:
    """One prompt to continue: either a ``conversation``, or a plain ``prompt`` that no chat template wraps.

    ``today`` is for chat templates that print a date. ``choices`` texts are written, the i-th (from 0) with the seed
    ``sampling.seed`` + i. ``logprobs``: None for none, else how many alternatives of each token come with its own.
    ``prompt_lookup`` lets the engine propose tokens that follow an earlier occurrence of the latest ones: faster where
    a text repeats its prompt, the same text in float32, up to near-ties in a quantized model (docs/decisions/0091).
    Tasks with different ``cache_salt`` share no cached beginning of a prompt. Raises
    InvalidInputError naming the field.
    """

    conversation: Conversation | None = None
    prompt: str | None = None
    max_tokens: int = 256
    sampling: SamplingParams = field(default_factory=SamplingParams)
    choices: int = 1
    logprobs: int | None = None
    stop: tuple[str, ...] = ()
    today: date = field(default_factory=date.today)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    output_format: OutputFormat | None = None
    prompt_lookup: bool = False
    cache_salt: str = ""

    def __post_init__(self) -> None:
        if (self.conversation is None) == (self.prompt is None):
            raise InvalidInputError("prompt", "expected either messages or a prompt")
        if self.max_tokens < 1:
            raise InvalidInputError("max_tokens", "expected at least 1")
        if not 1 <= self.choices <= MAX_CHOICES:
            raise InvalidInputError("choices", f"expected 1 to {MAX_CHOICES}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidInputError("top_logprobs", f"expected 0 to {MAX_TOP_LOGPROBS}")
        if len(self.stop) > MAX_STOPS:
            raise InvalidInputError("stop", f"{len(self.stop)} strings, the limit is {MAX_STOPS}")
        for index, text in enumerate(self.stop):
            if not 0 < len(text) <= MAX_STOP_CHARACTERS:
                raise InvalidInputError(f"stop[{index}]", f"expected 1 to {MAX_STOP_CHARACTERS} characters")
        if self.tools and self.output_format is not None:
            raise InvalidInputError("response_format", "cannot be combined with tools")
        if self.prompt is not None and self.tools:
            raise InvalidInputError("tools", "need messages: a plain prompt has no place for them")


class Constraint(Protocol):
    """What one text may go on with. One for each text; used on the engine's thread only."""

    def allowed(self) -> npt.NDArray[np.bool_]:
        """bool [vocabulary]: the tokens that may come next. Stop tokens are among them where the text may end."""

    def accept(self, token_id: int) -> None:
        """Note the token that came, one that was allowed; stop tokens are not noted."""


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, and its log probability (natural logarithm)."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was written: its log probability under the model's own distribution, before penalties, temperature
    and truncation, and the most likely alternatives, best first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Delta:
    """Text of one choice that is ready to show; ``completion_tokens`` counts those of that choice so far."""

    text: str
    completion_tokens: int
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One finished text."""

    text: str
    finish_reason: FinishReason
    completion_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Generation:
    """What became of a task. Times in seconds; ``first_token_s`` counts from submission.

    Of ``drafted_tokens`` that prompt lookup proposed, ``accepted_tokens`` were what the model would have written.
    """

    choices: tuple[Choice, ...]
    prompt_tokens: int
    cached_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    queue_s: float
    first_token_s: float
    model_s: float

    @property
    def completion_tokens(self) -> int:
        """Tokens written, all choices together."""
        return sum(choice.completion_tokens for choice in self.choices)

    @property
    def tokens_per_second(self) -> float:
        """Tokens written a second after the first of each choice, all choices together; 0 when there were none."""
        later_tokens = self.completion_tokens - len(self.choices)
        seconds = self.queue_s + self.model_s - self.first_token_s
        return later_tokens / seconds if later_tokens > 0 and seconds > 0.0 else 0.0

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text

    @property
    def finish_reason(self) -> FinishReason:
        """The first choice's."""
        return self.choices[0].finish_reason
