from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.telemetry
from server.errors import SettingsError
from server.settings import Settings
from server.telemetry.collector import resident_bytes
from server.telemetry.settings import TelemetrySettings
from server.telemetry.telemetry import Telemetry
from server.telemetry.window import SECONDS, Window, quantile


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_window_forgets_what_is_old() -> None:
    clock = Clock()
    window = Window(clock)
    window.called("INTERNAL", 1.0)
    window.generated(1.0, 10.0)
    clock.now = SECONDS / 2
    window.called("OK", 2.0)
    window.generated(2.0, 0.0)  # a text of one token has no speed
    window.judged("safe")
    assert window.summary() == {
        "window_s": SECONDS,
        "calls": 2,
        "codes": {"INTERNAL": 1, "OK": 1},
        "success_rate": 0.5,
        "call_s": {"count": 2, "p50": 1.0, "p95": 2.0},
        "time_to_first_token_s": {"count": 2, "p50": 1.0, "p95": 2.0},
        "tokens_per_second": {"count": 1, "p50": 10.0, "p95": 10.0},
        "verdicts": {"safe": 1},
    }
    clock.now = SECONDS + 1
    assert window.summary()["codes"] == {"OK": 1}
    assert window.summary()["success_rate"] == 1.0
    clock.now = 2 * SECONDS
    empty = window.summary()
    assert (empty["calls"], empty["success_rate"], empty["call_s"]["p95"]) == (0, None, None)


def test_callers_mistakes_are_no_failures() -> None:
    window = Window(Clock())
    for code in ("INVALID_ARGUMENT", "CANCELLED", "UNAUTHENTICATED"):
        window.called(code, 0.1)
    assert window.summary()["success_rate"] is None
    window.called("RESOURCE_EXHAUSTED", 0.1)
    window.called("OK", 0.1)
    assert window.summary()["success_rate"] == 0.5


@given(st.lists(st.integers(0, 20), min_size=1), st.floats(0.01, 1))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(values: list[int], part: float) -> None:
    ordered = sorted(map(float, values))
    found = quantile(ordered, part)
    assert found in ordered
    assert len([value for value in ordered if value <= (found or 0)]) >= part * len(ordered) - 1e-6
    assert len([value for value in ordered if value < (found or 0)]) < part * len(ordered) + 1e-6


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("metrics_address", "9464", "expected HOST:PORT"),
        ("metrics_address", "", "expected HOST:PORT"),
        ("metrics_address", "localhost:99999", "expected HOST:PORT"),
        ("metrics_address", "0.0.0.0:9464", "no encryption"),
        ("metrics_address", "[::]:9464", "no encryption"),
        ("trace_endpoint", "127.0.0.1:4317", "expected http://"),
        ("trace_endpoint", "http://127.0.0.1", "expected http://"),
        ("trace_endpoint", "http://collector:4317", "without encryption"),
        ("trace_ratio", 1.5, "expected 0 to 1"),
        ("trace_ratio", float("nan"), "expected 0 to 1"),
    ],
)
def test_settings_are_checked(field: str, value: object, problem: str) -> None:
    with pytest.raises(SettingsError, match=f"{field}: .*{problem}"):
        Settings(guard=Path("g"), **{field: value})  # type: ignore[arg-type]


def test_addresses_that_may_be() -> None:
    assert TelemetrySettings().metrics_host_port() is None
    assert TelemetrySettings("localhost:0").metrics_host_port() == ("localhost", 0)
    assert TelemetrySettings("[::1]:9464").metrics_host_port() == ("::1", 9464)
    assert TelemetrySettings("0.0.0.0:9464", allow_insecure=True).metrics_host_port() == ("0.0.0.0", 9464)
    for endpoint in ("http://localhost:4317", "http://[::1]:4317", "https://collector.example:443"):
        assert TelemetrySettings(trace_endpoint=endpoint).trace_endpoint == endpoint


def test_tracing_without_its_extra_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, "server.telemetry.tracing", raising=False)
    monkeypatch.delattr(server.telemetry, "tracing", raising=False)  # the package remembers it too
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(SettingsError, match=r"trace_endpoint: needs OpenTelemetry; pip install 'guardlet\[otel\]'"):
        Telemetry(TelemetrySettings(trace_endpoint="http://127.0.0.1:4317"), None, {})
    Telemetry(TelemetrySettings(), None, {})  # and without tracing it is not missed


def test_resident_memory_by_kind(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tguard\n\nVmRSS:\t 9 kB\nRssAnon:\t 4 kB\nRssFile:\t 3 kB\nRssShmem:\t 2 kB\n")
    assert resident_bytes(status) == [(["anonymous"], 4096.0), (["file"], 3072.0), (["shared"], 2048.0)]
    assert resident_bytes(tmp_path / "missing") == []


async def test_a_collector_that_is_not_there_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    """Spans are dropped; calls do not wait and nothing is raised."""
    from server.telemetry.tracing import to_collector

    tracing = to_collector("http://127.0.0.1:9", 1.0)
    with caplog.at_level(logging.CRITICAL, "opentelemetry"):
        tracing.begin("/guard.v1.ModerationService/Classify", []).end("OK", 0, "")
        tracing.close()
