"""Fixtures of the contract tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
