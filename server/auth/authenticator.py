"""Finds out who calls, by the file of callers as it is now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from guard.errors import AuthenticationError
from server import log
from server.auth import keys
from server.auth.caller import Caller
from server.auth.file import Callers, load_callers
from server.auth.tokens import TokenVerifier
from server.errors import SettingsError
from server.watched import signature

#: Seconds between two looks at the file of callers.
POLL_S = 2.0
API_KEY, AUTHORIZATION = "x-api-key", "authorization"
#: gRPC's names for what a verified client certificate says, to the kinds of the file.
_CERTIFICATE = {"peer_uri": "uri", "peer_dns": "dns", "x509_subject": "subject"}


class Authenticator:
    """Reads the file at once, and again when it changes while ``watch`` runs. Raises SettingsError for the first one.

    A changed file that cannot be read is logged, and the callers stay as they were.
    """

    def __init__(self, path: Path, policies: Collection[str]) -> None:
        """``policies``: the names that callers may have for their own."""
        self._path = path
        self._policy_names = frozenset(policies)
        self._signature = signature([path])
        self._callers = load_callers(path, self._policy_names)
        self._tokens = _verifier(self._callers, None)
        #: Caller's name to its policy. Always the same dict, so that others may hold it.
        self.policies = self._callers.policies

    @property
    def callers(self) -> Mapping[str, Caller]:
        """All callers by name."""
        return self._callers.callers

    async def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], peer: Mapping[str, Iterable[bytes]]
    ) -> Caller:
        """Who sent ``metadata`` over a connection whose verified properties are ``peer`` (gRPC's auth context).

        A key or a token goes before the certificate: when it is wrong, the certificate does not help. Raises
        AuthenticationError.
        """
        presented = _presented(metadata)
        if presented is None:
            return self._by_certificate(peer)
        if presented.startswith(keys.PREFIX) or self._tokens is None:
            caller = keys.find(presented, self._callers.keys)
            if caller is None:
                raise AuthenticationError("the key is no caller's")
            return caller
        subject = await self._tokens.verify(presented)
        caller = self._callers.subjects.get(subject)  # of the file as it is now: it may have changed meanwhile
        if caller is None:
            raise AuthenticationError("the token's subject is no caller's")
        return caller

    async def watch(self) -> None:
        """Follow changes of the file, and keep the issuer's keys fresh, until cancelled."""
        await asyncio.gather(self._watch_file(), self._watch_keys())

    async def reload(self) -> bool:
        """Read the file again if it has changed; returns whether it was, and what it says now counts."""
        now = signature([self._path])
        if now == self._signature:
            return False
        self._signature = now
        try:
            self._use(await asyncio.to_thread(load_callers, self._path, self._policy_names))
        except SettingsError as error:
            log.event(logging.ERROR, "callers_kept", problem=str(error))
            return False
        except Exception as error:  # noqa: BLE001 - whoever watches must go on, or a revoked key would live for ever
            log.event(logging.ERROR, "callers_kept", error=error)
            return False
        log.event(logging.INFO, "callers_changed", callers=len(self._callers.callers))
        return True

    def _use(self, callers: Callers) -> None:
        self._tokens = _verifier(callers, self._tokens)
        self._callers = callers
        self.policies.clear()
        self.policies.update(callers.policies)

    def _by_certificate(self, peer: Mapping[str, Iterable[bytes]]) -> Caller:
        names = {
            f"{kind}:{value.decode(errors='replace')}"
            for property_name, kind in _CERTIFICATE.items()
            for value in peer.get(property_name, ())
        }
        found = {caller.name: caller for name in names if (caller := self._callers.certificates.get(name)) is not None}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            raise AuthenticationError("the client certificate is that of several callers")
        if names:
            raise AuthenticationError("the client certificate is no caller's")
        raise AuthenticationError(
            f"expected a key or a token in {AUTHORIZATION} (Bearer) or {API_KEY}", "CREDENTIALS_MISSING"
        )

    async def _watch_file(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self.reload()

    async def _watch_keys(self) -> None:
        while True:
            if self._tokens is None:
                await asyncio.sleep(POLL_S)
                continue
            tokens = self._tokens
            await tokens.keys.refresh()
            waited = 0.0
            while waited < tokens.settings.refresh_s and tokens is self._tokens:
                await asyncio.sleep(POLL_S)
                waited += POLL_S


def _verifier(callers: Callers, current: TokenVerifier | None) -> TokenVerifier | None:
    """The one that is there already, with its cached keys, when its settings are the same."""
    if callers.oidc is None:
        return None
    return current if current is not None and current.settings == callers.oidc else TokenVerifier(callers.oidc)


def _presented(metadata: Iterable[tuple[str, Any]]) -> str | None:
    """The one key or token among ``metadata``; None when there is none. Raises AuthenticationError."""
    found = []
    for name, value in metadata:
        if name == API_KEY:
            found.append(value)
        elif name == AUTHORIZATION:
            scheme, _, rest = value.partition(" ")
            if scheme.lower() != "bearer" or not rest.strip():
                raise AuthenticationError(f"expected {AUTHORIZATION}: Bearer and a key or a token")
            found.append(rest.strip())
    if len(found) > 1:
        raise AuthenticationError("expected one key or token, not several")
    return found[0] if found else None
