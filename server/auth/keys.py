"""API keys: made here, kept by callers, known to the server by their hash only."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import TypeVar

PREFIX = "gk_"
_RANDOM_BYTES = 32  # 256 bits, 43 characters in base64url
_KEY = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
T = TypeVar("T")


def new_key() -> str:
    """A fresh key from the operating system's random source."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def is_key(text: str) -> bool:
    """Whether ``text`` has the form of a key. Nothing shorter is looked up, so a weak key cannot be put into use."""
    return _KEY.fullmatch(text) is not None


def is_hash(text: str) -> bool:
    """Whether ``text`` has the form that ``key_hash`` writes."""
    return _HASH.fullmatch(text) is not None


def key_hash(key: str) -> str:
    """How a key stands in the file of callers.

    One SHA-256 is enough: a slow or salted hash defends secrets that can be guessed, and nobody guesses 256 random bits
    (NIST SP 800-63B, section 5.1.2.2: secrets of at least 112 bits are hashed with an approved one-way function; salt
    and key derivation are for weaker ones).
    """
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def find(presented: str, hashes: Mapping[str, T]) -> T | None:
    """What belongs to the hash of ``presented``. Compares with every hash, each in constant time, so the time it takes
    tells neither how near a guess was nor whose key it is.
    """
    digest = key_hash(presented)
    found = None
    for known, owner in hashes.items():
        if hmac.compare_digest(digest, known):
            found = owner
    return found if is_key(presented) else None
