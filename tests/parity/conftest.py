"""SmolLM2-135M-Instruct for parity tests, exported once for all that want it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from export.pipeline import ExportRequest, export_model


def _gguf() -> Path | None:
    if path := os.environ.get("GUARDLET_SMOLLM2_GGUF"):
        return Path(path)
    return next(iter(sorted(Path(".cache").rglob("SmolLM2-135M-Instruct*.gguf"))), None)


@pytest.fixture(scope="session")
def gguf() -> Path:
    """Its checkpoint; tests are skipped where it is absent."""
    path = _gguf()
    if path is None or not path.exists():
        pytest.skip("SmolLM2's GGUF is absent: set GUARDLET_SMOLLM2_GGUF, or run `make demo`")
    return path


@pytest.fixture(scope="session")
def smollm2_bundle(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Its bundle with a quantization: none, int8 or int4."""
    root = tmp_path_factory.mktemp("smollm2")

    def bundle(quantization: str) -> Path:
        out = root / quantization
        if not out.exists():
            export_model(ExportRequest(str(gguf), out, "instruct", quantization))
        return out

    return bundle
