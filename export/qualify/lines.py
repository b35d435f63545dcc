"""The lines of a qualification: what was checked, and PASS, FAIL or SKIPPED with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from guard.errors import GuardError

Status = Literal["PASS", "FAIL", "SKIPPED"]
Result = tuple[Status, str]

_UNTRAINED = "needs a trained model, and this one was declared untrained"
_HINT = "random weights fail this by nature; for those there is --untrained"


@dataclass(frozen=True)
class Line:
    """One check. ``profile`` is the quantization it was made on, if any."""

    check: str
    profile: str | None
    status: Status
    detail: str
    needs_trained: bool


@dataclass
class Lines:
    """Collects lines. With ``untrained``, lines that need a trained model are skipped and say so."""

    untrained: bool
    said: Callable[[Line], None] = lambda line: None
    lines: list[Line] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def add(
        self, check: str, result: Callable[[], Result], *, profile: str | None = None, needs_trained: bool = False
    ) -> bool:
        """Run one check; what it raises on purpose is a FAIL. Returns whether it passed."""
        if needs_trained and self.untrained:
            outcome: Result = ("SKIPPED", _UNTRAINED)
        else:
            outcome = _outcome(result)
        status, detail = outcome
        if status == "FAIL" and needs_trained:
            detail = f"{detail} ({_HINT})"
        line = Line(check, profile, status, detail, needs_trained)
        self.lines.append(line)
        self.said(line)
        return status == "PASS"

    @property
    def passed(self) -> bool:
        """No line failed."""
        return all(line.status != "FAIL" for line in self.lines)


def _outcome(result: Callable[[], Result]) -> Result:
    try:
        return result()
    except GuardError as error:
        return "FAIL", " ".join(str(error).split())
    except OSError as error:
        return "FAIL", error.strerror or type(error).__name__
