"""The export pipeline: checkpoint -> graph -> template check -> parity -> package -> open."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from export.checkpoint import open_checkpoint
from export.checkpoint.model import Checkpoint
from export.graph.builder import build_graph
from export.graph.writer import MODEL_FILE
from export.package import finish_manifest, publish, staging
from export.packing import pack_weights
from export.parity import check_parity, measure_parity
from export.quantize.calibration import Calibration
from export.quantize.profile import profile
from export.quantize.prompts import calibration_prompts
from export.sign import check_signing_key, sign_bundle
from export.template_check import check_template
from guard.bundle import Bundle, open_bundle
from guard.bundle.guard_format import GuardFormat
from guard.bundle.manifest import Graph, Manifest, Quantization, Task
from guard.bundle.open import TOKENIZER_FILE
from guard.errors import InvalidInputError, UnsupportedError
from guard.prompt import LLAMA_GUARD_3_1B
from guard.tokenizer import Tokenizer

CHAT_TEMPLATE_FILE = "chat_template.jinja"
#: Names of models on a server.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

#: Called with the running step's description and its finished fraction, 0..1.
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how. ``source`` is a checkpoint directory, a GGUF file or a hub id.

    ``revision`` is for the hub. ``max_kl`` (nats) overrides the profile's parity bound; ``parity`` False skips the
    measurement (the manifest then says so). ``calibrate`` False rounds to 4 bits without running texts first, which for
    a 1B model saves some minutes and costs accuracy. ``threads`` is for the parity run, 0 = the container's CPU quota.
    ``name`` defaults to source and quantization. ``packed`` also stores the weights as this machine packs them.
    ``sign`` is the PEM file of the private key to sign with.
    """

    source: str
    out: Path
    task: Task
    quantization: str = "int8"
    revision: str | None = None
    adapter: Path | None = None
    exporter: Literal["direct", "optimum"] = "direct"
    name: str | None = None
    overwrite: bool = False
    parity: bool = True
    calibrate: bool = True
    max_kl: float | None = None
    threads: int = 0
    packed: bool = False
    sign: Path | None = None


def export_model(request: ExportRequest, progress: Progress = lambda step, fraction: None) -> Manifest:
    """Export ``request.source`` to a bundle at ``request.out`` and return its manifest, the bundle verified.

    Raises InvalidInputError, UnsupportedError, CheckpointError, ParityError or BundleError; the destination is then as
    it was before.
    """
    check_request(request)
    progress("reading the checkpoint", 0.0)
    checkpoint = open_checkpoint(request.source, revision=request.revision, adapter=request.adapter)
    progress("reading the checkpoint", 1.0)
    return export_checkpoint(checkpoint, request, progress)


def export_checkpoint(
    checkpoint: Checkpoint, request: ExportRequest, progress: Progress = lambda step, fraction: None
) -> Manifest:
    """As ``export_model``, for a checkpoint that is already open."""
    check_request(request)
    guard = _guard_format(checkpoint, request.task)
    with staging(request.out, request.overwrite) as directory:
        (directory / TOKENIZER_FILE).write_bytes(checkpoint.tokenizer_json)
        if checkpoint.chat_template is not None:
            (directory / CHAT_TEMPLATE_FILE).write_text(checkpoint.chat_template, encoding="utf-8", newline="")
        progress("checking the prompts against the chat template", 0.0)
        checked = check_template(checkpoint, request.task, guard, directory / TOKENIZER_FILE)
        progress(f"prompts: {checked}", 1.0)
        quantization, graph = _build(checkpoint, request, guard, directory, progress)
        manifest = _manifest(checkpoint, request, guard, quantization, graph)
        if request.parity:
            progress("comparing with the float32 reference", 0.0)
            parity = measure_parity(checkpoint, Bundle(directory, manifest, digest=""), request.threads)
            check_parity(parity, request.quantization, request.max_kl)
            manifest = replace(manifest, parity=parity)
            progress("comparing with the float32 reference", 1.0)
        if request.packed:
            progress("packing the weights for this machine", 0.0)
            manifest = replace(manifest, packed=pack_weights(directory / MODEL_FILE))
            progress("packing the weights for this machine", 1.0)
        progress("hashing and flushing the files", 0.0)
        finish_manifest(directory, manifest)
        key = None if request.sign is None else sign_bundle(directory, request.sign)
        publish(directory, request.out, request.overwrite)
    bundle = open_bundle(request.out, key)
    progress("hashing and flushing the files", 1.0)
    return bundle.manifest


def check_request(request: ExportRequest) -> None:
    """Everything that can be refused before any work. Raises InvalidInputError or UnsupportedError."""
    profile(request.quantization)
    if request.exporter not in ("direct", "optimum"):
        raise InvalidInputError("exporter", "expected direct or optimum")
    if request.task not in ("guard", "instruct"):
        raise InvalidInputError("task", "expected guard or instruct")
    if request.exporter == "optimum" and request.quantization != "none":
        raise UnsupportedError(f"exporter optimum: quantization {request.quantization!r}; it exports 'none' only")
    if request.name is not None and not NAME.fullmatch(request.name):
        raise InvalidInputError("name", "expected up to 128 letters, digits, '.', '_' or '-', a letter or digit first")
    if request.max_kl is not None and not request.max_kl >= 0:
        raise InvalidInputError("max_kl", "expected a number of at least 0")
    if request.sign is not None:
        check_signing_key(request.sign)


def _guard_format(checkpoint: Checkpoint, task: Task) -> GuardFormat | None:
    if task == "instruct":
        if checkpoint.guard_format is not None:
            raise InvalidInputError("task", "the adapter makes a guard of this checkpoint; export it as guard")
        return None
    return checkpoint.guard_format or LLAMA_GUARD_3_1B


def _build(
    checkpoint: Checkpoint, request: ExportRequest, guard: GuardFormat | None, directory: Path, progress: Progress
) -> tuple[Quantization, Graph]:
    step = f"building the graph ({request.quantization})"
    progress(step, 0.0)
    if request.exporter == "optimum":
        from export.optimum_exporter import export_graph  # imports torch

        export_graph(checkpoint, directory)
        progress(step, 1.0)
        return profile("none").quantization(head_pruned=False, rotation="none"), Graph(MODEL_FILE, "concat", None)
    chosen = profile(request.quantization)
    rows = None if guard is None else guard.answer.head_token_ids()
    calibration = None
    if request.calibrate and chosen.calibrated:
        tokenizer = Tokenizer(directory / TOKENIZER_FILE, checkpoint.tokens.control)
        prompts = calibration_prompts(checkpoint, guard, tokenizer)
        calibration = Calibration(checkpoint.spec, checkpoint.tensors, prompts)
    rotation = build_graph(
        checkpoint.spec,
        checkpoint.tensors,
        chosen,
        directory,
        rows,
        lambda fraction: progress(step, fraction),
        calibration,
    )
    return chosen.quantization(rows is not None, rotation), Graph(MODEL_FILE, "gqa", rows)


def _manifest(
    checkpoint: Checkpoint, request: ExportRequest, guard: GuardFormat | None, quantization: Quantization, graph: Graph
) -> Manifest:
    return Manifest(
        name=request.name or f"{plain_name(checkpoint.source.name)}-{request.quantization}"[-128:].lstrip("-._"),
        task=request.task,
        tools=exporter_versions(request.exporter),
        source=checkpoint.source,
        shape=checkpoint.spec.shape(),
        quantization=quantization,
        graph=graph,
        tokens=checkpoint.tokens,
        chat_template=None if checkpoint.chat_template is None else CHAT_TEMPLATE_FILE,
        generation=checkpoint.generation,
        guard=guard,
        parity=None,
        files={},
    )


def exporter_versions(exporter: str) -> dict[str, str]:
    """The packages that have a hand in a bundle, as its manifest lists them."""
    packages = ["guardlet", "numpy", "onnx", "onnxruntime"]
    if exporter == "optimum":
        packages += ["optimum", "optimum-onnx", "torch", "transformers"]
    return {package: version(package) for package in packages}


def plain_name(source: str) -> str:
    """The last part of a source's name, in the characters that names of models may have."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", source.rsplit("/", 1)[-1].removesuffix(".gguf")).strip("-._")
    return stem or "model"
