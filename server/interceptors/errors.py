"""Whatever a handler raises leaves as a status from ``server.status``."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from guard.errors import GuardError
from server import call, log, status
from server.interceptors.around import Around, Context


class ErrorInterceptor(Around):
    """Unknown errors are logged by type and place, never with their text."""

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around the handler and the interceptors that may refuse a call."""
        try:
            yield
        except grpc.aio.AbortError:
            raise
        except GuardError as error:
            this = call.current.get()
            this.observer.failed(error.reason)
            await status.abort(context, status.failure(error, this.request_id))
        except Exception as error:  # noqa: BLE001 - the last place that can keep an error's text inside
            this = call.current.get()
            found = status.failure(error, this.request_id)
            log.event(
                logging.ERROR, "internal_error", error=_innermost(error), method=method, request_id=this.request_id
            )
            this.observer.failed(found.reason)
            await status.abort(context, found)


def _innermost(error: BaseException) -> BaseException:
    """The first of the errors that a group of tasks ended with; the group itself says nothing about the place."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
