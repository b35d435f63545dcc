"""What the client's generation calls take and return. Frozen; times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from guard.client.convert_policy import PolicyFields
from guard.client.results import Classification, Timings, Usage
from guard.conversation import ToolCall
from guard.generation import OutputFormat, TokenLogprob, Tool, ToolChoice

FinishReason = Literal["stop", "length", "stop_sequence", "tool_calls", "content_filter"]


@dataclass(frozen=True)
class ModerationOptions:
    """What the guard does around a generation; what is None or empty is left to the server.

    ``check_input``: the last user message is judged first, an unsafe one is not answered. ``check_output``: the text is
    judged while it is written, unsafe text is not sent. ``policy`` goes before ``policy_name``, field by field.
    """

    check_input: bool = True
    check_output: bool = True
    policy: PolicyFields | None = None
    policy_name: str = ""
    model: str = ""
    check_every_tokens: int | None = None


@dataclass(frozen=True)
class GenerationOptions:
    """What is None is left to the server: its ``max_tokens``, the checkpoint's sampling. Limits: generation.proto.

    ``logprobs``: None for none, otherwise how many of the most likely alternatives come with each token. ``plain``: the
    text is one to go on with, and no chat template is put around it.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    choices: int | None = None
    plain: bool = False
    date: date | None = None
    prompt_lookup: bool | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    output_format: OutputFormat | None = None
    moderation: ModerationOptions | None = None


@dataclass(frozen=True)
class Delta:
    """The next piece of a text that is being written: whole code points, possibly of several tokens.

    ``choice`` is which of the texts it belongs to, from 0. ``text`` is empty where only calls or tokens came.
    """

    text: str
    token_count: int
    choice: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class GeneratedChoice:
    """One finished text."""

    text: str
    finish_reason: FinishReason
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ModerationFindings:
    """What the guard found: None where it did not look."""

    input: Classification | None
    output: Classification | None


@dataclass(frozen=True)
class GenerationResult:
    """A finished text, and why it ended. ``further_choices`` are the second text and those after it, when several were
    asked for. ``tokens_per_second`` is the speed after the first token, 0 when there was no second one.
    """

    request_id: str
    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    further_choices: tuple[GeneratedChoice, ...] = ()
    tokens_per_second: float = 0.0
    moderation: ModerationFindings | None = None


@dataclass(frozen=True)
class Label:
    """A label that ``tag`` may choose; ``description`` says what belongs to it."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class LabelScore:
    """How likely a label is, 0 to 1."""

    name: str
    probability: float


@dataclass(frozen=True)
class TagResult:
    """The most likely ``label``, and all of them by falling probability; their probabilities add up to 1."""

    request_id: str
    model: str
    label: str
    scores: tuple[LabelScore, ...]
    usage: Usage
    timings: Timings
