"""Domain types to protobuf requests, protobuf answers to results. Shared by the sync and the asyncio client.

Every ``read_*`` function fails closed: an enum at its zero value or outside what this version knows, a score that is no
probability, or a missing part raises NoAnswerError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration

from guard.client.convert_policy import PolicyFields, policy_message, read_action, read_decided_by, read_screening
from guard.client.errors import GuardClientError, NoAnswerError, from_item_error
from guard.client.known import known
from guard.client.results import (
    AppliedPolicy,
    Classification,
    ModelInfo,
    ModelState,
    ModelTask,
    StreamOptions,
    StreamProgress,
    Timings,
    Usage,
    VerdictCacheInfo,
)
from guard.conversation import Message, Role, Target
from guard.normalize import ViewKind
from guard.v1 import model_pb2, moderation_pb2
from guard.verdict import Action, CategoryScore, Verdict, Window

#: One user message may be given as a plain string.
Text = str | Sequence[Message]

_ROLES = {
    Role.USER: moderation_pb2.ROLE_USER,
    Role.ASSISTANT: moderation_pb2.ROLE_ASSISTANT,
    Role.SYSTEM: moderation_pb2.ROLE_SYSTEM,
    Role.TOOL: moderation_pb2.ROLE_TOOL,
}
_VERDICTS: Mapping[int, Verdict] = {
    moderation_pb2.VERDICT_SAFE: Verdict.SAFE,
    moderation_pb2.VERDICT_UNSAFE: Verdict.UNSAFE,
}
_TARGETS: Mapping[int, Target] = {
    moderation_pb2.TARGET_PROMPT: Target.PROMPT,
    moderation_pb2.TARGET_RESPONSE: Target.RESPONSE,
}
_TARGET_NUMBERS = {Target.PROMPT: moderation_pb2.TARGET_PROMPT, Target.RESPONSE: moderation_pb2.TARGET_RESPONSE}
_VIEWS: Mapping[int, ViewKind] = {
    moderation_pb2.TEXT_VIEW_RAW: ViewKind.RAW,
    moderation_pb2.TEXT_VIEW_NORMALIZED: ViewKind.NORMALIZED,
    moderation_pb2.TEXT_VIEW_DELEETED: ViewKind.DELEETED,
    moderation_pb2.TEXT_VIEW_DECODED: ViewKind.DECODED,
}


def messages(text: Text) -> list[moderation_pb2.Message]:
    """A plain string is one user message."""
    whole = (Message(Role.USER, text),) if isinstance(text, str) else text
    return [
        moderation_pb2.Message(
            role=_ROLES[message.role],
            content=message.content,
            tool_calls=[
                moderation_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
                for call in message.tool_calls
            ],
            tool_call_id=message.tool_call_id,
        )
        for message in whole
    ]


def classify_request(
    text: Text, policy: PolicyFields | None, policy_name: str, exact: bool, model: str, request_id: str
) -> moderation_pb2.ClassifyRequest:
    """The last message is judged; its role says whether as a prompt or as a response."""
    mode = moderation_pb2.CLASSIFICATION_MODE_EXACT if exact else moderation_pb2.CLASSIFICATION_MODE_UNSPECIFIED
    return moderation_pb2.ClassifyRequest(
        request_id=request_id,
        messages=messages(text),
        policy=None if policy is None else policy_message(policy),
        policy_name=policy_name,
        mode=mode,
        model=model,
    )


def batch_request(
    texts: Iterable[Text], policy: PolicyFields | None, policy_name: str, exact: bool, model: str, request_id: str
) -> moderation_pb2.BatchClassifyRequest:
    """One policy, mode and model for all items; the server names the items after the batch."""
    items = [classify_request(text, policy, policy_name, exact, model, "") for text in texts]
    return moderation_pb2.BatchClassifyRequest(request_id=request_id, requests=items)


def stream_start(
    text: Text,
    target: Target,
    policy: PolicyFields | None,
    policy_name: str,
    options: StreamOptions,
    model: str,
    request_id: str,
) -> moderation_pb2.StreamClassifyRequest:
    """``text`` is what was said before the text that is being written."""
    start = moderation_pb2.StreamClassifyStart(
        request_id=request_id,
        messages=messages(text),
        target=_TARGET_NUMBERS[target],
        policy=None if policy is None else policy_message(policy),
        policy_name=policy_name,
        model=model,
        check_every_tokens=options.check_every_tokens,
        at_sentence_ends=options.at_sentence_ends,
    )
    if options.check_at_latest_after_s is not None:
        start.check_at_latest_after.FromNanoseconds(round(options.check_at_latest_after_s * 1e9))
    return moderation_pb2.StreamClassifyRequest(start=start)


def read_classification(response: moderation_pb2.ClassifyResponse) -> Classification:
    """Raises NoAnswerError unless the response holds a verdict, what to do, and a score between 0 and 1."""
    exact = response.mode == moderation_pb2.CLASSIFICATION_MODE_EXACT
    verdict, action = _verdict_and_action(response)
    return Classification(
        request_id=response.request_id,
        model=response.model,
        target=known(_TARGETS, response.target, "target"),
        verdict=verdict,
        unsafe_score=probability(response.unsafe_score, "unsafe_score"),
        categories=_categories(response.categories),
        action=action,
        decided_by=read_decided_by(response.decided_by),
        matched_entry=response.matched_entry or None,
        policy=AppliedPolicy(response.policy_name, response.policy_digest),
        mode="exact" if exact else "one_pass",
        forged_delimiters=moderation_pb2.INPUT_SIGNAL_FORGED_DELIMITER in response.signals,
        view=_VIEWS.get(response.view),
        window=_window(response.window),
        passes=response.passes,
        context_messages_left_out=response.context_messages_left_out,
        usage=usage(response.usage),
        timings=timings(response.timings),
        screening=read_screening(response.screening),
    )


def read_progress(progress: moderation_pb2.StreamClassifyProgress, text: str) -> StreamProgress:
    """``text`` is what it released. Raises NoAnswerError unless it holds a verdict, what to do, and a score."""
    verdict, action = _verdict_and_action(progress)
    return StreamProgress(
        text=text,
        verdict=verdict,
        action=action,
        unsafe_score=probability(progress.unsafe_score, "unsafe_score"),
        categories=_categories(progress.categories),
        released_bytes=progress.released_bytes,
        judged_bytes=progress.judged_bytes,
        view=_VIEWS.get(progress.view),
        window=_window(progress.window),
        checks=progress.checks,
    )


def read_batch(
    response: moderation_pb2.BatchClassifyResponse, expected: int
) -> tuple[Classification | GuardClientError, ...]:
    """One outcome an item. Raises NoAnswerError when there are more or fewer than ``expected``."""
    if len(response.results) != expected:
        raise NoAnswerError(f"{expected} items were sent and {len(response.results)} results came back")
    return tuple(_outcome(result) for result in response.results)


def read_model(model: model_pb2.Model) -> ModelInfo:
    """Raises NoAnswerError for a task or state that this version does not know."""
    tasks: Mapping[int, ModelTask] = {model_pb2.MODEL_TASK_GUARD: "guard", model_pb2.MODEL_TASK_INSTRUCT: "instruct"}
    states: Mapping[int, ModelState] = {
        model_pb2.MODEL_STATE_LOADING: "loading",
        model_pb2.MODEL_STATE_READY: "ready",
        model_pb2.MODEL_STATE_FAILED: "failed",
        model_pb2.MODEL_STATE_UNLOADING: "unloading",
    }
    return ModelInfo(
        name=model.name,
        task=known(tasks, model.task, "model.task"),
        state=known(states, model.state, "model.state"),
        architecture=model.architecture,
        quantization=model.quantization,
        max_context_tokens=model.max_context_tokens,
        categories=tuple((category.code, category.name) for category in model.categories),
        manifest_sha256=model.manifest_sha256,
        kv_bytes_per_token=model.kv_bytes_per_token,
        verdict_cache=_verdict_cache(model.verdict_cache) if model.HasField("verdict_cache") else None,
    )


def probability(value: float, field: str) -> float:
    """Raises NoAnswerError for what is none."""
    if not 0.0 <= value <= 1.0:  # also false for NaN
        raise NoAnswerError(f"the server's {field} is not between 0 and 1")
    return value


def usage(read: moderation_pb2.Usage) -> Usage:
    """Tokens read and written."""
    return Usage(
        read.prompt_tokens, read.cached_tokens, read.completion_tokens, read.drafted_tokens, read.accepted_tokens
    )


def timings(read: moderation_pb2.Timings) -> Timings:
    """The server's clock, in seconds."""
    return Timings(
        queue_s=_seconds(read.queue),
        model_s=_seconds(read.model),
        first_token_s=_seconds(read.first_token) if read.HasField("first_token") else None,
        total_s=_seconds(read.total),
    )


def _verdict_cache(cache: model_pb2.VerdictCache) -> VerdictCacheInfo:
    return VerdictCacheInfo(cache.hits, cache.misses, cache.entries, cache.bytes)


def _outcome(result: moderation_pb2.BatchClassifyResult) -> Classification | GuardClientError:
    try:
        if result.WhichOneof("outcome") == "error":
            return from_item_error(result.error)
        return read_classification(result.response)  # unset: an empty response, which has no verdict
    except NoAnswerError as error:
        return error


def _verdict_and_action(
    answer: moderation_pb2.ClassifyResponse | moderation_pb2.StreamClassifyProgress,
) -> tuple[Verdict, Action]:
    verdict = known(_VERDICTS, answer.verdict, "verdict")
    action = read_action(answer.action)
    if (verdict is Verdict.SAFE) is not (action is Action.ALLOW):
        raise NoAnswerError("the server's verdict and action contradict each other")
    return verdict, action


def _categories(categories: Iterable[moderation_pb2.CategoryScore]) -> tuple[CategoryScore, ...]:
    return tuple(
        CategoryScore(item.code, item.name, probability(item.score, "categories.score"), item.flagged)
        for item in categories
    )


def _window(window: moderation_pb2.TextWindow) -> Window:
    return Window(window.start, window.end, window.index, window.count)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9
