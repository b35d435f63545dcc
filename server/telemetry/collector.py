"""Metrics that are read off models, gates and the process when Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from guard.classifier import Classifier
from guard.engine.stats import Distribution
from server.limits import Gate
from server.registry import Entry, State

#: Lines of /proc/self/status to what they count: an engine's weights and KV caches are anonymous, mapped files are not.
_RESIDENT = {"RssAnon": "anonymous", "RssFile": "file", "RssShmem": "shared"}


class ServerCollector(Collector):
    """``models`` and ``load_s`` (seconds by bundle digest) are replaced as a whole: scrapes come on other threads."""

    def __init__(self, gates: Mapping[str, Gate]) -> None:
        self.models: Sequence[Entry] = ()
        self.load_s: Mapping[str, float] = {}
        self._gates = gates

    def collect(self) -> Iterator[Metric]:
        """All of them as they are now."""
        yield _gauge("guard_build_info", "The server's version", ["version"], [([version("guardlet")], 1.0)])
        yield _gauge("guard_process_resident_bytes", "Resident memory by kind", ["kind"], resident_bytes())
        services = [(service.rpartition(".")[2], gate) for service, gate in self._gates.items()]
        yield _gauge(
            "guard_admission_requests",
            "Calls inside",
            ["service"],
            [([name], gate.requests) for name, gate in services],
        )
        yield _gauge(
            "guard_admission_request_bytes",
            "Bytes of their requests",
            ["service"],
            [([name], gate.bytes) for name, gate in services],
        )
        models = self.models
        yield from self._models(models)
        yield from _engines(models)
        yield from _prefixes(models)
        yield from _caches(models)

    def _models(self, models: Sequence[Entry]) -> Iterator[Metric]:
        labels = ["model", "task", "quantization", "digest"]
        facts = [
            ([entry.name, entry.task, entry.manifest.quantization.name, entry.model.bundle.digest], 1.0)
            for entry in models
        ]
        yield _gauge("guard_model_info", "A loaded model", labels, facts)
        ready = [([entry.name], float(entry.state is State.READY)) for entry in models]
        yield _gauge("guard_model_ready", "1 while the model serves", ["model"], ready)
        known = [(entry.name, self.load_s.get(entry.model.bundle.digest)) for entry in models]
        took = [([name], seconds) for name, seconds in known if seconds is not None]
        yield _gauge("guard_model_load_seconds", "Verifying, loading and warming up took", ["model"], took)


def resident_bytes(status: Path = Path("/proc/self/status")) -> list[tuple[list[str], float]]:
    """Bytes of resident memory by kind; nothing where there is no such file."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [([_RESIDENT[row[0][:-1]]], float(row[1]) * 1024) for row in rows if row and row[0][:-1] in _RESIDENT]


def _engines(models: Sequence[Entry]) -> Iterator[Metric]:
    stats = [([entry.name], entry.model.engine.stats) for entry in models]
    gauges = {
        "guard_engine_queue_length": ("Jobs that wait", "queued"),
        "guard_engine_active_jobs": ("Jobs that take turns", "active"),
        "guard_kv_bytes": ("KV cache reserved now", "kv_bytes"),
        "guard_kv_bytes_peak": ("KV cache reserved at most so far", "kv_bytes_peak"),
        "guard_kv_bytes_limit": ("KV cache that may be reserved", "kv_bytes_limit"),
    }
    counters = {
        "guard_engine_steps": ("Calls of the graph", "steps"),
        "guard_engine_failed_steps": ("Calls of the graph that raised", "failed_steps"),
        "guard_engine_prefill_tokens": ("Tokens of prompts that were computed", "prefill_tokens"),
        "guard_engine_decode_tokens": ("Tokens that decode steps computed, drafts included", "decode_tokens"),
    }
    for name, (text, attribute) in gauges.items():
        yield _gauge(name, text, ["model"], [(labels, getattr(each, attribute)) for labels, each in stats])
    for name, (text, attribute) in counters.items():
        yield _counter(name, text, ["model"], [(labels, getattr(each, attribute)) for labels, each in stats])
    waits = [(labels, each.waits) for labels, each in stats]
    yield _histogram("guard_engine_queue_seconds", "Submission to first step, or to giving up", waits)
    batches = [(labels, each.batches) for labels, each in stats]
    yield _histogram("guard_engine_decode_batch_size", "Sequences in a decode step", batches)


def _prefixes(models: Sequence[Entry]) -> Iterator[Metric]:
    stats = [([entry.name], entry.model.prefix_stats) for entry in models]
    yield _counter("guard_prefix_hits", "Prompts with a known beginning", ["model"], [(m, s.hits) for m, s in stats])
    yield _counter("guard_prefix_misses", "Prompts without", ["model"], [(m, s.misses) for m, s in stats])
    yield _counter("guard_prefix_hit_tokens", "Tokens not computed", ["model"], [(m, s.hit_tokens) for m, s in stats])
    yield _gauge("guard_prefix_bytes", "Memory of kept beginnings", ["model"], [(m, s.bytes) for m, s in stats])


def _caches(models: Sequence[Entry]) -> Iterator[Metric]:
    caches = [([entry.name], entry.model.cache) for entry in models if isinstance(entry.model, Classifier)]
    label = ["model"]
    yield _counter("guard_verdict_cache_hits", "Verdicts known already", label, [(m, c.hits) for m, c in caches])
    yield _counter("guard_verdict_cache_misses", "Verdicts not known", label, [(m, c.misses) for m, c in caches])
    yield _gauge("guard_verdict_cache_entries", "Verdicts kept", label, [(m, len(c)) for m, c in caches])
    yield _gauge("guard_verdict_cache_bytes", "Memory they take", label, [(m, c.memory_bytes) for m, c in caches])


_Values = Iterable[tuple[list[str], float]]


def _gauge(name: str, text: str, labels: list[str], values: _Values) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for named, value in values:
        family.add_metric(named, value)
    return family


def _counter(name: str, text: str, labels: list[str], values: _Values) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for named, value in values:
        family.add_metric(named, value)
    return family


def _histogram(name: str, text: str, values: Iterable[tuple[list[str], Distribution]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["model"])
    for named, found in values:
        bounds = [*map(str, found.bounds), "+Inf"]
        family.add_metric(named, list(zip(bounds, accumulate(found.counts), strict=True)), found.total)
    return family
