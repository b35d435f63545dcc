"""The metrics that calls add to. Those of models, engines and the process are read as they are: see ``collector``.

Names: gRPC's A66 and OpenTelemetry's gen_ai semantic conventions in their Prometheus form, and guard_* for our own.
Labels are bounded: methods, models, reasons and policies are the server's, callers come from its file of callers.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from guard.cascade import Screening
from guard.errors import ModelOutputError
from guard.generation import Generation
from guard.tagger import Tagging
from guard.verdict import Judgement, action_for
from server.observer import Judged

#: gRFC A66's, less those below a millisecond: a model step takes several.
_A66_S = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.013, 0.016, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08),
    *(0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
)
# The advice of OpenTelemetry's semantic conventions for generative AI, metrics, version 1.37.
_REQUEST_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_OUTPUT_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS_PER_SECOND = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)

#: Method to gen_ai.operation.name; for the others there is no such request.
OPERATIONS = {
    "/guard.v1.ModerationService/Classify": "classify",
    "/guard.v1.ModerationService/BatchClassify": "batch_classify",
    "/guard.v1.ModerationService/StreamClassify": "stream_classify",
    "/guard.v1.GenerationService/Generate": "chat",
    "/guard.v1.GenerationService/StreamGenerate": "chat",
    "/guard.v1.GenerationService/Tag": "tag",
    "/envoy.service.ext_proc.v3.ExternalProcessor/Process": "ext_proc",
}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a time of birth for every series doubles their number


class Metrics:
    """Counters and histograms in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.started = Counter(
            "grpc_server_call_started", "Calls that arrived (A66 grpc.server.call.started)", ["grpc_method"],
            registry=registry,
        )  # fmt: skip
        self.call_s = Histogram(
            "grpc_server_call_duration_seconds", "Arrival to status (A66 grpc.server.call.duration)",
            ["grpc_method", "grpc_status"], buckets=_A66_S, registry=registry,
        )  # fmt: skip
        self.request_s = Histogram(
            "gen_ai_server_request_duration_seconds", "The same by model (gen_ai.server.request.duration)",
            ["gen_ai_operation_name", "gen_ai_request_model", "error_type"], buckets=_REQUEST_S, registry=registry,
        )  # fmt: skip
        self.first_token_s = Histogram(
            "gen_ai_server_time_to_first_token_seconds", "Arrival to first token (gen_ai.server.time_to_first_token)",
            ["gen_ai_operation_name", "gen_ai_request_model"], buckets=_FIRST_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.output_token_s = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "After the first (gen_ai.server.time_per_output_token)",
            ["gen_ai_operation_name", "gen_ai_request_model"], buckets=_OUTPUT_TOKEN_S, registry=registry,
        )  # fmt: skip
        self.tokens_per_second = Histogram(
            "guard_tokens_per_second", "Tokens written a second, of each generation", ["model"],
            buckets=_TOKENS_PER_SECOND, registry=registry,
        )  # fmt: skip
        self.verdicts = self._counter(
            "guard_verdicts", "Verdicts; category is the most likely one that was flagged, none for safe texts",
            "task", "target", "verdict", "category", "action", "decided_by", "policy",
        )  # fmt: skip
        self.screenings = self._counter(
            "guard_screenings", "What came of the screen; verdict is its own when it decided", "task", "screening",
            "verdict",
        )  # fmt: skip
        self.refused = self._counter("guard_refused", "Calls and items of batches that ended with an error", "reason")
        self.unreadable = self._counter("guard_unreadable_outputs", "Answers of a model that could not be read", "task")
        self.caller_calls = self._counter("guard_caller_calls", "Calls of known callers", "caller", "grpc_status")
        self.caller_tokens = self._counter("guard_caller_tokens", "Tokens computed for known callers", "caller")
        self.generations = self._counter(
            "guard_generations", "Texts written; content_filter are those that the guard blocked",
            "model", "finish_reason",
        )  # fmt: skip
        self.prompt_tokens = self._counter("guard_prompt_tokens", "Tokens of prompts", "model")
        self.cached_tokens = self._counter("guard_cached_prompt_tokens", "Of these, without compute", "model")
        self.completion_tokens = self._counter("guard_completion_tokens", "Tokens written", "model")
        self.drafted_tokens = self._counter("guard_drafted_tokens", "Tokens proposed by prompt lookup", "model")
        self.accepted_tokens = self._counter("guard_accepted_tokens", "Of these, accepted", "model")
        self.audit_lines = self._counter("guard_audit_lines", "Lines of the audit log")
        self.audit_failures = self._counter("guard_audit_failures", "Verdicts that the audit log could not take")

    def judged(self, task: str, judged: Judged) -> None:
        """Count a verdict."""
        judgement = judged.judgement
        self.verdicts.labels(
            task,
            judged.target.value,
            judgement.verdict.value,
            leading_category(judgement),
            action_for(judgement.verdict, judged.applied.policy).value,
            judgement.decided_by.value,
            judged.applied.name,
        ).inc()
        self._add_tokens(judged.entry.name, judgement)

    def screened(self, task: str, screening: Screening, model: str, judgement: Judgement | None) -> None:
        """Count what came of the screen, and the tokens of a text that it passed on."""
        decided = judgement is not None and screening is Screening.DECIDED
        self.screenings.labels(task, screening.value, judgement.verdict.value if judgement and decided else "").inc()
        if judgement is not None and not decided:
            self._add_tokens(model, judgement)

    def generated(self, operation: str, model: str, generation: Generation, first_token_s: float) -> None:
        """Count a text; the times of one of which nothing was written say nothing."""
        for choice in generation.choices:
            self.generations.labels(model, choice.finish_reason.value).inc()
        self._add_tokens(model, generation)
        self.completion_tokens.labels(model).inc(generation.completion_tokens)
        self.drafted_tokens.labels(model).inc(generation.drafted_tokens)
        self.accepted_tokens.labels(model).inc(generation.accepted_tokens)
        if generation.completion_tokens:
            self.first_token_s.labels(operation, model).observe(first_token_s)
        if speed := generation.tokens_per_second:
            self.output_token_s.labels(operation, model).observe(1 / speed)
            self.tokens_per_second.labels(model).observe(speed)

    def tagged(self, model: str, tagging: Tagging) -> None:
        """Count the tokens of a prompt with labels."""
        self._add_tokens(model, tagging)

    def failed(self, task: str, reason: str) -> None:
        """Count an error."""
        self.refused.labels(reason).inc()
        if reason == ModelOutputError.reason:
            self.unreadable.labels(task).inc()

    def _add_tokens(self, model: str, used: Judgement | Generation | Tagging) -> None:
        self.prompt_tokens.labels(model).inc(used.prompt_tokens)
        self.cached_tokens.labels(model).inc(used.cached_tokens)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)


def leading_category(judgement: Judgement) -> str:
    """The most likely category that was flagged; "" when none was, as in safe texts and matches of a list."""
    return next((category.code for category in judgement.categories if category.flagged), "")
