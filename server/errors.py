"""Errors that only a server has. They belong to the tree of ``guard.errors``; ``server.status`` maps them too."""

from __future__ import annotations

from guard.errors import DeadlineError, GuardError, InvalidInputError, ModelNotLoadedError, OverloadedError


class ModelNotFoundError(ModelNotLoadedError):
    """ModelService was asked for a model that this server does not have."""

    reason = "MODEL_NOT_FOUND"


class AdminDisabledError(GuardError):
    """LoadModel or UnloadModel on a server that was started without the admin calls."""

    reason = "ADMIN_DISABLED"


class QuotaExceededError(OverloadedError):
    """A caller has used up its own share; others are served."""

    reason = "QUOTA_EXCEEDED"


class SlowReaderError(GuardError):
    """The reader of a stream fell too far behind; compute was stopped."""

    reason = "SLOW_READER"


class IdleStreamError(DeadlineError):
    """The writer of a stream sent nothing for too long, while the stream held memory."""

    reason = "STREAM_IDLE"


class UnsupportedFieldError(InvalidInputError):
    """A request sets a field of the contract whose feature this server does not offer; never ignored."""

    reason = "UNSUPPORTED"


class SettingsError(InvalidInputError):
    """A setting of the server is unknown or wrong; ``field`` names it."""

    reason = "SETTINGS_INVALID"
