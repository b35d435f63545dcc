"""Puts the facade together. Nothing here is imported from the ``http`` extra before it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc.aio

from guard.policies import PolicyBook
from server.errors import SettingsError
from server.generation import GenerationService
from server.health import Health
from server.interceptors.access_log import AccessLogInterceptor
from server.interceptors.around import Around
from server.interceptors.auth import AuthInterceptor
from server.interceptors.errors import ErrorInterceptor
from server.models import ModelService
from server.moderation import ModerationService
from server.openai_http.settings import OFF, HttpSettings
from server.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from server.openai_http.serving import HttpServer

_EXTRA = ("starlette", "uvicorn")


def http_server(
    settings: HttpSettings,
    interceptors: Sequence[grpc.aio.ServerInterceptor],
    services: tuple[ModerationService, GenerationService, ModelService],
    health: Health,
    telemetry: Telemetry,
    policies: PolicyBook,
) -> HttpServer | None:
    """A server of the same ``services`` behind the same ``interceptors``; None where the settings want none.

    Raises SettingsError, also when the extra is not installed.
    """
    if settings.address == OFF:
        return None
    try:
        from server.openai_http.routes import Parts, application
        from server.openai_http.serving import HttpServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise SettingsError("http_address", "needs an HTTP server; pip install 'guardlet[http]'") from None
    around = [interceptor for interceptor in interceptors if isinstance(interceptor, Around)]
    entrance = [interceptor for interceptor in around if isinstance(interceptor, ErrorInterceptor | AuthInterceptor)]
    moderation, generation, models = services
    parts = Parts(
        interceptors=around,
        entrance=[AccessLogInterceptor(enabled=False), *entrance],
        moderation=moderation,
        generation=generation,
        models=models,
        serving=health.serving,
        stats=telemetry.window.summary,
        # An operator who gave a caller a policy wants its texts judged, and OpenAI's requests have no way to say so.
        moderated=lambda caller: caller is not None and caller in policies.callers,
    )
    return HttpServer(application(parts, settings), settings)
