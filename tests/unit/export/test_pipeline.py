from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from export.checkpoint import open_checkpoint
from export.pipeline import ExportRequest, export_checkpoint, export_model
from export.quantize.profile import PROFILES
from guard.bundle import open_bundle
from guard.errors import GuardError, InvalidInputError, ParityError, UnsupportedError


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("quantization", PROFILES)
def test_exporting_twice_gives_identical_bytes(tiny: Path, tmp_path: Path, quantization: str) -> None:
    for out in ("first", "second"):
        export_model(ExportRequest(str(tiny), tmp_path / out, "instruct", quantization))
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_an_instruct_bundle(tiny: Path, tmp_path: Path) -> None:
    manifest = export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct"))
    assert open_bundle(tmp_path / "out").manifest == manifest
    assert (manifest.name, manifest.task, manifest.quantization.name) == ("tiny-int8", "instruct", "int8")
    assert manifest.graph.interface == "gqa" and manifest.graph.head_token_ids is None and manifest.guard is None
    assert manifest.chat_template == "chat_template.jinja"
    assert set(manifest.files) == {"model.onnx", "model.onnx.data", "tokenizer.json", "chat_template.jinja"}
    assert manifest.parity is not None and manifest.parity.max_unsafe_score_difference is None


def test_a_guard_bundle_through_an_adapter(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    request = ExportRequest(str(tiny), tmp_path / "out", "guard", "int8", adapter=tiny_adapter, name="small-guard")
    manifest = export_model(request)
    assert manifest.guard is not None and manifest.name == "small-guard"
    assert manifest.graph.head_token_ids == manifest.guard.answer.head_token_ids()
    assert manifest.quantization.head == "float32"
    assert manifest.source.adapter
    assert manifest.parity is not None and manifest.parity.max_unsafe_score_difference is not None


def test_llama_guards_own_format_needs_its_own_tokens(tiny_guard: Path, tmp_path: Path) -> None:
    """A tiny tokenizer has other ids than Llama 3's: the export must notice, whatever the shapes say."""
    with pytest.raises(ParityError, match="answer 'safe': token ids differ"):
        export_model(ExportRequest(str(tiny_guard), tmp_path / "out", "guard"))
    assert list(tmp_path.iterdir()) == []


def test_an_instruct_template_is_not_a_guards(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        export_model(ExportRequest(str(tiny), tmp_path / "out", "guard"))
    assert list(tmp_path.iterdir()) == []


def test_a_parity_bound_that_is_passed_leaves_no_bundle(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="the bound is 1e-09"):
        export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", "int4", max_kl=1e-9))
    assert list(tmp_path.iterdir()) == []


def test_without_parity_the_manifest_says_so(tiny: Path, tmp_path: Path) -> None:
    assert export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", parity=False)).parity is None


def test_progress_names_each_step_and_finishes_it(tiny: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct"), lambda *step: seen.append(step))
    steps = list(dict.fromkeys(step for step, _ in seen))
    assert any("conversations equal" in step for step in steps)
    for word in ("checkpoint", "building", "reference", "hashing"):
        fractions = [fraction for step, fraction in seen if word in step and "prompts" not in step]
        assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"quantization": "int2"}, "quantization 'int2'"),
        ({"exporter": "magic"}, "exporter"),
        ({"task": "poetry"}, "task"),
        ({"name": "../up"}, "name"),
        ({"max_kl": float("nan")}, "max_kl"),
        ({"exporter": "optimum"}, "optimum: quantization 'int8'"),
    ],
)
def test_bad_requests_are_refused_before_any_work(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    request = replace(ExportRequest("/nowhere", tmp_path / "out", "instruct"), **change)  # type: ignore[arg-type]
    with pytest.raises((InvalidInputError, UnsupportedError), match=problem):
        export_model(request, lambda step, fraction: pytest.fail("work began"))


def test_an_adapters_guard_is_not_exported_as_instruct(tiny: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="task"):
        export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", adapter=tiny_adapter))


def test_optimum_that_is_not_installed_is_named(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimum.exporters.onnx", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'guardlet\[reference\]'"):
        export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", "none", exporter="optimum"))
    assert list(tmp_path.iterdir()) == []


def test_direct_export_imports_no_framework(tiny: Path, tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from export.pipeline import *;"
        f"export_model(ExportRequest({str(tiny)!r}, Path({str(tmp_path / 'out')!r}), 'instruct', 'none'));"
        "print(sorted({'torch', 'transformers', 'optimum'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("source", ["org/Llama 3.gguf", "...", "-x-", "a" * 300])
def test_default_names_are_plain(tiny: Path, tmp_path: Path, source: str) -> None:
    checkpoint = open_checkpoint(str(tiny))
    checkpoint = replace(checkpoint, source=replace(checkpoint.source, name=source))
    request = ExportRequest(source, tmp_path / "out", "instruct", "none", parity=False)
    name = export_checkpoint(checkpoint, request).name
    assert name[0].isalnum() and len(name) <= 128 and name.endswith("-none") and "/" not in name and " " not in name


def test_errors_are_the_projects_own(tiny_copy: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    with pytest.raises(GuardError, match="hidden_act"):
        export_model(ExportRequest(str(tiny_copy), tmp_path / "out", "instruct"))
    assert not (tmp_path / "out").exists()
