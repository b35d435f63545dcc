"""Verdicts that were reached a short time ago. What was judged is not kept: entries are found by a keyed hash of it."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from guard.conversation import Conversation, Target
from guard.policy import Policy
from guard.reader import Mode
from guard.verdict import DecidedBy, Judgement

#: Bytes of memory: an entry, and each of its categories, measured with tracemalloc on CPython 3.11 and rounded up.
_ENTRY_BYTES, _CATEGORY_BYTES = 1024, 192


@dataclass(frozen=True)
class CacheLimits:
    """How much is kept, and for how many seconds. No ``entries``: nothing is, and every text is judged anew."""

    entries: int = 0
    bytes: int = 16 << 20
    ttl_s: float = 600.0


class VerdictCache:
    """The verdicts of one model, the least recently used dropped first. Threads may share it.

    The key is a BLAKE2b hash under a random key of this process, so neither a stored entry nor a dump of the memory
    lets anybody test offline whether a text was judged. ``hits`` and ``misses`` count look-ups.
    """

    def __init__(self, limits: CacheLimits, model_digest: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.hits = 0
        self.misses = 0
        self._model_digest = model_digest
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, tuple[float, int, Judgement]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def memory_bytes(self) -> int:
        """About how much memory the entries take."""
        return self._bytes

    def key(
        self, conversation: Conversation, target: Target, policy: Policy, mode: Mode, salt: str = ""
    ) -> bytes | None:
        """Where the verdict of this question is kept for those who come with ``salt``; None when nothing is."""
        if self.limits.entries <= 0:
            return None
        hashed = hashlib.blake2b(key=self._secret, digest_size=32)
        parts = [salt, self._model_digest, policy.digest, target.value, mode]
        for message in conversation.messages:
            parts += [message.role.value, message.content]
        for part in parts:
            data = part.encode()
            hashed.update(
                len(data).to_bytes(8, "little")
            )  # so that no two lists of parts run together to the same bytes
            hashed.update(data)
        return hashed.digest()

    def get(self, key: bytes | None) -> Judgement | None:
        """The verdict, if it is known and fresh: the same, but for tokens and times, as no model was asked."""
        if key is None:
            return None
        with self._lock:
            found = self._entries.get(key)
            if found is not None and found[0] <= self._clock():
                self._drop(key)
                found = None
            if found is None:
                self.misses += 1
                return None
            self._entries.move_to_end(key)
            self.hits += 1
        judgement = found[2]
        return replace(
            judgement,
            decided_by=DecidedBy.CACHE,
            cached_tokens=judgement.prompt_tokens,
            completion_tokens=0,
            queue_s=0.0,
            model_s=0.0,
        )

    def put(self, key: bytes | None, judgement: Judgement) -> None:
        """Keep a verdict that the model has reached."""
        size = _ENTRY_BYTES + _CATEGORY_BYTES * len(judgement.categories)
        if key is None or size > self.limits.bytes:
            return
        with self._lock:
            if key in self._entries:
                self._drop(key)
            self._entries[key] = (self._clock() + self.limits.ttl_s, size, judgement)
            self._bytes += size
            while len(self._entries) > self.limits.entries or self._bytes > self.limits.bytes:
                self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        self._bytes -= self._entries.pop(key)[1]
