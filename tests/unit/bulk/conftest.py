from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.evaluation.helpers import make_tiny_guard


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A guard with random weights; do not change it."""
    return make_tiny_guard(tmp_path_factory.mktemp("guard"))
