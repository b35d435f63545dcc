"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from export.pipeline import ExportRequest, export_model
from export.synthetic import TINY, make_checkpoint
from export.synthetic_adapter import make_adapter

from .fakes import FakeModels
from .running import Running, running


@pytest.fixture
def models(tmp_path: Path) -> FakeModels:
    """Fast models with scripted answers."""
    return FakeModels(tmp_path)


@pytest.fixture
async def server(models: FakeModels) -> AsyncIterator[Running]:
    """A server with both scripted models and default settings."""
    async with running(models) as started:
        yield started


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the real bundles ``guard`` and ``instruct``: random tiny checkpoints, exported."""
    root = tmp_path_factory.mktemp("bundles")
    instruct = make_checkpoint(root / "instruct-checkpoint")
    guard = make_checkpoint(root / "guard-checkpoint", guard=True)
    adapter = make_adapter(root / "adapter", TINY, (guard / "tokenizer.json").read_bytes(), lora=False)
    export_model(ExportRequest(str(instruct), root / "instruct", "instruct", quantization="none"))
    export_model(ExportRequest(str(guard), root / "guard", "guard", quantization="none", adapter=adapter))
    return root
