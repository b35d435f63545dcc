from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoint import open as opening
from export.checkpoint import open_checkpoint
from export.checkpoint.huggingface import open_directory
from guard.errors import CheckpointError, InvalidInputError

from .gguf_files import llama_content


@pytest.fixture(scope="module")
def gguf_file(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = open_directory(tiny)
    plain = replace(checkpoint, spec=replace(checkpoint.spec, rope_scaling=None))
    return llama_content(plain).write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_directory_with_and_without_an_adapter(tiny: Path, tiny_adapter: Path) -> None:
    plain = open_checkpoint(str(tiny))
    assert plain.source.kind == "huggingface"
    assert plain.source.adapter is None
    adapted = open_checkpoint(str(tiny), adapter=tiny_adapter)
    assert adapted.guard_format is not None
    assert adapted.source.adapter is not None


def test_a_gguf_file_or_the_directory_of_one(gguf_file: Path, tmp_path: Path) -> None:
    assert open_checkpoint(str(gguf_file)).source.kind == "gguf"
    assert open_checkpoint(str(gguf_file.parent)).source.name == "tiny.gguf"
    shutil.copy(gguf_file, tmp_path / "a.gguf")
    shutil.copy(gguf_file, tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        open_checkpoint(str(tmp_path))


def test_an_adapter_goes_over_a_gguf_file(gguf_file: Path, tiny_adapter: Path) -> None:
    adapted = open_checkpoint(str(gguf_file), adapter=tiny_adapter)
    assert not adapted.spec.tied_embeddings


def test_a_hub_id_is_downloaded(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repo_id: str, revision: str | None) -> tuple[Path, str]:
        asked.append((repo_id, revision))
        return tiny, "c0ffee"

    monkeypatch.setattr(opening, "download", download)
    source = open_checkpoint("org/some-model_1.0", revision="v1").source
    assert asked == [("org/some-model_1.0", "v1")]
    assert (source.kind, source.name, source.revision) == ("huggingface", "org/some-model_1.0", "c0ffee")


def test_a_local_path_has_no_revision(tiny: Path) -> None:
    with pytest.raises(InvalidInputError, match="revision"):
        open_checkpoint(str(tiny), revision="main")


@pytest.mark.parametrize("source", ["/no/such/path", "a/b/c", "name", "../up/down", "-x/y", "org/na me"])
def test_what_is_nothing_says_what_was_looked_for(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json.*GGUF.*hub id"):
        open_checkpoint(source)


@pytest.mark.parametrize("source", ["", "."])
def test_an_empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name}: no config\.json and no GGUF file"):
        open_checkpoint(source)


def test_another_file_is_not_a_gguf_file(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(str(tiny / "model.safetensors"))
