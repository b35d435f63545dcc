"""A caller: a service that has credentials of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The services that a file can name, to the full names of the contract.
SERVICES = {
    "moderation": "guard.v1.ModerationService",
    "generation": "guard.v1.GenerationService",
    "models": "guard.v1.ModelService",
}


@dataclass(frozen=True)
class Quota:
    """How much a caller may ask for; None is without a limit of its own.

    ``bytes_per_minute`` counts requests as they are sent. A token is at least one byte, so it bounds the tokens of
    prompts before any work. ``tokens_per_minute`` counts what models computed for them, once that is known.
    """

    requests_per_minute: float | None = None
    bytes_per_minute: float | None = None
    concurrent: int | None = None
    tokens_per_minute: float | None = None


@dataclass(frozen=True)
class Caller:
    """Who calls. ``policy`` names the policy of requests that name none; None is the server's default.

    ``services`` are keys of SERVICES. ``admin`` allows the admin calls as well, where the server offers them.
    """

    name: str
    admin: bool = False
    policy: str | None = None
    quota: Quota = field(default_factory=Quota)
    services: frozenset[str] = frozenset(SERVICES)
