"""How much memory a server needs, by arithmetic: ``guard plan`` prints it, a server enforces it at start.

The constants were measured on Linux x86-64 with ONNX Runtime 1.31 (docs/decisions/0110-memory-plan.md); what a model
needs follows from its manifest. Memory of files that is only looked up (embedding tables, libraries) can be dropped and
read again by the system, so it is told apart and not part of what must fit. Weights that were packed for this machine
are mapped from their file and can be dropped as well, but every request reads all of them: a server that has no room
for them stays alive and reads them from the disk again and again. They are part of what must fit, and told apart; only
what a busy server has and an idle one has not (waiting requests, kept prefixes, KV caches) may push them out meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from guard.bundle.manifest import Manifest, Packed, Task
from guard.bundle.open import TOKENIZER_FILE
from guard.engine.cpus import instruction_sets
from guard.engine.settings import EngineSettings
from guard.errors import MemoryPlanError

MIB = 1 << 20
#: Interpreter, libraries, threads and heap of a process that serves.
PROCESS_BYTES = 96 * MIB
#: A loaded tokenizer: so many bytes, and so many for each byte of its tokenizer.json.
_TOKENIZER_BYTES, _TOKENIZER_FACTOR = 18 * MIB, 6.5
#: Float32 values of a token that live at once while a chunk is computed, in multiples of hidden + intermediate size.
_LIVE_VALUES = 6
#: Room for what ONNX Runtime and malloc keep of a step, whatever its size.
_STEP_BYTES = 56 * MIB
#: What packing adds to weights in blocks; those in rows are packed into no more than their own size.
_BLOCKS_FACTOR = 1.05
#: The least KV cache that is of any use: one window of a guard with its prompt and answer, or a short answer.
MIN_KV_TOKENS = 1536
#: Where memory is short a prompt is computed in smaller chunks: the engine's, half, and a quarter of it.
_CHUNKS = (1, 2, 4)
#: The share of the limit that is planned for where the plan chooses: the system wants some for files and sockets.
_USABLE = 0.95
#: What a KV cache is given where nothing else is said, at most.
MAX_AUTOMATIC_KV_BYTES = EngineSettings.kv_bytes
_EMBEDDING_BYTES: Mapping[str, int] = {"float32": 4, "float16": 2, "int8_blocks": 1}


@dataclass(frozen=True)
class ModelPlan:
    """Bytes that one model needs. ``file_backed`` are those of ``weights`` that are pages of a file: shared between
    processes, and never a reason to be killed. ``mapped`` are only looked up, and not in ``total``.
    """

    name: str
    task: Task
    quantization: str
    weights: int
    tokenizer: int
    workspace: int
    prefixes: int
    kv: int
    kv_per_token: int
    mapped: int
    file_backed: int

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.tokenizer + self.workspace + self.prefixes

    @property
    def total(self) -> int:
        """All that must fit."""
        return self.fixed + self.kv

    @property
    def kv_tokens(self) -> int:
        """Tokens that may be in flight at once, over all requests."""
        return self.kv // self.kv_per_token


@dataclass(frozen=True)
class Plan:
    """Bytes of a whole server: the process itself, the requests that wait, and each model, which computes at most
    ``prefill_chunk`` tokens of a prompt at once.
    """

    process: int
    requests: int
    models: tuple[ModelPlan, ...]
    prefill_chunk: int

    @property
    def total(self) -> int:
        """All that a busy server has in memory."""
        return self.process + self.requests + sum(model.total for model in self.models)

    @property
    def needed(self) -> int:
        """What must fit: ``total``, but for mapped weights that a busy server may push out for a while."""
        while_busy = self.requests + sum(model.prefixes + model.kv for model in self.models)
        return self.total - min(self.file_backed, while_busy)

    @property
    def file_backed(self) -> int:
        """Of ``total``, what should stay in the page cache; the rest is anonymous memory."""
        return sum(model.file_backed for model in self.models)

    @property
    def mapped(self) -> int:
        """What the system may take back, and reads again when it is needed."""
        return sum(model.mapped for model in self.models)

    def check(self, limit: int) -> None:
        """Raises MemoryPlanError, with the arithmetic, when ``limit`` bytes do not hold the plan."""
        if self.needed > limit:
            raise MemoryPlanError(f"{_mib(self.needed)} are needed and {_mib(limit)} are there: {self.arithmetic()}")

    def arithmetic(self) -> str:
        """The sum of ``total`` in one line."""
        parts = [f"process {_mib(self.process)}", f"waiting requests {_mib(self.requests)}"]
        for model in self.models:
            parts.append(
                f"{model.name} {_mib(model.total)} (weights {_mib(model.weights)}"
                f"{' in the page cache' if model.file_backed else ''}, tokenizer {_mib(model.tokenizer)},"
                f" working memory {_mib(model.workspace)}, kept prefixes {_mib(model.prefixes)}, KV cache"
                f" {_mib(model.kv)} for {model.kv_tokens} tokens)"
            )
        return " + ".join(parts)


def plan_server(
    manifests: Sequence[Manifest], settings: EngineSettings, request_bytes: int, kv_bytes: int, limit: int
) -> Plan:
    """The plan of a server with these models, each with an engine of ``settings`` (but for its KV cache).

    ``request_bytes`` may wait for admission. ``kv_bytes`` is each model's KV cache; 0 takes what ``limit`` leaves, in
    equal parts, up to MAX_AUTOMATIC_KV_BYTES and no less than MIN_KV_TOKENS tokens of any model. Prompts are computed
    in the engine's chunks where they fit, else in smaller ones.
    """
    for parts in _CHUNKS:
        engine = replace(settings, prefill_chunk=settings.prefill_chunk // parts)
        plan = _with_chunks(manifests, engine, request_bytes, kv_bytes, limit)
        if plan.needed <= limit:
            break
    return plan


def _with_chunks(
    manifests: Sequence[Manifest], settings: EngineSettings, request_bytes: int, kv_bytes: int, limit: int
) -> Plan:
    models = tuple(_without_kv(manifest, settings) for manifest in manifests)
    fixed = Plan(PROCESS_BYTES, request_bytes, models, settings.prefill_chunk)
    if not kv_bytes:
        left = (int(_USABLE * limit) - fixed.total) // max(1, len(models))
        least = max((MIN_KV_TOKENS * model.kv_per_token for model in models), default=0)
        kv_bytes = max(min(left, MAX_AUTOMATIC_KV_BYTES), least)
    return replace(fixed, models=tuple(replace(model, kv=kv_bytes) for model in models))


def _without_kv(manifest: Manifest, settings: EngineSettings) -> ModelPlan:
    shape = manifest.shape
    graph = sum(record.bytes for name, record in manifest.files.items() if name.startswith(manifest.graph.file))
    table = shape.vocab_size * shape.hidden_size * _EMBEDDING_BYTES.get(manifest.quantization.embedding, 0)
    values = settings.prefill_chunk * (shape.hidden_size + shape.intermediate_size)
    packed = manifest.packed
    mapped_here = packed is not None and _fits_here(packed)
    if packed is not None and mapped_here:
        weights = graph - table - packed.replaced
    else:
        stored = graph - table - (0 if packed is None else packed.bytes)
        weights = int(stored * (_BLOCKS_FACTOR if "blocks" in manifest.quantization.linears else 1))
    # A load packs each weight again to compare it with its copy, one at a time, and before there is any request.
    workspace = max(_STEP_BYTES + _LIVE_VALUES * values * 4, packed.largest if packed is not None else 0)
    return ModelPlan(
        name=manifest.name,
        task=manifest.task,
        quantization=manifest.quantization.name,
        weights=weights,
        tokenizer=_TOKENIZER_BYTES + int(_TOKENIZER_FACTOR * manifest.files[TOKENIZER_FILE].bytes),
        workspace=workspace,
        prefixes=settings.prefix_bytes,
        kv=0,
        kv_per_token=shape.kv_bytes_per_token,
        mapped=table,
        file_backed=weights if mapped_here else 0,
    )


def _fits_here(packed: Packed) -> bool:
    import onnxruntime  # slow to load, and of no use to plans of other bundles

    return (packed.onnxruntime, packed.instructions) == (onnxruntime.__version__, instruction_sets())


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
