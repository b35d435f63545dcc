"""Failure test 19: LoadModel of a bundle that was tampered with, on a running server whose own bundle is a real one."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import onnx
import onnxruntime
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from export.sign import sign_bundle
from guard.bundle import BundleKey
from guard.bundle.signature import SIGNATURE_FILE
from guard.v1.model_pb2 import ListModelsRequest, LoadModelRequest
from guard.v1.moderation_pb2 import VERDICT_UNSAFE, Policy
from server.registry import load_model

from .running import Running, question, refused, running

GRAPH, DATA = "model.onnx", "model.onnx.data"


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    """Put a link to the very same content in its place."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def in_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest; the hashes in it are those of the files."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (bundle / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def point_outside(bundle: Path, location: str) -> None:
    """Let the graph read its weights from elsewhere, in a bundle whose hashes are all right."""
    shutil.copy(bundle / DATA, bundle.parent / "outside")
    graph = onnx.load(str(bundle / GRAPH), load_external_data=False)
    entries = [entry for tensor in graph.graph.initializer for entry in tensor.external_data]
    next(entry for entry in entries if entry.key == "location").value = location.format(bundle.parent)
    (bundle / GRAPH).write_bytes(graph.SerializeToString())
    in_manifest(bundle, lambda manifest: None)


def other_answer(manifest: dict[str, Any]) -> None:
    logits = manifest["parity"]["probe"]["logits"]
    manifest["parity"]["probe"]["logits"] = [value + 1.0 for value in logits]


#: What was done to the bundle, to what the refusal says. All but the last are met before ONNX Runtime sees the graph.
TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit in the graph": (lambda bundle: flip(bundle / GRAPH), f"{GRAPH}: SHA-256 differs"),
    "flipped bit in the weights": (lambda bundle: flip(bundle / DATA), f"{DATA}: SHA-256 differs"),
    "flipped bit in the tokenizer": (lambda bundle: flip(bundle / "tokenizer.json"), "tokenizer.json: SHA-256 differs"),
    "missing file": (lambda bundle: (bundle / DATA).unlink(), f"{DATA}: listed in the manifest but missing"),
    "extra file": (lambda bundle: (bundle / "x.so").touch(), "x.so: not listed in the manifest"),
    "link": (lambda bundle: link(bundle / DATA), f"{DATA}: not a regular file"),
    "link to a manifest": (lambda bundle: link(bundle / "manifest.json"), "manifest.json: not a regular file"),
    "file of another directory": (
        lambda bundle: in_manifest(bundle, lambda manifest: manifest["files"].update({f"../{DATA}": {}})),
        "manifest.files.../",
    ),
    "weights of another directory": (lambda bundle: point_outside(bundle, "../outside"), f"{GRAPH}: reads weights"),
    "weights by an absolute path": (lambda bundle: point_outside(bundle, "{}/outside"), f"{GRAPH}: reads weights"),
    "another known answer": (lambda bundle: in_manifest(bundle, other_answer), "the graph gives other answers here"),
}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The graphs that ONNX Runtime was told to open."""
    names: list[str] = []
    session = onnxruntime.InferenceSession

    def spy(path: str, *args: Any, **kwargs: Any) -> Any:
        names.append(path)
        return session(path, *args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    return names


async def still_serves(server: Running, score: float) -> None:
    """The model that was there answers as before, and is the only one; and something unsafe is blocked."""
    answer = await server.moderation.Classify(question("How do I bake bread?", policy=Policy(threshold=1e-9)))
    assert answer.verdict == VERDICT_UNSAFE
    assert answer.unsafe_score == pytest.approx(score, abs=1e-6)
    listed = await server.models.ListModels(ListModelsRequest())
    assert [model.is_default for model in listed.models] == [True]
    assert await server.serving()


async def test_tampered_bundles_are_refused_and_the_old_one_goes_on(
    bundles: Path, tmp_path: Path, opened: list[str], subtests: pytest.Subtests
) -> None:
    served = tmp_path / "served"
    async with running(
        load_model, guard=bundles / "guard", instruct=None, threads=1, admin=True, model_directory=served
    ) as server:
        name = server.app.registry.guard()[0].name
        score = (await server.moderation.Classify(question("How do I bake bread?"))).unsafe_score
        for what, (tamper, message) in TAMPERED.items():
            with subtests.test(what):
                shutil.rmtree(served, ignore_errors=True)
                shutil.copytree(bundles / "guard", served / "next")
                tamper(served / "next")
                opened.clear()
                answer = await refused(server.models.LoadModel(LoadModelRequest(bundle="next", replace=name)))
                assert (answer.code, answer.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID")
                assert message in answer.message
                assert str(tmp_path) not in answer.everything
                assert bool(opened) == (what == "another known answer")
                await still_serves(server, score)
        shutil.rmtree(served)
        shutil.copytree(bundles / "guard", served / "next")
        await server.models.LoadModel(LoadModelRequest(bundle="next", replace=name))  # as it was, it is taken
        await still_serves(server, score)


def sign(bundle: Path, key: Path) -> BundleKey:
    """With a new key, whose private half is left in ``key``."""
    private = ec.generate_private_key(ec.SECP256R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return sign_bundle(bundle, key)


async def test_badly_signed_bundles_are_refused_and_the_old_one_goes_on(
    bundles: Path, tmp_path: Path, opened: list[str], subtests: pytest.Subtests
) -> None:
    served = tmp_path / "served"
    shutil.copytree(bundles / "guard", tmp_path / "guard")
    loader = partial(load_model, key=sign(tmp_path / "guard", tmp_path / "key"))
    badly: dict[str, tuple[Callable[[Path], object], str]] = {
        "none": (lambda bundle: (bundle / SIGNATURE_FILE).unlink(), f"{SIGNATURE_FILE}: missing"),
        "another key's": (lambda bundle: sign(bundle, tmp_path / "other"), f"{SIGNATURE_FILE}: not made with"),
        "another manifest's": (
            lambda bundle: in_manifest(bundle, lambda manifest: manifest.update(name="x")),
            "manifest.json: not the file that was signed",
        ),
        "not of this file": (lambda bundle: flip(bundle / GRAPH), f"{GRAPH}: SHA-256 differs"),
    }
    async with running(
        loader, guard=tmp_path / "guard", instruct=None, threads=1, admin=True, model_directory=served
    ) as server:
        name = server.app.registry.guard()[0].name
        score = (await server.moderation.Classify(question("How do I bake bread?"))).unsafe_score
        for what, (tamper, message) in badly.items():
            with subtests.test(what):
                shutil.rmtree(served, ignore_errors=True)
                shutil.copytree(tmp_path / "guard", served / "next")
                tamper(served / "next")
                opened.clear()
                answer = await refused(server.models.LoadModel(LoadModelRequest(bundle="next", replace=name)))
                assert (answer.code, answer.info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "BUNDLE_INVALID")
                assert message in answer.message
                assert not opened
                await still_serves(server, score)
