from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from export import packing
from export.package import finish_manifest
from export.packing import pack_bundle
from export.pipeline import ExportRequest, export_model
from guard.bundle import open_bundle
from guard.cli import main
from guard.engine.cpus import instruction_sets
from guard.engine.kv_cache import KvCache
from guard.engine.runner import load_runner
from guard.errors import BundleError, UnsupportedError

TOKENS = list(range(1, 40))


@pytest.fixture(scope="module", params=["int8", "int4"])
def exported(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packing") / "bundle"
    export_model(ExportRequest(str(tiny), out, "instruct", request.param, max_kl=10.0))
    return out


@pytest.fixture(scope="module")
def packed(exported: Path) -> Path:
    pack_bundle(exported, exported.parent / "packed")
    return exported.parent / "packed"


def logits(bundle: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    runner = load_runner(open_bundle(bundle), 1)
    return runner.forward(KvCache(runner.shape, 64), TOKENS, [0, len(TOKENS) - 1])


def test_packed_weights_give_the_same_logits(exported: Path, packed: Path) -> None:
    np.testing.assert_array_equal(logits(packed), logits(exported))


def test_what_is_packed_is_told_and_nothing_else_is_left_behind(exported: Path, packed: Path) -> None:
    before, after = open_bundle(exported).manifest, open_bundle(packed, whole_files=True).manifest
    assert after.packed is not None
    assert after.packed.instructions == instruction_sets()
    assert 0 < after.packed.largest <= after.packed.bytes
    grown = after.files["model.onnx.data"].bytes - before.files["model.onnx.data"].bytes
    assert after.packed.bytes <= grown < after.packed.bytes + 4096 * 200
    assert replace(after, packed=None, files={}) == replace(before, files={})
    assert sorted(path.name for path in packed.iterdir()) == sorted(path.name for path in exported.iterdir())


def test_copies_of_another_packing_are_not_used(exported: Path, packed: Path, tmp_path: Path) -> None:
    """As on another processor: what this one packs has another hash than what the file was made of."""
    other = tmp_path / "other"
    shutil.copytree(packed, other)
    model = onnx.load(str(other / "model.onnx"), load_external_data=False)
    (other / "model.onnx.data").write_bytes(_without_packed(exported, packed))
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key.startswith("prepacked_"):
                operator, plus, rest = entry.value.partition("+")
                entry.value = f"{operator}{plus}1{rest}"
    (other / "model.onnx").write_bytes(model.SerializeToString())
    finish_manifest(_emptied_of_manifest(other), open_bundle(packed).manifest)
    np.testing.assert_array_equal(logits(other), logits(exported))


def test_the_copies_are_really_what_is_computed_with(exported: Path, packed: Path, tmp_path: Path) -> None:
    zeroed = tmp_path / "zeroed"
    shutil.copytree(packed, zeroed)
    (zeroed / "model.onnx.data").write_bytes(_without_packed(exported, packed))
    finish_manifest(_emptied_of_manifest(zeroed), open_bundle(packed).manifest)
    assert not np.array_equal(logits(zeroed), logits(exported))


def test_packing_twice_is_refused_and_so_is_a_graph_without_weights_to_pack(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BundleError, match="packed already"):
        pack_bundle(packed, tmp_path / "again")
    monkeypatch.setattr(packing, "_packed_entries", lambda tensor: [])
    with pytest.raises(UnsupportedError, match="no weights"):
        packing.pack_weights(packed / "model.onnx")


def test_the_command_and_the_option_of_export_do_the_same(
    tiny: Path, exported: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(exported), "--out", str(tmp_path / "one"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["manifest"]
    assert told["packed"]["bytes"] > 0
    form = told["quantization"]["name"]
    export_model(
        ExportRequest(str(tiny), tmp_path / "two", "instruct", form, max_kl=10.0, packed=True, name=told["name"])
    )
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "two" / name).read_bytes() == (packed / name).read_bytes()


def _without_packed(exported: Path, packed: Path) -> bytes:
    """The packed bundle's data file, zeros in the place of all that is packed."""
    originals = (exported / "model.onnx.data").read_bytes()
    return originals + bytes((packed / "model.onnx.data").stat().st_size - len(originals))


def _emptied_of_manifest(bundle: Path) -> Path:
    (bundle / "manifest.json").unlink()
    return bundle
