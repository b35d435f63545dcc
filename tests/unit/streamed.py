"""Scripts of StreamClassify for the scripted server: what a server says, step by step, about what it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guard.v1 import moderation_pb2
from tests.unit.fake_server import Handler, judged

Response = moderation_pb2.StreamClassifyResponse


def progress(released: int, **changes: Any) -> Response:
    """A safe check that released so many bytes, with ``changes``."""
    fields: dict[str, Any] = {
        "verdict": moderation_pb2.VERDICT_SAFE,
        "action": moderation_pb2.ACTION_ALLOW,
        "unsafe_score": 0.1,
        "released_bytes": released,
        "judged_bytes": released,
        "view": moderation_pb2.TEXT_VIEW_RAW,
        "window": moderation_pb2.TextWindow(start=0, end=released, index=0, count=1),
        "checks": 1,
    }
    return Response(progress=moderation_pb2.StreamClassifyProgress(**(fields | changes)))


def blocked(released: int, judged_bytes: int) -> Response:
    """An unsafe check."""
    category = moderation_pb2.CategoryScore(code="S2", name="Non-Violent Crimes", score=0.8, flagged=True)
    return progress(
        released,
        verdict=moderation_pb2.VERDICT_UNSAFE,
        action=moderation_pb2.ACTION_BLOCK,
        unsafe_score=0.9,
        judged_bytes=judged_bytes,
        categories=[category],
    )


def safe_result() -> Response:
    """All of it may be shown."""
    result = moderation_pb2.ClassifyResponse(
        verdict=moderation_pb2.VERDICT_SAFE,
        action=moderation_pb2.ACTION_ALLOW,
        decided_by=moderation_pb2.DECIDED_BY_MODEL,
        unsafe_score=0.1,
        target=moderation_pb2.TARGET_RESPONSE,
    )
    return Response(result=result)


def unsafe_result() -> Response:
    """Nothing more may be shown."""
    return Response(result=judged())


def releasing_all(blocked_word: str = "bomb") -> Handler:
    """Releases every piece as it comes, up to the first that has ``blocked_word``, and says how the text ended."""

    def handler(requests: Iterator[Any], context: Any) -> Iterator[Response]:
        size = 0
        for request in requests:
            if request.WhichOneof("step") != "text":
                continue
            before, size = size, size + len(request.text.encode())
            if blocked_word in request.text:
                yield blocked(before, size)
                yield unsafe_result()
                return
            yield progress(size)
        yield safe_result()

    return handler
