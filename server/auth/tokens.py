"""OpenID Connect tokens: JSON Web Tokens (RFC 7519) that an issuer has signed. Nothing of a token is in any error."""

from __future__ import annotations

from typing import Any

import jwt
from jwt import PyJWK

from guard.errors import AuthenticationError
from server.auth.file import OidcSettings
from server.auth.key_set import KeySet

#: "nbf" is obeyed where it is there; many issuers leave it out.
_REQUIRED = ["exp", "iat", "iss", "aud"]


class TokenVerifier:
    """Verifies tokens under one set of settings."""

    def __init__(self, settings: OidcSettings, keys: KeySet | None = None) -> None:
        self.settings = settings
        self.keys = keys or KeySet(settings.jwks, settings.algorithms)

    async def verify(self, token: str) -> str:
        """The subject of a valid token; raises AuthenticationError."""
        claims = _claims(token, await self._key(token), self.settings)
        subject = claims.get(self.settings.claim)
        if not isinstance(subject, str):
            raise AuthenticationError(f"the token has no {self.settings.claim}")
        return subject

    async def _key(self, token: str) -> PyJWK:
        """The key that the token names, which must be for the token's algorithm, one of those that are pinned."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise AuthenticationError("neither a key nor a readable token") from None
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self.settings.algorithms:
            raise AuthenticationError("the token's algorithm is not allowed here")
        kid = header.get("kid")
        if not isinstance(kid, str):
            raise AuthenticationError("the token names no key (kid)")
        key = await self.keys.find(kid, algorithm)
        if key is None:
            raise AuthenticationError("no known key of the issuer has the token's kid and algorithm")
        return key


def _claims(token: str, key: PyJWK, settings: OidcSettings) -> dict[str, Any]:
    try:
        return jwt.decode(
            token,
            key,
            algorithms=list(settings.algorithms),
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_s,
            options={"require": _REQUIRED},
        )
    except jwt.ExpiredSignatureError:
        raise AuthenticationError("the token has expired", "TOKEN_EXPIRED") from None
    except jwt.PyJWTError as error:
        raise AuthenticationError(_said(error)) from None
    except (ValueError, TypeError, OverflowError, RecursionError):  # claims of absurd types and sizes
        raise AuthenticationError("the token cannot be read") from None


def _said(error: jwt.PyJWTError) -> str:
    """What is wrong, in words of ours: the library's can repeat claims."""
    if isinstance(error, jwt.MissingRequiredClaimError):
        return f"the token lacks one of {', '.join(_REQUIRED)}"
    found = next((text for kind, text in _PROBLEMS.items() if isinstance(error, kind)), None)
    return found or "the token cannot be read"


_PROBLEMS: dict[type[jwt.PyJWTError], str] = {
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is of another issuer",
    jwt.InvalidAlgorithmError: "the token's algorithm is not that of its key",
    jwt.InvalidSignatureError: "the token's signature is wrong",
}
