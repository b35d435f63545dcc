"""What Prometheus reads after real calls: the numbers are those of the calls, and the names those of the dashboard."""

from __future__ import annotations

import asyncio
import re
import urllib.error
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.v1.generation_pb2 import GenerateRequest, Label, ModerationOptions, StreamGenerateRequest, TagRequest
from guard.v1.moderation_pb2 import BatchClassifyRequest
from server.errors import SettingsError

from .fakes import BROKEN_MARK, UNSAFE_MARK, FakeModels
from .running import Running, message, question, refused, running, until
from .scraping import get, scrape, stats

ROOT = Path(__file__).resolve().parents[2]
ANYWHERE = "127.0.0.1:0"
CLASSIFY = "guard.v1.ModerationService/Classify"


@pytest.fixture
async def measured(models: FakeModels) -> AsyncIterator[Running]:
    async with running(models, metrics_address=ANYWHERE, cache_entries=100) as server:
        yield server


async def test_calls_are_counted_by_method_and_status(measured: Running) -> None:
    await measured.moderation.Classify(question("bread"))
    await refused(measured.moderation.Classify(question(" ")))
    await refused(measured.channel.unary_unary(f"/{CLASSIFY}")(b"\x0a\x7f"))
    await measured.serving()  # health is not among them
    found = await scrape(measured)
    assert found.value("grpc_server_call_started_total", grpc_method=CLASSIFY) == 3
    counted = {
        code: found.value("grpc_server_call_duration_seconds_count", grpc_method=CLASSIFY, grpc_status=code)
        for code in ("OK", "INVALID_ARGUMENT")
    }
    assert counted == {"OK": 1, "INVALID_ARGUMENT": 2}
    assert found.value("grpc_server_call_duration_seconds_sum", grpc_status="OK") > 0
    assert found.labels("grpc_server_call_started_total", "grpc_method") == {CLASSIFY}
    assert found.value("guard_refused_total", reason="INVALID_INPUT") == 2
    assert found.value("gen_ai_server_request_duration_seconds_count", error_type="INVALID_INPUT") == 2
    assert found.value("gen_ai_server_request_duration_seconds_count", gen_ai_request_model="tiny-guard") == 1


async def test_verdicts_are_counted_by_category_and_what_decided(measured: Running) -> None:
    for text in ("bread", UNSAFE_MARK, UNSAFE_MARK):
        await measured.moderation.Classify(question(text))
    batch = BatchClassifyRequest(requests=[question("rolls"), question(" "), question(UNSAFE_MARK + "!")])
    await measured.moderation.BatchClassify(batch)
    found = await scrape(measured)
    name = "guard_verdicts_total"
    unsafe = {"verdict": "unsafe", "category": "S2", "action": "block", "policy": "default", "target": "prompt"}
    assert found.value(name, task="classify", decided_by="model", **unsafe) == 1
    assert found.value(name, task="classify", decided_by="cache", **unsafe) == 1
    assert found.value(name, task="batch_classify", **unsafe) == 1
    assert found.value(name, verdict="safe", category="", action="allow") == 2
    assert found.value(name) == 5
    assert found.value("guard_refused_total", reason="INVALID_INPUT") == 1  # the blank item
    assert found.value("guard_verdict_cache_hits_total", model="tiny-guard") == 1
    assert found.value("guard_verdict_cache_misses_total") == 4
    assert found.value("guard_verdict_cache_entries") == 4
    assert found.value("guard_verdict_cache_bytes") > 0


async def test_outputs_that_cannot_be_read_have_a_metric(measured: Running) -> None:
    """Failure test 16: garbled output is an error and counted, and no verdict."""
    await refused(measured.moderation.Classify(question(BROKEN_MARK)))
    await measured.moderation.BatchClassify(BatchClassifyRequest(requests=[question(BROKEN_MARK)]))
    found = await scrape(measured)
    assert found.value("guard_unreadable_outputs_total", task="classify") == 1
    assert found.value("guard_unreadable_outputs_total", task="batch_classify") == 1
    assert found.value("guard_refused_total", reason="MODEL_OUTPUT_UNREADABLE") == 2
    assert found.value("guard_verdicts_total") == 0


async def test_generations_are_counted_by_how_they_end(measured: Running, models: FakeModels) -> None:
    both = ModerationOptions(check_input=True, check_output=True)
    await measured.generation.Generate(
        GenerateRequest(messages=[message("hi")], max_tokens=100, temperature=0.0, prompt_lookup=True)
    )
    async for _ in measured.generation.StreamGenerate(StreamGenerateRequest(messages=[message("hi")], max_tokens=8)):
        pass
    blocked = GenerateRequest(messages=[message(UNSAFE_MARK)], max_tokens=8, moderation=both)
    await measured.generation.Generate(blocked)
    labels = [Label(name="a"), Label(name="b")]
    await measured.generation.Tag(TagRequest(text="bread", labels=labels))
    found = await scrape(measured)
    assert found.value("guard_generations_total", model="tiny-instruct", finish_reason="length") == 2
    assert found.value("guard_generations_total", finish_reason="content_filter") == 1
    assert found.value("guard_verdicts_total", task="chat", target="prompt", verdict="unsafe", action="block") == 1
    assert found.value("guard_completion_tokens_total", model="tiny-instruct") >= 108
    assert found.value("guard_prompt_tokens_total", model="tiny-instruct") > 20
    assert found.value("gen_ai_server_time_to_first_token_seconds_count", gen_ai_operation_name="chat") >= 2
    assert found.value("gen_ai_server_time_per_output_token_seconds_count") >= 2
    assert found.value("gen_ai_server_request_duration_seconds_count", gen_ai_operation_name="tag") == 1
    drafted = found.value("guard_drafted_tokens_total")
    assert 0 < found.value("guard_accepted_tokens_total") <= drafted  # LETTERS repeat, so look-up proposes them


async def test_engines_and_their_memory_are_shown(models: FakeModels) -> None:
    models.step_seconds = 0.02
    async with running(models, metrics_address=ANYWHERE) as server:
        calls = [
            asyncio.ensure_future(server.generation.Generate(GenerateRequest(messages=[message("x")], max_tokens=400)))
            for _ in range(12)
        ]
        engine = server.app.registry.instruct()[1].engine
        await until(lambda: (engine.stats.active, engine.stats.queued) == (8, 4))
        found = await scrape(server)
        busy = {"model": "tiny-instruct"}
        assert found.value("guard_engine_active_jobs", **busy) == 8
        assert found.value("guard_engine_queue_length", **busy) == 4
        assert 0 < found.value("guard_kv_bytes", **busy) <= found.value("guard_kv_bytes_peak", **busy)
        assert found.value("guard_kv_bytes_peak", **busy) <= found.value("guard_kv_bytes_limit", **busy)
        assert found.value("guard_admission_requests", service="GenerationService") == 12
        await until(lambda: engine.stats.batches.total >= 16)
        for call in calls:
            call.cancel()
        await until(lambda: engine.jobs == 0)
        found = await scrape(server)
        assert found.value("guard_engine_active_jobs") == found.value("guard_kv_bytes") == 0
        assert found.value("guard_engine_decode_batch_size_bucket", le="8.0", **busy) > 0
        assert found.value("guard_engine_queue_seconds_count", **busy) == 12
        assert found.value("guard_engine_prefill_tokens_total", **busy) > 0
        assert found.value("grpc_server_call_duration_seconds_count", grpc_status="CANCELLED") == 12


async def test_models_and_the_process_are_described(measured: Running) -> None:
    found = await scrape(measured)
    digest = measured.app.registry.guard()[0].model.bundle.digest
    facts = {"model": "tiny-guard", "task": "guard", "quantization": "none", "digest": digest}
    assert found.value("guard_model_info", **facts) == 1
    assert found.value("guard_model_ready") == 2
    assert 0 < found.value("guard_model_load_seconds", model="tiny-guard") < 60
    kinds = {kind: found.value("guard_process_resident_bytes", kind=kind) for kind in ("anonymous", "file", "shared")}
    assert kinds["anonymous"] > 1 << 20
    assert abs(sum(kinds.values()) / found.value("process_resident_memory_bytes") - 1) < 0.2


async def test_the_last_minutes_in_a_few_numbers(measured: Running) -> None:
    for _ in range(3):
        await measured.moderation.Classify(question("bread"))
        await measured.generation.Generate(GenerateRequest(messages=[message("hi")], max_tokens=10))
    await refused(measured.moderation.Classify(question(" ")))  # the caller's doing
    await refused(measured.moderation.Classify(question(BROKEN_MARK)))
    found = await stats(measured)
    assert found["calls"] == 8
    assert found["codes"] == {"INTERNAL": 1, "INVALID_ARGUMENT": 1, "OK": 6}
    assert found["success_rate"] == 6 / 7
    assert found["time_to_first_token_s"]["count"] == 3
    assert 0 < found["time_to_first_token_s"]["p50"] <= found["time_to_first_token_s"]["p95"]
    assert found["tokens_per_second"]["p50"] > 0
    assert found["verdicts"] == {"safe": 3}


async def test_labels_are_bounded_whatever_callers_write(measured: Running) -> None:
    before: set[Any] = set()
    for index in range(20):
        name = f"caller-{index}"
        calls = [
            measured.moderation.Classify(question("x", model=name)),
            measured.moderation.Classify(question("x", policy_name=name)),
            measured.moderation.Classify(question("x", request_id=f"{name} !")),
        ]
        await asyncio.gather(*map(refused, calls))
        await measured.moderation.Classify(question("x", request_id=name))
        found = await scrape(measured)
        series = {(name, tuple(sorted(labels.items()))) for name, labels, _ in found.samples}
        assert "caller-" not in found.text
        assert index < 2 or series == before  # the second text is known to the cache
        before = series


async def test_the_port_serves_nothing_else(measured: Running) -> None:
    address = measured.app.telemetry.address
    for path in ("/", "/metrics/x", "/../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            await asyncio.to_thread(get, address, path)
        assert caught.value.code == 404
        caught.value.close()


async def test_the_port_is_freed_and_a_taken_one_is_refused(models: FakeModels, measured: Running) -> None:
    taken = measured.app.telemetry.address
    with pytest.raises(SettingsError, match="metrics_address: cannot listen there"):
        async with running(models, metrics_address=taken):
            pass
    async with running(models, metrics_address=ANYWHERE) as other:
        address = other.app.telemetry.address
    async with running(models, metrics_address=address) as again:
        assert again.app.telemetry.address == address


def expressions(value: Any) -> list[str]:
    """Every PromQL expression in a dashboard or a file of rules."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for each in value.values() for found in expressions(each)]
    return [found for each in value for found in expressions(each)] if isinstance(value, list) else []


@pytest.mark.parametrize("file", ["guardlet-dashboard.json", "guardlet-alerts.yaml"])
async def test_dashboard_and_alerts_ask_for_names_and_labels_that_exist(measured: Running, file: str) -> None:
    both = ModerationOptions(check_input=True, check_output=True)
    await measured.moderation.Classify(question(UNSAFE_MARK))
    await refused(measured.moderation.Classify(question(BROKEN_MARK)))
    await measured.generation.Generate(GenerateRequest(messages=[message("hi")], max_tokens=8, moderation=both))
    measured.app.telemetry.metrics.caller_calls.labels("newsroom", "OK").inc()
    exported: dict[str, set[str]] = {}
    for name, labels, _ in (await scrape(measured)).samples:
        exported.setdefault(name, {"job", "instance"}).update(labels)

    found = expressions(yaml.safe_load((ROOT / "deploy" / "grafana" / file).read_text(encoding="utf-8")))
    assert len(found) >= 12
    for expression in found:
        bare = re.sub(r'"[^"]*"', '""', expression)
        grouped = {label for group in re.findall(r"by ?\(([^)]*)\)", bare) for label in group.split(", ")}
        bare = re.sub(r"by ?\([^)]*\)", "", bare)
        matched = set(re.findall(r"(\w+) ?(?:=~|!~|!=|=) ?\"\"", bare))
        names = set(re.findall(r"\b(?:guard|grpc|gen|process)_\w+\b", re.sub(r"\{[^}]*\}", "", bare)))
        assert names, expression
        assert names <= exported.keys(), expression
        for name in names:
            assert grouped | matched <= exported[name], expression
