"""Spans of real calls, with the caller's trace context in their metadata."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from guard.v1.generation_pb2 import GenerateRequest, Label, ModerationOptions, TagRequest
from server import log
from server.telemetry.tracing import Tracing

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, message, question, refused, running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


class Spans:
    """What was exported so far."""

    def __init__(self, ratio: float) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(self._exporter, ratio, batched=False)

    @property
    def all(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.all if span.name == name]
        return found

    def children(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """In the order of their beginnings."""
        assert parent.context is not None
        found = [span for span in self.all if span.parent and span.parent.span_id == parent.context.span_id]
        return sorted(found, key=lambda span: span.start_time or 0)


@asynccontextmanager
async def traced(models: FakeModels, ratio: float = 1.0) -> AsyncIterator[tuple[Running, Spans]]:
    spans = Spans(ratio)
    async with running(models, tracing=spans.tracing) as server:
        yield server, spans


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.JsonFormatter())
    log.logger.addHandler(handler)
    log.logger.setLevel(logging.INFO)
    yield stream
    log.logger.removeHandler(handler)
    log.logger.setLevel(logging.NOTSET)


async def test_a_call_continues_its_callers_trace(models: FakeModels, logs: io.StringIO) -> None:
    async with traced(models) as (server, spans):
        await server.moderation.Classify(
            question(UNSAFE_MARK, request_id="r-1"), metadata=[("traceparent", SAMPLED), ("tracestate", "vendor=1")]
        )
        span = spans.named("guard.v1.ModerationService/Classify")
    assert span.context is not None
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert span.context.trace_state.get("vendor") == "1"
    assert span.kind is SpanKind.SERVER
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes or {})
    assert attributes.pop("gen_ai.usage.input_tokens")
    assert attributes == {
        "rpc.system": "grpc",
        "rpc.service": "guard.v1.ModerationService",
        "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
        "gen_ai.provider.name": "guardlet",
        "gen_ai.operation.name": "classify",
        "gen_ai.request.model": "tiny-guard",
        "guard.request_id": "r-1",
        "guard.verdict": "unsafe",
        "guard.flagged_categories": ("S2",),
        "guard.policy": "default",
        "guard.decided_by": "model",
    }
    line = next(line for line in map(json.loads, logs.getvalue().splitlines()) if line["event"] == "call")
    assert (line["trace_id"], line["span_id"]) == (TRACE, f"{span.context.span_id:016x}")


async def test_what_the_engine_did_is_below_the_call(models: FakeModels) -> None:
    models.step_seconds = 0.01
    both = ModerationOptions(check_input=True, check_output=True)
    request = GenerateRequest(messages=[message("hi")], max_tokens=10, moderation=both)
    async with traced(models) as (server, spans):
        await server.generation.Generate(request)
        span = spans.named("guard.v1.GenerationService/Generate")
        children = spans.children(span)
    names = [child.name for child in children]
    assert sorted(names) == ["decode", "guard check", "guard check", "prefill", "queue", "queue", "queue"]
    of = {name: next(child for child in children if child.name == name) for name in names}
    prefill, decode = of["prefill"], of["decode"]
    assert prefill.end_time == decode.start_time
    for child in children:
        assert child.start_time is not None
        assert child.end_time is not None
        assert child.start_time <= child.end_time
    assert span.start_time is not None
    assert span.end_time is not None
    assert prefill.start_time is not None
    assert decode.end_time is not None
    slack_ns = 1_000_000  # a span's own clock and ours
    assert span.start_time - slack_ns <= prefill.start_time
    assert decode.end_time <= span.end_time + slack_ns
    attributes = span.attributes or {}
    assert attributes["gen_ai.usage.output_tokens"] == 10
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert attributes["gen_ai.request.model"] == "tiny-instruct"


async def test_failures_say_why_without_any_text(models: FakeModels) -> None:
    async with traced(models) as (server, spans):
        await refused(server.moderation.Classify(question(BROKEN_MARK)))
        await refused(server.generation.Tag(TagRequest(text="x", labels=[Label(name="one")])))
        broken = spans.named("guard.v1.ModerationService/Classify")
        wrong = spans.named("guard.v1.GenerationService/Tag")
    assert (broken.status.status_code, broken.status.description) == (StatusCode.ERROR, "INTERNAL")
    assert (broken.attributes or {})["error.type"] == "MODEL_OUTPUT_UNREADABLE"
    assert (broken.attributes or {})["rpc.grpc.status_code"] == 13
    assert wrong.status.status_code is StatusCode.UNSET  # the caller's error
    assert (wrong.attributes or {})["error.type"] == "INVALID_INPUT"
    assert not broken.events and not wrong.events


async def test_a_label_is_a_prefill(models: FakeModels) -> None:
    async with traced(models) as (server, spans):
        await server.generation.Tag(TagRequest(text="x", labels=[Label(name="a"), Label(name="b")]))
        children = spans.children(spans.named("guard.v1.GenerationService/Tag"))
    assert sorted(child.name for child in children) == ["prefill", "queue"]


@pytest.mark.parametrize(
    ("ratio", "traceparent", "recorded"),
    [
        (0.0, None, False),
        (1.0, None, True),
        (0.0, SAMPLED, True),
        (1.0, UNSAMPLED, False),
        (1.0, "00-what-is-this-01", True),
        (1.0, f"00-{'0' * 32}-{PARENT}-01", True),
    ],
)
async def test_sampling_follows_the_caller_then_the_ratio(
    models: FakeModels, ratio: float, traceparent: str | None, recorded: bool
) -> None:
    async with traced(models, ratio) as (server, spans):
        await server.moderation.Classify(question("x"), metadata=[("traceparent", traceparent)] if traceparent else [])
    assert bool(spans.all) == recorded


class Collector(TraceServiceServicer):
    """An OpenTelemetry collector that keeps the names of spans by the service that sent them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.services: set[str] = set()

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        for resource in request.resource_spans:
            attributes = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.services.add(attributes["service.name"])
            self.names += [span.name for scope in resource.scope_spans for span in scope.spans]
        return ExportTraceServiceResponse()


async def test_spans_reach_a_collector_at_the_latest_when_the_server_stops(models: FakeModels) -> None:
    collector, receiving = Collector(), grpc.aio.server()
    add_TraceServiceServicer_to_server(collector, receiving)  # type: ignore[no-untyped-call]
    port = receiving.add_insecure_port("127.0.0.1:0")
    await receiving.start()
    try:
        async with running(models, trace_endpoint=f"http://127.0.0.1:{port}") as server:
            await server.moderation.Classify(question("x"))
        assert sorted(collector.names) == ["guard check", "guard.v1.ModerationService/Classify", "queue"]
        assert collector.services == {"guardlet"}
    finally:
        await receiving.stop(None)
