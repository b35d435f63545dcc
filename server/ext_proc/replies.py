"""Answers that the sidecar itself gives, shaped like OpenAI's. None of them repeats a word of what was judged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from guard.verdict import Judgement, Verdict

BLOCKED = 403
UNAVAILABLE = 503


@dataclass(frozen=True)
class Reply:
    """An HTTP answer: ``body`` as JSON, ``verdict`` for the header of that name."""

    status: int
    body: dict[str, Any]
    verdict: str = ""
    categories: str = ""

    @property
    def data(self) -> bytes:
        """The body's bytes."""
        return as_bytes(self.body)


def as_bytes(body: dict[str, Any]) -> bytes:
    """A body as it is sent."""
    return json.dumps(body).encode()


def flagged(judgement: Judgement) -> list[dict[str, str]]:
    """Code and name of the categories that a judgement flags."""
    return [{"code": found.code, "name": found.name} for found in judgement.categories if found.flagged]


def word(judgement: Judgement | None) -> str:
    """The verdict, for a header; there is nothing unsafe about no text."""
    return Verdict.SAFE.value if judgement is None else judgement.verdict.value


def codes(judgement: Judgement | None) -> str:
    """The codes of those categories, for a header."""
    if judgement is None:
        return ""
    return ",".join(found.code for found in judgement.categories if found.flagged)


def blocked(judgement: Judgement, request_id: str) -> Reply:
    """The request says something that the policy forbids."""
    categories = flagged(judgement)
    why = ", ".join(f"{found['code']} {found['name']}" for found in categories)
    error = _error(
        f"The request was blocked by the content policy{f': {why}' if why else ''}.",
        "invalid_request_error",
        "content_policy_violation",
        request_id,
    )
    error["error"]["categories"] = categories
    return Reply(BLOCKED, error, "unsafe", codes(judgement))


def refused(status: int, message: str, code: str, request_id: str, param: str | None = None) -> Reply:
    """The request, or the upstream's answer, cannot be judged as it is."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return Reply(status, _error(message, kind, code, request_id, param), "error")


def unavailable(reason: str, request_id: str) -> Reply:
    """The guard did not answer. ``reason``: of google.rpc.ErrorInfo."""
    message = f"Moderation is not available ({reason}); nothing was let through."
    return Reply(UNAVAILABLE, _error(message, "server_error", "moderation_unavailable", request_id), "error")


def _error(message: str, kind: str, code: str, request_id: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}}
