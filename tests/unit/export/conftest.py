from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from export.synthetic import TINY, make_checkpoint
from export.synthetic_adapter import make_adapter


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny instruct checkpoint; do not change it, ``tiny_copy`` is for that."""
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny", seed=1)


@pytest.fixture(scope="session")
def tiny_guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with Llama Guard's chat template; its answer tokens have other ids than Llama 3's."""
    return make_checkpoint(tmp_path_factory.mktemp("source") / "tiny-guard", seed=2, guard=True)


@pytest.fixture(scope="session")
def tiny_adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA weights and guard head rows for ``tiny``."""
    tokenizer = (tiny / "tokenizer.json").read_bytes()
    return make_adapter(tmp_path_factory.mktemp("source") / "tiny-adapter", TINY, tokenizer, seed=3)


@pytest.fixture
def tiny_copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny`` that a test may damage."""
    return copy_to(tiny, tmp_path)


@pytest.fixture
def adapter_copy(tiny_adapter: Path, tmp_path: Path) -> Path:
    """A copy of ``tiny_adapter`` that a test may damage."""
    return copy_to(tiny_adapter, tmp_path)


def copy_to(source: Path, parent: Path) -> Path:
    copy: Callable[[Path, Path], Path] = shutil.copytree
    return copy(source, parent / source.name)
