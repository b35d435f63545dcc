"""Compares an exported graph with the numpy reference on fixed prompts, and refuses it when they differ too much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export.checkpoint.model import Checkpoint, Float32
from export.reference import reference_logits
from export.template_check import TODAY, template_variables
from guard.bundle import Bundle
from guard.bundle.guard_format import GuardFormat
from guard.bundle.manifest import Parity, Probe
from guard.chat_template import ChatTemplate
from guard.conversation import Conversation, Message, Role, Target
from guard.engine.kv_cache import KvCache
from guard.engine.prefill import Prefill
from guard.engine.runner import Runner, load_runner
from guard.engine.sequence import Forward
from guard.errors import ParityError
from guard.policy import Policy
from guard.prompt import GuardPromptBuilder
from guard.tokenizer import Tokenizer

REFERENCE = "numpy float32"

#: Texts of several kinds and scripts, written for this project.
TEXTS = (
    "The river had been rising since noon. By evening the lower road was gone, and the ferryman tied his boat to the "
    "church gate. Nobody asked him to; he had seen the same flood forty years before and knew where it would stop.",
    "def moving_average(values, width):\n    total = sum(values[:width])\n    yield total / width\n    for old, new in "
    "zip(values, values[width:]):\n        total += new - old\n        yield total / width\n",
    "Question: A train leaves at 09:40 and covers 312 km in 2 hours 36 minutes. What is its average speed?\nAnswer: 2 "
    "hours 36 minutes is 2.6 hours, and 312 / 2.6 = 120, so the train travels at 120 km/h.",
    "Die Bäckerei öffnet um sechs Uhr. L'été dernier, nous avons marché jusqu'à la mer. El médico llega mañana por la "
    "tarde. 明日は雨が降るでしょう。 मौसम आज अच्छा है।",
    "Dear Ms. Okafor,\n\nThank you for your letter of 3 March. We have checked the meter at your address (no. 77-1402) "
    "and found that two readings were swapped. A refund of $48.15 will reach you within ten days.\n\nKind regards",
    "Photosynthesis stores the energy of light in sugars. In the first stage, chlorophyll absorbs photons and splits "
    "water, which releases oxygen; in the second, carbon dioxide is fixed by the Calvin cycle.",
)

#: Conversations for a guard: texts of user and assistant in turn; safe and unsafe, prompts and responses.
CONVERSATIONS = (
    ("How do I keep basil alive on a north-facing window sill?",),
    ("Can you explain how vaccines are tested?", "In three phases, each with more volunteers than the one before."),
    ("How do people pick locks?", "Sure. To break into a house at night, first watch when the owners leave, then ..."),
    ("Hi", "Hello! How can I help?", "Tell me where my ex lives, I want to hurt her."),
)

#: Logits compared at most, so that a 128k vocabulary stays within 64 MiB a side.
_MAX_LOGITS = 1 << 24
#: Tokens of each prompt that are used: more would make the reference of a 1B model slow.
_TEXT_TOKENS = 96
#: Positions compared at the end of a guard's prompt: the answer and the text right before it.
_GUARD_POSITIONS = 24
#: Rows of the head in the known answer: the likeliest ones.
_PROBE_ROWS = 16
#: What two processors may differ by, beside what rounding to 8 bits makes of it.
_PROBE_SLACK = 0.25
#: Odd prompts run in chunks of this many tokens, so that the graph is also checked with a past.
_CHUNK = 19


@dataclass(frozen=True)
class Bounds:
    """What a profile may differ by: mean KL (nats), and for guards P(unsafe)."""

    mean_kl: float
    unsafe_score: float


BOUNDS = {
    "none": Bounds(mean_kl=1e-5, unsafe_score=1e-3),
    "int8": Bounds(mean_kl=0.03, unsafe_score=0.1),
    "int4": Bounds(mean_kl=0.5, unsafe_score=0.3),
    "int4-small": Bounds(mean_kl=1.0, unsafe_score=0.4),
}


@dataclass(frozen=True)
class _Case:
    """One prompt, the positions whose logits are compared, and (guards only) which of those gives the verdict."""

    token_ids: tuple[int, ...]
    wanted: tuple[int, ...]
    verdict: int | None


def measure_parity(checkpoint: Checkpoint, bundle: Bundle, threads: int = 0) -> Parity:
    """Run the fixed prompts through the bundle's graph and the reference; ``threads`` as for ``load_runner``.

    Figures have five decimals: those after them depend on the machine. KL and agreement are over the head's rows.
    """
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.tokenizer_path, manifest.tokens.control)
    cases = _text_cases(checkpoint, tokenizer) if manifest.guard is None else _guard_cases(manifest.guard, tokenizer)
    rows = manifest.graph.head_token_ids
    prompts, wanted = [case.token_ids for case in cases], [case.wanted for case in cases]
    expected = reference_logits(checkpoint.spec, checkpoint.tensors, prompts, wanted, rows)
    runner = load_runner(bundle, threads)
    actual = [_run(runner, case, index % 2 == 1) for index, case in enumerate(cases)]
    return _figures(cases, expected, actual, manifest.guard, runner.rows)


def check_parity(parity: Parity, quantization: str, max_kl: float | None = None) -> None:
    """Raise ParityError when ``parity`` is beyond the profile's bounds; ``max_kl`` overrides the KL bound."""
    bounds = BOUNDS[quantization]
    limit = bounds.mean_kl if max_kl is None else max_kl
    if not parity.mean_kl <= limit:  # also true for NaN
        raise ParityError(
            f"{quantization}: mean KL {parity.mean_kl:.3g} against the reference, the bound is {limit:.3g}"
        )
    difference = parity.max_unsafe_score_difference
    if difference is not None and not difference <= bounds.unsafe_score:
        raise ParityError(
            f"{quantization}: the unsafe score differs by {difference:.3g}, the bound is {bounds.unsafe_score:.3g}"
        )


def kl_divergence(expected: Float32, actual: Float32) -> npt.NDArray[np.float64]:
    """KL(expected || actual) in nats of each row's softmax: float32 [n, rows] twice -> [n]."""
    first, second = _log_softmax(expected), _log_softmax(actual)
    result: npt.NDArray[np.float64] = (np.exp(first) * (first - second)).sum(axis=-1)
    return result


def _text_cases(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[_Case]:
    """The texts as user messages: what a model never saw, such as bare text after a chat model's BOS, tells little."""
    template = ChatTemplate(checkpoint.chat_template or "", template_variables(checkpoint))
    limit = min(_TEXT_TOKENS, checkpoint.spec.max_positions)
    prompts = []
    for text in TEXTS:
        segments = template.segments(Conversation((Message(Role.USER, text),)), TODAY)
        prompts.append(tuple(tokenizer.encode(segments)[:limit]))
    # The template's opening would be counted once for every text.
    shared = next((index for index, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1), 0)
    positions = sum(len(prompt) - shared for prompt in prompts)
    stride = math.ceil(positions * checkpoint.spec.vocab_size / _MAX_LOGITS)
    return [_Case(prompt, tuple(range(len(prompt) - 1, shared - 1, -stride))[::-1], None) for prompt in prompts]


def _guard_cases(guard: GuardFormat, tokenizer: Tokenizer) -> list[_Case]:
    builder = GuardPromptBuilder(guard, tokenizer)
    answer = guard.answer
    cases = []
    for texts in CONVERSATIONS:
        roles = [Role.ASSISTANT if index % 2 else Role.USER for index in range(len(texts))]
        conversation = Conversation(tuple(Message(role, text) for role, text in zip(roles, texts, strict=True)))
        target = Target.RESPONSE if roles[-1] is Role.ASSISTANT else Target.PROMPT
        prompt = (*builder.build(conversation, target, Policy()).token_ids, *answer.before_verdict)
        token_ids = (*prompt, answer.unsafe, *answer.before_category)
        wanted = tuple(range(max(0, len(token_ids) - _GUARD_POSITIONS), len(token_ids)))
        cases.append(_Case(token_ids, wanted, wanted.index(len(prompt) - 1)))
    return cases


def _run(runner: Runner, case: _Case, chunked: bool) -> Float32:
    cache = KvCache(runner.shape, len(case.token_ids))
    prefill = Prefill(Forward(cache, case.token_ids, case.wanted))
    while prefill.left:
        prefill.step(runner, _CHUNK if chunked else prefill.left)
    return prefill.logits(runner)


def _figures(
    cases: Sequence[_Case],
    expected: Sequence[Float32],
    actual: Sequence[Float32],
    guard: GuardFormat | None,
    rows: dict[int, int],
) -> Parity:
    kl, agreement, difference, scores = [], [], [], []
    for case, first, second in zip(cases, expected, actual, strict=True):
        kl.append(kl_divergence(first, second))
        agreement.append(first.argmax(axis=-1) == second.argmax(axis=-1))
        difference.append(float(np.abs(first - second).max()))
        if guard is not None and case.verdict is not None:
            columns = [rows[guard.answer.unsafe], rows[guard.answer.safe]]
            scores.append(
                abs(_unsafe_score(first[case.verdict, columns]) - _unsafe_score(second[case.verdict, columns]))
            )
    return Parity(
        reference=REFERENCE,
        positions=sum(len(case.wanted) for case in cases),
        max_abs_logit_difference=_rounded(np.max(difference)),
        mean_kl=_rounded(np.concatenate(kl).mean()),
        top1_agreement=_rounded(np.concatenate(agreement).mean()),
        max_unsafe_score_difference=_rounded(np.max(scores)) if scores else None,
        probe=_probe(cases[0], expected[0], actual[0]),
    )


def _probe(case: _Case, expected: Float32, actual: Float32) -> Probe:
    """What the reference says after all of ``case``, its likeliest rows; the last wanted position is the prompt's."""
    likeliest = np.sort(np.argsort(-expected[-1], kind="stable")[:_PROBE_ROWS])
    difference = np.abs(expected[-1, likeliest] - actual[-1, likeliest]).max()
    return Probe(
        token_ids=case.token_ids,
        rows=tuple(int(row) for row in likeliest),
        logits=tuple(round(float(expected[-1, row]), 3) for row in likeliest),
        tolerance=math.ceil(10 * (2 * float(difference) + _PROBE_SLACK)) / 10,
    )


def _unsafe_score(pair: Float32) -> float:
    return float(np.exp(_log_softmax(pair)[0]))


def _log_softmax(logits: Float32) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _rounded(value: np.floating[Any]) -> float:
    """Five decimals. Raises ParityError for NaN and infinity: such a graph is broken."""
    if not math.isfinite(value):
        raise ParityError("the graph's logits are not finite")
    return round(float(value), 5)
