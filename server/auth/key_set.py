"""The issuer's public keys (JWKS, RFC 7517): fetched off the event loop, cached, refreshed."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from http.client import HTTPException
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from guard.errors import GuardError
from server import log

FETCH_TIMEOUT_S = 5.0
MAX_BYTES = 1 << 20
#: Tokens with a key that is not known make us ask the issuer, but not more often than this, in seconds.
MIN_INTERVAL_S = 30.0
#: Keys of an issuer that has not answered for so long, in seconds, are used no more: one of them may be revoked.
MAX_AGE_S = 24 * 3600.0
#: NIST SP 800-131A: shorter RSA keys are no longer acceptable for signatures.
MIN_RSA_BITS = 2048
#: Kind of key and its curve, to the algorithms that it verifies (RFC 7518, RFC 8037). No symmetric ones.
_FITTING: dict[tuple[Any, Any], frozenset[str]] = {
    ("RSA", None): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA"}),
}


class KeySetError(GuardError):
    """The keys could not be fetched or read."""


class KeySet:
    """The keys of one source. Used from the event loop's thread; ``fetch`` runs on others."""

    def __init__(
        self,
        source: str,
        algorithms: Collection[str],
        fetch: Callable[[str], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._algorithms = algorithms
        self._fetch = fetch or read_source
        self._clock = clock
        self._keys: dict[tuple[str, str], PyJWK] = {}  # by id and algorithm
        self._asked: float | None = None
        self._answered: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def find(self, kid: str, algorithm: str) -> PyJWK | None:
        """The key of that id for ``algorithm``. One that is not known may be new: the source is asked, at most once per
        interval.
        """
        known = self._known(kid, algorithm)
        if known is not None:
            return known
        if self._refreshing is not None or self._age(self._asked) >= MIN_INTERVAL_S:
            await self.refresh()
        return self._known(kid, algorithm)

    async def refresh(self) -> None:
        """Ask the source now; who calls meanwhile waits for the same answer. A failure is logged and keeps the keys."""
        if self._refreshing is None:
            self._asked = self._clock()
            self._refreshing = asyncio.create_task(self._refresh())
        # Whoever waits may leave; the others, and the next token, still want the answer.
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        try:
            keys = await asyncio.to_thread(self._load)
        except KeySetError as error:
            log.event(logging.WARNING, "jwks_failed", source=self._source, problem=str(error), kept=len(self._keys))
        except Exception as error:  # noqa: BLE001 - nothing that an issuer sends may end the refreshing
            log.event(logging.ERROR, "jwks_failed", source=self._source, error=error, kept=len(self._keys))
        else:
            self._keys, self._answered = keys, self._clock()
        finally:
            self._refreshing = None

    def _load(self) -> dict[tuple[str, str], PyJWK]:
        return read_keys(self._fetch(self._source), self._algorithms)

    def _known(self, kid: str, algorithm: str) -> PyJWK | None:
        return self._keys.get((kid, algorithm)) if self._age(self._answered) < MAX_AGE_S else None

    def _age(self, at: float | None) -> float:
        return float("inf") if at is None else self._clock() - at


def read_source(source: str) -> bytes:
    """The bytes behind an https URL or a path; raises KeySetError. Redirects are refused."""
    try:
        if "://" not in source:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            with _OPENER.open(source, timeout=FETCH_TIMEOUT_S) as response:
                data = response.read(MAX_BYTES + 1)
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        said = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise KeySetError(f"cannot be read: {said}") from None
    if len(data) > MAX_BYTES:
        raise KeySetError(f"more than {MAX_BYTES} bytes")
    return bytes(data)


def read_keys(data: bytes, algorithms: Collection[str]) -> dict[tuple[str, str], PyJWK]:
    """Id and algorithm to key, for those of ``algorithms`` that a key can verify; other keys are left out.

    Raises KeySetError when ``data`` is no JWKS or no key is left.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise KeySetError("is no JSON Web Key Set")
    keys = {(item["kid"], key.algorithm_name): key for item in listed for key in _usable(item, algorithms)}
    if not keys:
        raise KeySetError("has no key for the algorithms of oidc.algorithms")
    return keys


def _usable(item: Any, algorithms: Collection[str]) -> list[PyJWK]:
    """One key, once for each algorithm. None of one that is symmetric, for encryption, without an id or too short."""
    if not isinstance(item, dict) or not isinstance(item.get("kid"), str) or item.get("use", "sig") != "sig":
        return []
    try:
        fitting = _FITTING.get((item.get("kty"), item.get("crv")), frozenset()).intersection(algorithms)
        wanted = fitting & {item["alg"]} if "alg" in item else fitting
        keys = [PyJWK(item, algorithm=algorithm) for algorithm in wanted]
    except (PyJWTError, ValueError, TypeError, KeyError):
        return []
    return [key for key in keys if not isinstance(key.key, RSAPublicKey) or key.key.key_size >= MIN_RSA_BITS]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect may lead anywhere, to plain http too."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
