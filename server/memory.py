"""The memory plan of this server: made at start, enforced before anything is loaded (``guard.plan``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from guard.bundle import read_manifest
from guard.bundle.manifest import Manifest
from guard.engine.settings import EngineSettings
from guard.plan import Plan, plan_server
from server.settings import Settings

#: Moderation and generation each admit ``max_queued_bytes`` of requests.
_GATES = 2


class MemoryPlan:
    """``engine`` are the settings that every model's engine gets, its KV cache planned. Raises MemoryPlanError when
    the models of the settings do not fit into ``limit`` bytes, BundleError for a bundle without a readable manifest.
    """

    def __init__(self, settings: Settings, limit: int) -> None:
        self._settings = settings
        self.limit = limit
        configured = [path for path in (settings.guard, settings.screen, settings.instruct) if path is not None]
        manifests = [read_manifest(path) for path in configured]
        self.plan = self._plan(manifests, settings.engine, settings.kv_cache_bytes)
        self.plan.check(limit)
        kv_bytes = self.plan.models[0].kv if self.plan.models else settings.engine.kv_bytes
        self.engine = replace(settings.engine, kv_bytes=kv_bytes, prefill_chunk=self.plan.prefill_chunk)

    def check_with(self, loaded: Sequence[Manifest], directory: Path) -> None:
        """Raises MemoryPlanError when the bundle in ``directory`` does not fit beside what is ``loaded``."""
        # With the chunks of the models that run: theirs were chosen at start.
        plan = self._plan([*loaded, read_manifest(directory)], self.engine, self.engine.kv_bytes)
        plan.check(self.limit)

    def _plan(self, manifests: Sequence[Manifest], engine: EngineSettings, kv_bytes: int) -> Plan:
        waiting = _GATES * self._settings.max_queued_bytes
        return plan_server(manifests, engine, waiting, kv_bytes, self.limit)
