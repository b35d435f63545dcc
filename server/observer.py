"""What the handlers tell about the call they work on, and to whom: metrics, spans, the audit log, or nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

from guard.cascade import Screening
from guard.conversation import Target
from guard.generation import Generation
from guard.policies import NamedPolicy
from guard.tagger import Tagging
from guard.verdict import Judgement
from server.registry import Entry


@dataclass(frozen=True)
class Judged:
    """One verdict of the model ``entry`` about ``text`` under the policy ``applied``, before it leaves the server.

    ``request_id`` is that of the call, or of the item of a batch.
    """

    judgement: Judgement
    target: Target
    applied: NamedPolicy
    entry: Entry
    request_id: str
    text: str = field(repr=False)


@dataclass(frozen=True)
class Streamed:
    """Text that leaves the server before all of it is judged: of a stream, under the policy ``applied``."""

    target: Target
    applied: NamedPolicy
    entry: Entry
    request_id: str


class Observer:
    """Listens to one call. This one hears everything and keeps nothing; ``server.telemetry`` has the other."""

    async def judged(self, judged: Judged) -> None:
        """A verdict was reached. Raises UnavailableError when it has to be recorded and cannot be."""

    async def releasing(self, streamed: Streamed) -> None:
        """The first text is about to leave. Raises UnavailableError when that has to be recorded and cannot be."""

    def broke_off(self, streamed: Streamed, error: BaseException, judgement: Judgement | None, text: str) -> None:
        """The stream ended by ``error`` before there was a verdict about all of it: ``judgement`` is that about
        ``text``, None when that is not known.
        """

    def screened(self, screening: Screening, model: str, judgement: Judgement | None) -> None:
        """This came of the screen ``model``, whose ``judgement`` follows as ``judged`` if it decided."""

    def generated(self, generation: Generation, model: str, submitted: float, first_token_s: float) -> None:
        """``model`` has written a text. ``submitted``: when its engine got it, in time.monotonic() seconds;
        ``first_token_s``: seconds from the call's arrival to its first token.
        """

    def tagged(self, tagging: Tagging, model: str) -> None:
        """``model`` has chosen a label."""

    def charged(self, caller: str, tokens: int) -> None:
        """``tokens`` were computed for the known ``caller``."""

    def failed(self, reason: str) -> None:
        """The call, or an item of it, ends with an error of this ``google.rpc.ErrorInfo.reason``."""


SILENT = Observer()
