"""Nobody unknown gets in, and nobody does what is not theirs to do. Health and reflection are not asked who calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from server import call
from server.auth import permissions
from server.auth.authenticator import Authenticator
from server.interceptors.around import Around, Context


class AuthInterceptor(Around):
    """Sets ``Call.identity``, and ``Call.cache_salt`` unless callers share their caches."""

    def __init__(self, authenticator: Authenticator, share_caches: bool) -> None:
        self._authenticator = authenticator
        self._share_caches = share_caches

    @asynccontextmanager
    async def around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        """Around admission and the handler; raises AuthenticationError or PermissionDeniedError."""
        metadata: Any = context.invocation_metadata()
        caller = await self._authenticator.authenticate(metadata or (), context.auth_context())
        this = replace(call.current.get(), identity=caller, cache_salt="" if self._share_caches else caller.name)
        call.current.set(this)
        permissions.check(caller, method)
        yield
