"""One call as telemetry sees it: what its handler tells goes to metrics, the window, the span and the audit log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guard.cascade import Screening
from guard.errors import CancelledError, DeadlineError, GuardError
from guard.generation import Generation
from guard.tagger import Tagging
from guard.verdict import Judgement
from server import call
from server.audit import AuditLog
from server.observer import Judged, Observer, Streamed
from server.telemetry.metrics import OPERATIONS, Metrics
from server.telemetry.window import Window

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from server.telemetry.tracing import CallSpan


class CallObserver(Observer):
    """Of one call, from its arrival to ``end``. Used from the event loop's thread only."""

    def __init__(
        self, method: str, metrics: Metrics, window: Window, audit: AuditLog | None, span: CallSpan | None
    ) -> None:
        self.span = span
        self._method = method
        self._task = OPERATIONS.get(method, "")
        self._metrics, self._window, self._audit = metrics, window, audit
        self._model, self._reason = "", ""
        self._input_tokens, self._output_tokens = 0, 0
        metrics.started.labels(method.removeprefix("/")).inc()

    async def judged(self, judged: Judged) -> None:
        self._model = self._model or judged.entry.name
        judgement = judged.judgement
        if self._audit is not None:
            await self._record(self._audit, self._audit.verdict(judged, self._method, call.current.get().caller))
        self._metrics.judged(self._task, judged)
        self._window.judged(judgement.verdict.value)
        if self.span is None:
            return
        self._input_tokens += judgement.prompt_tokens
        now = time.monotonic()
        began = now - judgement.model_s
        self.span.child("queue", began - judgement.queue_s, began)
        attributes = {"guard.target": judged.target.value, "guard.verdict": judgement.verdict.value}
        self.span.child("guard check", began, now, attributes | {"gen_ai.request.model": judged.entry.name})
        self.span.set(
            {
                "guard.verdict": judgement.verdict.value,
                "guard.flagged_categories": [found.code for found in judgement.categories if found.flagged],
                "guard.policy": judged.applied.name,
                "guard.decided_by": judgement.decided_by.value,
            }
        )

    async def releasing(self, streamed: Streamed) -> None:
        if self._audit is not None:
            await self._record(self._audit, self._audit.begun(streamed, self._method, call.current.get().caller))

    def broke_off(self, streamed: Streamed, error: BaseException, judgement: Judgement | None, text: str) -> None:
        if self._audit is None:
            return
        this = call.current.get()
        line = self._audit.broken_off(streamed, self._method, this.caller, _reason(error, this), judgement, text)
        self._audit.note(line).add_done_callback(lambda written: self._recorded(written.result()))

    def screened(self, screening: Screening, model: str, judgement: Judgement | None) -> None:
        self._metrics.screened(self._task, screening, model, judgement)
        if self.span is not None:
            self.span.set({"guard.screening": screening.value})

    def generated(self, generation: Generation, model: str, submitted: float, first_token_s: float) -> None:
        self._model = model
        self._metrics.generated(self._task, model, generation, first_token_s)
        if generation.completion_tokens:
            self._window.generated(first_token_s, generation.tokens_per_second)
        if self.span is None:
            return
        self._input_tokens += generation.prompt_tokens
        self._output_tokens += generation.completion_tokens
        began = submitted + generation.queue_s
        first, ended = submitted + generation.first_token_s, began + generation.model_s
        self.span.child("queue", submitted, began)
        if generation.first_token_s:
            self.span.child("prefill", began, first, {"gen_ai.usage.input_tokens": generation.prompt_tokens})
            self.span.child("decode", first, ended, {"gen_ai.usage.output_tokens": generation.completion_tokens})
        reasons = [choice.finish_reason.value for choice in generation.choices]
        self.span.set({"gen_ai.response.finish_reasons": reasons})

    def tagged(self, tagging: Tagging, model: str) -> None:
        self._model = model
        self._metrics.tagged(model, tagging)
        if self.span is not None:
            self._input_tokens += tagging.prompt_tokens
            now = time.monotonic()
            self.span.child("queue", now - tagging.model_s - tagging.queue_s, now - tagging.model_s)
            self.span.child("prefill", now - tagging.model_s, now)

    def charged(self, caller: str, tokens: int) -> None:
        self._metrics.caller_tokens.labels(caller).inc(tokens)

    def failed(self, reason: str) -> None:
        self._reason = reason
        self._metrics.failed(self._task, reason)

    def end(self, code: str, number: int, this: call.Call) -> None:
        """The call has ended with the gRPC status ``code``."""
        seconds = this.elapsed_s
        error = "" if code == "OK" else self._reason or code
        self._metrics.call_s.labels(self._method.removeprefix("/"), code).observe(seconds)
        if self._task:
            self._metrics.request_s.labels(self._task, self._model, error).observe(seconds)
        if this.caller is not None:
            self._metrics.caller_calls.labels(this.caller, code).inc()
        self._window.called(code, seconds)
        if self.span is None:
            return
        self.span.set({"gen_ai.provider.name": "guardlet", "guard.request_id": this.request_id})
        if self._task:
            self.span.set({"gen_ai.operation.name": self._task, "gen_ai.request.model": self._model})
        if self._input_tokens:
            self.span.set({"gen_ai.usage.input_tokens": self._input_tokens})
        if self._output_tokens:
            self.span.set({"gen_ai.usage.output_tokens": self._output_tokens})
        if this.caller is not None:
            self.span.set({"guard.caller": this.caller})
        self.span.end(code, number, error)

    async def _record(self, audit: AuditLog, line: Mapping[str, Any]) -> None:
        recorded = False
        try:
            recorded = await audit.record(line)
        finally:
            self._recorded(recorded)

    def _recorded(self, recorded: bool) -> None:
        (self._metrics.audit_lines if recorded else self._metrics.audit_failures).inc()


def _reason(error: BaseException, this: call.Call) -> str:
    """Why a stream broke off, as the caller is told if it is still there."""
    if isinstance(error, GuardError):
        return error.reason
    if isinstance(error, asyncio.CancelledError):  # by the interceptor of deadlines, or by gRPC when the caller left
        late = this.deadline is not None and time.monotonic() >= this.deadline
        return DeadlineError.reason if late else CancelledError.reason
    return "INTERNAL"
