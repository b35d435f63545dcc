"""What the server knows about the call it is working on: made by the outermost interceptor, read further in."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from server.auth.caller import Caller
from server.auth.quota import Lease
from server.limits import Permit
from server.observer import SILENT, Observer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Computed(Protocol):
    """Work that knows how many tokens went through models for it so far."""

    @property
    def computed_tokens(self) -> int: ...


@dataclass(frozen=True)
class Call:
    """One call. ``started`` and ``deadline`` are time.monotonic() seconds; ``permit`` counts its bytes."""

    method: str
    request_id: str
    started: float
    deadline: float | None = None
    permit: Permit | None = None
    #: What is charged for it is charged to this.
    lease: Lease | None = None
    #: Who calls, once that was authenticated; None on a server that knows no callers.
    identity: Caller | None = None
    #: Callers with different salts share no cached prompt and no cached verdict.
    cache_salt: str = ""
    #: Who is told how the call goes.
    observer: Observer = SILENT

    @property
    def caller(self) -> str | None:
        """The name of who calls; None is nobody known."""
        return None if self.identity is None else self.identity.name

    @contextmanager
    def charging(self, work: Computed) -> Iterator[None]:
        """Charge the caller, when the block is left one way or another, what was computed for ``work`` by then."""
        try:
            yield
        finally:
            if self.lease is not None and self.identity is not None:
                tokens = work.computed_tokens
                self.lease.charge(tokens)
                self.observer.charged(self.identity.name, tokens)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the call arrived."""
        return time.monotonic() - self.started


current: ContextVar[Call] = ContextVar("call")


def is_request_id(text: str) -> bool:
    """Whether ``text`` may be a caller's request id: it is echoed and logged, so it is no free text."""
    return _REQUEST_ID.fullmatch(text) is not None


def new_request_id() -> str:
    """For a call that has brought none."""
    return uuid.uuid4().hex


def request_id_of(request: Any, otherwise: str) -> str:
    """The caller's request id. A malformed one is not taken; ``server.convert`` refuses it later."""
    given = getattr(request, "request_id", "")
    return given if isinstance(given, str) and is_request_id(given) else otherwise


def request_bytes(request: Any) -> int:
    """The size of a request as it was sent, which is not decoded yet; 0 for a stream of requests, which come later."""
    return len(request) if isinstance(request, bytes) else 0
