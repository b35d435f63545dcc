"""The border between the wire format (guard.v1) and the domain (guard): nothing else translates.

Towards the domain everything is checked: what is not valid raises InvalidInputError with the path of the field in the
request. Enum numbers that this version does not know are refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import cast

from guard.cascade import Screening
from guard.classifier import ClassifyTask, Mode
from guard.conversation import Conversation, Message, Role, Target
from guard.errors import InvalidInputError
from guard.normalize import ViewKind
from guard.policies import NamedPolicy
from guard.policy import Policy
from guard.streaming import Check, StreamTask
from guard.v1 import model_pb2, moderation_pb2
from guard.verdict import Action, CategoryScore, DecidedBy, Judgement, Verdict, action_for
from server.call import is_request_id
from server.entries import Down, Entry, State
from server.errors import UnsupportedFieldError
from server.status import duration

_ROLES = {
    moderation_pb2.ROLE_USER: Role.USER,
    moderation_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    moderation_pb2.ROLE_SYSTEM: Role.SYSTEM,
    moderation_pb2.ROLE_TOOL: Role.TOOL,
}
_TARGETS = {moderation_pb2.TARGET_PROMPT: Target.PROMPT, moderation_pb2.TARGET_RESPONSE: Target.RESPONSE}
_MODES: dict[int, Mode] = {
    moderation_pb2.CLASSIFICATION_MODE_UNSPECIFIED: "one_pass",
    moderation_pb2.CLASSIFICATION_MODE_ONE_PASS: "one_pass",
    moderation_pb2.CLASSIFICATION_MODE_EXACT: "exact",
}
_TARGET_NUMBERS = {Target.PROMPT: moderation_pb2.TARGET_PROMPT, Target.RESPONSE: moderation_pb2.TARGET_RESPONSE}
_MODE_NUMBERS: dict[Mode, moderation_pb2.ClassificationMode] = {
    "one_pass": moderation_pb2.CLASSIFICATION_MODE_ONE_PASS,
    "exact": moderation_pb2.CLASSIFICATION_MODE_EXACT,
}
_VIEWS = {
    ViewKind.RAW: moderation_pb2.TEXT_VIEW_RAW,
    ViewKind.NORMALIZED: moderation_pb2.TEXT_VIEW_NORMALIZED,
    ViewKind.DELEETED: moderation_pb2.TEXT_VIEW_DELEETED,
    ViewKind.DECODED: moderation_pb2.TEXT_VIEW_DECODED,
}
_VERDICTS = {Verdict.SAFE: moderation_pb2.VERDICT_SAFE, Verdict.UNSAFE: moderation_pb2.VERDICT_UNSAFE}
_ACTIONS = {
    Action.ALLOW: moderation_pb2.ACTION_ALLOW,
    Action.BLOCK: moderation_pb2.ACTION_BLOCK,
    Action.REPORT: moderation_pb2.ACTION_REPORT,
}
_DECIDED_BY = {
    DecidedBy.MODEL: moderation_pb2.DECIDED_BY_MODEL,
    DecidedBy.DENY_LIST: moderation_pb2.DECIDED_BY_DENY_LIST,
    DecidedBy.ALLOW_LIST: moderation_pb2.DECIDED_BY_ALLOW_LIST,
    DecidedBy.CACHE: moderation_pb2.DECIDED_BY_CACHE,
}
SCREENINGS = {
    Screening.NOT_ASKED: moderation_pb2.SCREENING_UNSPECIFIED,
    Screening.DECIDED: moderation_pb2.SCREENING_DECIDED,
    Screening.PASSED_ON: moderation_pb2.SCREENING_PASSED_ON,
    Screening.FAILED: moderation_pb2.SCREENING_FAILED,
}
_TASKS = {"guard": model_pb2.MODEL_TASK_GUARD, "instruct": model_pb2.MODEL_TASK_INSTRUCT}
_STATES = {
    State.READY: model_pb2.MODEL_STATE_READY,
    State.FAILED: model_pb2.MODEL_STATE_FAILED,
    State.UNLOADING: model_pb2.MODEL_STATE_UNLOADING,
}
#: Limits of StreamClassifyStart.check_at_latest_after, in seconds.
MIN_WAIT_S, MAX_WAIT_S = 0.05, 60.0


def check_request_id(request_id: str) -> None:
    """Raises InvalidInputError when a caller's id is not one; empty is fine."""
    if request_id and not is_request_id(request_id):
        raise InvalidInputError("request_id", "expected at most 128 characters out of A-Z, a-z, 0-9 and ._:-")


def role(message: moderation_pb2.Message, where: str) -> Role:
    """Who wrote the message at ``where`` in the request; raises InvalidInputError when it does not say."""
    found = _ROLES.get(message.role)
    if found is None:
        problem = f"unknown number {message.role}" if message.role else "is required"
        raise InvalidInputError(f"{where}.role", problem)
    return found


def conversation(messages: Iterable[moderation_pb2.Message]) -> Conversation:
    """The messages, in which there are no calls of tools; raises InvalidInputError or UnsupportedFieldError."""
    return Conversation(_messages(messages))


def classify_task(request: moderation_pb2.ClassifyRequest, policy: Policy, cache_salt: str = "") -> ClassifyTask:
    """The task of one ClassifyRequest under ``policy``; raises InvalidInputError or UnsupportedFieldError naming the
    field.
    """
    check_request_id(request.request_id)
    messages = conversation(request.messages)
    mode = _MODES.get(request.mode)
    if mode is None:
        raise InvalidInputError("mode", f"unknown number {request.mode}")
    return ClassifyTask(messages, _target(request.target, messages), policy, mode, cache_salt)


def stream_task(start: moderation_pb2.StreamClassifyStart, policy: Policy) -> StreamTask:
    """The task of one StreamClassify; raises as ``classify_task``."""
    if start.target == moderation_pb2.TARGET_UNSPECIFIED:
        raise InvalidInputError("target", "is required: nothing else says what is being written")
    return StreamTask(
        context=_messages(start.messages),
        target=_known_target(start.target),
        policy=policy,
        every_tokens=start.check_every_tokens if start.HasField("check_every_tokens") else StreamTask.every_tokens,
        at_sentence_ends=start.at_sentence_ends,
    )


def longest_wait_s(start: moderation_pb2.StreamClassifyStart) -> float | None:
    """Seconds after which unjudged text is judged, None for never; raises InvalidInputError."""
    if not start.HasField("check_at_latest_after"):
        return None
    seconds = start.check_at_latest_after.seconds + start.check_at_latest_after.nanos / 1e9
    if not MIN_WAIT_S <= seconds <= MAX_WAIT_S:
        raise InvalidInputError("check_at_latest_after", f"expected {MIN_WAIT_S:g} to {MAX_WAIT_S:g} seconds")
    return seconds


def stream_progress(
    check: Check, checks: int, judged_bytes: int, released_bytes: int
) -> moderation_pb2.StreamClassifyProgress:
    """The progress that a check is; bytes are those of the text up to its characters ``judged`` and ``released``."""
    return moderation_pb2.StreamClassifyProgress(
        verdict=_VERDICTS[check.reading.verdict],
        unsafe_score=check.reading.unsafe_score,
        categories=_categories(found for found in check.reading.categories if found.flagged),
        released_bytes=released_bytes,
        judged_bytes=judged_bytes,
        view=_VIEWS[check.view],
        window=moderation_pb2.TextWindow(**asdict(check.window)),
        checks=checks,
        action=_ACTIONS[check.action],
    )


def classify_response(
    judgement: Judgement, target: Target, applied: NamedPolicy, model: str, request_id: str, total_s: float
) -> moderation_pb2.ClassifyResponse:
    """The response for a judgement under ``applied``; ``total_s`` in seconds since the request arrived."""
    return moderation_pb2.ClassifyResponse(
        request_id=request_id,
        verdict=_VERDICTS[judgement.verdict],
        unsafe_score=judgement.unsafe_score,
        categories=_categories(judgement.categories),
        model=model,
        usage=_usage(judgement),
        timings=moderation_pb2.Timings(
            queue=duration(judgement.queue_s), model=duration(judgement.model_s), total=duration(total_s)
        ),
        target=_TARGET_NUMBERS[target],
        mode=_MODE_NUMBERS[judgement.mode],
        signals=[moderation_pb2.INPUT_SIGNAL_FORGED_DELIMITER] if judgement.forged_delimiters else [],
        view=_VIEWS[judgement.view],
        window=moderation_pb2.TextWindow(**asdict(judgement.window)),
        passes=judgement.passes,
        context_messages_left_out=judgement.context_left_out,
        policy_name=applied.name,
        policy_digest=applied.policy.digest,
        action=_ACTIONS[action_for(judgement.verdict, applied.policy)],
        decided_by=_DECIDED_BY[judgement.decided_by],
        matched_entry=judgement.matched_entry or "",
    )


def model(entry: Entry | Down) -> model_pb2.Model:
    """What ModelService shows of a model."""
    manifest = entry.manifest
    shown = model_pb2.Model(
        name=entry.name,
        task=_TASKS[entry.task],
        state=_STATES[entry.state],
        architecture=manifest.shape.architecture,
        quantization=manifest.quantization.name,
        max_context_tokens=manifest.shape.max_positions,
        source=model_pb2.ModelSource(
            kind=manifest.source.kind, name=manifest.source.name, revision=manifest.source.revision or ""
        ),
        manifest_sha256=entry.digest,
        kv_bytes_per_token=manifest.shape.kv_bytes_per_token,
    )
    if manifest.guard is not None:
        shown.supports_custom_categories = manifest.guard.reads_custom_categories
        for code, name in manifest.guard.categories.items():
            shown.categories.add(code=code, name=name)
    if manifest.parity is not None:
        parity = manifest.parity
        shown.parity.reference = parity.reference
        shown.parity.positions = parity.positions
        shown.parity.max_abs_logit_difference = parity.max_abs_logit_difference
        shown.parity.mean_kl = parity.mean_kl
        shown.parity.top1_agreement = parity.top1_agreement
    return shown


def _messages(messages: Iterable[moderation_pb2.Message]) -> tuple[Message, ...]:
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))


def _message(message: moderation_pb2.Message, where: str) -> Message:
    for name in ("tool_calls", "tool_call_id"):
        if getattr(message, name):
            raise UnsupportedFieldError(f"{where}.{name}", "calls of tools are not read here")
    return Message(role(message, where), message.content)


def _target(number: int, conversation: Conversation) -> Target:
    """The target asked for, or by the role of the last message. That the two agree is the domain's check."""
    if number != moderation_pb2.TARGET_UNSPECIFIED:
        return _known_target(number)
    return Target.RESPONSE if conversation.messages[-1].role is Role.ASSISTANT else Target.PROMPT


def _known_target(number: int) -> Target:
    target = _TARGETS.get(cast(moderation_pb2.Target, number))
    if target is None:
        raise InvalidInputError("target", f"unknown number {number}")
    return target


def _categories(categories: Iterable[CategoryScore]) -> list[moderation_pb2.CategoryScore]:
    return [
        moderation_pb2.CategoryScore(code=found.code, name=found.name, score=found.score, flagged=found.flagged)
        for found in categories
    ]


def _usage(judgement: Judgement) -> moderation_pb2.Usage:
    return moderation_pb2.Usage(
        prompt_tokens=judgement.prompt_tokens,
        cached_tokens=judgement.cached_tokens,
        completion_tokens=judgement.completion_tokens,
    )
