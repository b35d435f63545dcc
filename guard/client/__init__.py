"""Typed client of a Guardlet server, over gRPC.

    with GuardClient("127.0.0.1:50051") as client:
        result = client.classify("How do I pick a lock?")
        print(result.verdict, result.unsafe_score)

``moderated`` passes a text on while it is being written, less what may not be shown:

        for text in client.moderated("Tell me a story.", deltas_of_a_model):
            print(text, end="")

``AsyncGuardClient`` has the same methods for asyncio. Every call has a deadline. Classify is retried when the server is
UNAVAILABLE (a throttled gRPC service config, no hedging); nothing else is. A failure raises a ``GuardClientError``, and
so does an answer without a verdict: nothing that is not an answer reads as safe.
"""

from guard.client.aio import AsyncGuardClient
from guard.client.aio_stream import AsyncClassificationStream
from guard.client.channel import tls_credentials
from guard.client.errors import (
    CallCancelledError,
    DeadlineExceededError,
    FieldViolation,
    GuardClientError,
    ModelNotLoadedOnServerError,
    NoAnswerError,
    NotPermittedError,
    RequestRejectedError,
    ServerBusyError,
    ServerFailedError,
    ServerUnavailableError,
    UnsafeTextError,
    UnsupportedByServerError,
)
from guard.client.generation import (
    Delta,
    GeneratedChoice,
    GenerationOptions,
    GenerationResult,
    Label,
    LabelScore,
    ModerationFindings,
    ModerationOptions,
    TagResult,
)
from guard.client.generation_stream import AsyncGenerationStream, GenerationStream
from guard.client.results import (
    AppliedPolicy,
    Classification,
    ModelInfo,
    PolicyInfo,
    StreamOptions,
    StreamProgress,
    Timings,
    Usage,
    VerdictCacheInfo,
)
from guard.client.stream import ClassificationStream
from guard.client.sync import GuardClient

__all__ = [
    "AppliedPolicy",
    "AsyncClassificationStream",
    "AsyncGenerationStream",
    "AsyncGuardClient",
    "CallCancelledError",
    "Classification",
    "ClassificationStream",
    "DeadlineExceededError",
    "Delta",
    "FieldViolation",
    "GeneratedChoice",
    "GenerationOptions",
    "GenerationResult",
    "GenerationStream",
    "GuardClient",
    "GuardClientError",
    "Label",
    "LabelScore",
    "ModelInfo",
    "ModelNotLoadedOnServerError",
    "ModerationFindings",
    "ModerationOptions",
    "NoAnswerError",
    "NotPermittedError",
    "PolicyInfo",
    "RequestRejectedError",
    "ServerBusyError",
    "ServerFailedError",
    "ServerUnavailableError",
    "StreamOptions",
    "StreamProgress",
    "TagResult",
    "Timings",
    "UnsafeTextError",
    "UnsupportedByServerError",
    "Usage",
    "VerdictCacheInfo",
    "tls_credentials",
]
