"""Every error this project raises on purpose, in one tree.

    GuardError
    ├── InvalidInputError          the caller can fix it; names the field and the limit
    │   └── InputTooLongError      more tokens than the model or the budget takes; carries the numbers
    ├── UnsupportedError           a feature that this model, bundle or exporter does not have, by name
    ├── CheckpointError            a source checkpoint that cannot be trusted or understood
    ├── BundleError                an exported bundle that cannot be trusted or understood
    ├── ParityError                an export whose numbers differ from the reference by too much
    ├── AuthenticationError        nobody known is calling: credentials missing, wrong or expired
    ├── PermissionDeniedError      the caller is known and may not do this
    ├── ModelNotLoadedError        no such model is loaded here
    ├── OverloadedError            queue or memory is full; retrying later may help
    ├── MemoryPlanError            the memory that is there cannot hold what was asked for; carries the arithmetic
    ├── UnavailableError           loading, draining, or the engine is down
    ├── DeadlineError              the deadline passed, or cannot be met
    ├── CancelledError             the caller went away; compute was stopped
    └── ModelOutputError           logits or text that cannot be read as an answer; never becomes SAFE

``server.status`` is the only place that maps these to gRPC status codes. Messages never contain user text.
"""

from __future__ import annotations


class GuardError(Exception):
    """Base class: ``except GuardError`` catches everything this project raises on purpose."""

    #: UPPER_SNAKE reason that travels in ``google.rpc.ErrorInfo.reason``.
    reason = "INTERNAL"


class InvalidInputError(GuardError):
    """The request cannot be served as written; ``field`` names the part to change (``messages[2].content``)."""

    reason = "INVALID_INPUT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InputTooLongError(InvalidInputError):
    """The input has more tokens than fit; nothing was truncated and no model step ran."""

    reason = "INPUT_TOO_LONG"

    def __init__(self, field: str, tokens: int, limit: int) -> None:
        super().__init__(field, f"{tokens} tokens, the limit is {limit}")
        self.tokens = tokens
        self.limit = limit


class UnsupportedError(GuardError):
    """A feature that this model, bundle or exporter does not have; the message names it."""

    reason = "UNSUPPORTED"


class CheckpointError(GuardError):
    """A source checkpoint that cannot be trusted or understood; the message names the file or tensor."""

    reason = "CHECKPOINT_INVALID"


class BundleError(GuardError):
    """An exported bundle that cannot be trusted or understood; the message names the file or field."""

    reason = "BUNDLE_INVALID"


class ParityError(GuardError):
    """The exported graph's numbers differ from the reference forward by more than the bound."""

    reason = "PARITY_FAILED"


class AuthenticationError(GuardError):
    """Nobody known is calling. The message says what is wrong with the credentials and never repeats any of them.

    ``reason``: CREDENTIALS_MISSING, CREDENTIALS_INVALID, or TOKEN_EXPIRED, for which a new token is the cure.
    """

    reason = "CREDENTIALS_INVALID"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.reason


class PermissionDeniedError(GuardError):
    """The caller is known and may not do this; the message names the method.

    ``reason``: NOT_PERMITTED or ADMIN_REQUIRED.
    """

    reason = "NOT_PERMITTED"

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.reason


class ModelNotLoadedError(GuardError):
    """No model of that name is loaded."""

    reason = "MODEL_NOT_LOADED"


class OverloadedError(GuardError):
    """The queue or the memory budget is full; ``retry_after_s`` (seconds) says when to come back."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class MemoryPlanError(GuardError):
    """The machine or container has less memory than the plan needs; the message has the arithmetic."""

    reason = "OUT_OF_MEMORY"


class UnavailableError(GuardError):
    """The service is loading, draining, or its engine is down."""

    reason = "UNAVAILABLE"


class DeadlineError(GuardError):
    """The deadline passed or cannot be met."""

    reason = "DEADLINE"


class CancelledError(GuardError):
    """The caller went away and compute was stopped."""

    reason = "CANCELLED"


class ModelOutputError(GuardError):
    """The model's output cannot be read as an answer (NaN logits, unknown category, broken format)."""

    reason = "MODEL_OUTPUT_UNREADABLE"
