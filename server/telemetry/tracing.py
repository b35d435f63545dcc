"""OpenTelemetry spans: one for each call, with what the engine did for it below. Only this module imports it.

W3C trace context comes in the call's metadata. No attribute holds content: the gen_ai conventions have some for
messages, and none of them is set. Exceptions are not recorded, as their texts could quote a request.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

Attribute = str | bool | int | float | Sequence[str]
_CONTEXT_KEYS = ("traceparent", "tracestate")
_EXPORT_TIMEOUT_S = 5
#: Statuses that are failures of the server; the others are its callers' (the semantic conventions for gRPC servers).
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})


class Tracing:
    """Makes spans and hands them to an exporter. ``ratio`` of the calls without a sampled parent are recorded."""

    def __init__(self, exporter: SpanExporter, ratio: float, *, batched: bool = True) -> None:
        """``batched`` spans are exported on another thread, a few seconds later."""
        resource = Resource.create({"service.name": "guardlet", "service.version": version("guardlet")})
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter) if batched else SimpleSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("guardlet", version("guardlet"))

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> CallSpan:
        """The span of a call of ``method`` that came with ``metadata``."""
        carrier = {key: value for key, value in metadata if key in _CONTEXT_KEYS and isinstance(value, str)}
        parent = TraceContextTextMapPropagator().extract(carrier)
        service, _, name = method.removeprefix("/").partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        span = self._tracer.start_span(
            f"{service}/{name}",
            parent,
            SpanKind.SERVER,
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        return CallSpan(self._tracer, span)

    def close(self) -> None:
        """Export what is left, for a few seconds at most."""
        self._provider.shutdown()


class CallSpan:
    """The span of one call. Times are time.monotonic() seconds."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    @property
    def ids(self) -> dict[str, str]:
        """``trace_id`` and ``span_id`` in hexadecimal, for log lines."""
        context = self._span.get_span_context()
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        """Add attributes, unless it has ended: a cancelled call's last verdict may come after it."""
        if self._span.is_recording():
            self._span.set_attributes(dict(attributes))

    def child(self, name: str, start: float, end: float, attributes: Mapping[str, Attribute] | None = None) -> None:
        """Something that was done for the call, from ``start`` to ``end``."""
        if not self._span.is_recording():
            return
        parent = set_span_in_context(self._span)
        child = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._ns(start))
        child.end(self._ns(max(start, end)))

    def end(self, code: str, number: int, error_type: str) -> None:
        """The call ended with the gRPC status ``code``; ``error_type`` is its reason, "" when it is OK."""
        self.set({"rpc.grpc.status_code": number})
        if error_type:
            self.set({"error.type": error_type})
        if code in _SERVER_ERRORS:
            self._span.set_status(Status(StatusCode.ERROR, code))
        self._span.end()

    def _ns(self, seconds: float) -> int:
        return round(seconds * 1e9) + self._offset_ns


def to_collector(endpoint: str, ratio: float) -> Tracing:
    """Spans for the OpenTelemetry collector at ``endpoint`` (http://HOST:PORT or https://HOST:PORT), over gRPC."""
    insecure = endpoint.startswith("http://")
    return Tracing(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_TIMEOUT_S), ratio)
