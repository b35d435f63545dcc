"""Tagging between the wire format and the domain; part of the border that ``server.convert`` is."""

from __future__ import annotations

from datetime import UTC, datetime

from guard.tagger import Label, Tagging, TagTask
from guard.v1 import generation_pb2, moderation_pb2
from server import convert
from server.status import duration


def tag_task(request: generation_pb2.TagRequest, cache_salt: str = "") -> TagTask:
    """The task of a TagRequest; raises InvalidInputError or UnsupportedFieldError naming the field."""
    convert.check_request_id(request.request_id)
    return TagTask(
        labels=tuple(Label(label.name, label.description) for label in request.labels),
        conversation=convert.conversation(request.messages) if request.messages else None,
        text=request.text or None,
        instruction=request.instruction,
        calibrated=not request.uncalibrated,
        today=datetime.now(UTC).date(),
        cache_salt=cache_salt,
    )


def tag_response(tagging: Tagging, model: str, request_id: str, total_s: float) -> generation_pb2.TagResponse:
    """The response for a finished task; ``total_s`` in seconds since the request arrived."""
    return generation_pb2.TagResponse(
        request_id=request_id,
        model=model,
        label=tagging.label,
        scores=[generation_pb2.LabelScore(name=score.name, probability=score.probability) for score in tagging.scores],
        usage=moderation_pb2.Usage(prompt_tokens=tagging.prompt_tokens, cached_tokens=tagging.cached_tokens),
        timings=moderation_pb2.Timings(
            queue=duration(tagging.queue_s), model=duration(tagging.model_s), total=duration(total_s)
        ),
    )
