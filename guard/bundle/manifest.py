"""The manifest of a bundle (``manifest.json``): what the exported model is, and the hash of every file in it.

The published JSON schema is ``guard/bundle/manifest.schema.json``; this module is its Python reading. Nothing in a
manifest depends on the time or the machine, so exporting twice gives identical bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from guard.bundle.fields import read_object
from guard.bundle.guard_format import GuardFormat
from guard.errors import BundleError

FORMAT = "guardlet-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"

Task = Literal["guard", "instruct"]
#: ``gqa``: the direct exporter's graph (KV buffers updated in place). ``concat``: optimum's (KV grows by
#: concatenation).
Interface = Literal["gqa", "concat"]


@dataclass(frozen=True)
class ModelShape:
    """Sizes the runtime needs. KV bytes per token = 2 * layers * kv_heads * head_dim * 4 (float32)."""

    architecture: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of key and value float32 cache that one token occupies over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 4


#: Files larger than this are hashed in pieces too, so that a load can check them on all its processors at once.
PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class FileRecord:
    """Digest and size of one file of the bundle. ``pieces``: the SHA-256 of each PIECE_BYTES of it in turn, the last
    one shorter; None for a small file, or where its exporter was older.
    """

    sha256: str
    bytes: int
    pieces: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Source:
    """Where the weights came from. ``files`` maps each source file read to its SHA-256."""

    kind: str  # "huggingface" | "gguf"
    name: str
    revision: str | None
    files: Mapping[str, str]
    adapter: Mapping[str, str] | None  # adapter files to SHA-256, when one was merged


@dataclass(frozen=True)
class Quantization:
    """How each part is stored; ``name`` is the profile (``int8``, ``int4``, ``none``)."""

    name: str
    linears: str
    down_proj: str
    embedding: str
    head: str
    rotation: str


@dataclass(frozen=True)
class Graph:
    """The ONNX file and its calling convention. ``head_token_ids`` are the LM head's rows when it was pruned."""

    file: str
    interface: Interface
    head_token_ids: tuple[int, ...] | None


@dataclass(frozen=True)
class Tokens:
    """Token ids that matter. ``control`` maps the text of every control token to its id."""

    bos: int | None
    stop: tuple[int, ...]
    control: Mapping[str, int]


@dataclass(frozen=True)
class GenerationDefaults:
    """The checkpoint's own sampling defaults (its generation_config.json), used when a request does not say."""

    temperature: float
    top_p: float
    top_k: int  # 0 = off


@dataclass(frozen=True)
class Probe:
    """A known answer that is computed again before a model serves: a processor or a version of ONNX Runtime on which
    the graph gives something else is noticed. The float32 reference's ``logits`` of the head's ``rows`` after
    ``token_ids``; the graph may differ by ``tolerance``, twice what it did at its export and a little.
    """

    token_ids: tuple[int, ...]
    rows: tuple[int, ...]
    logits: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class Parity:
    """The exported graph against a float32 reference forward over ``positions`` token positions of fixed prompts."""

    reference: str
    positions: int
    max_abs_logit_difference: float
    mean_kl: float  # nats
    top1_agreement: float  # 0..1
    max_unsafe_score_difference: float | None  # guard only
    probe: Probe


@dataclass(frozen=True)
class Packed:
    """Weights that were also stored as ONNX Runtime packs them, by its version ``onnxruntime`` on a processor with
    ``instructions`` (``guard.engine.cpus``). Elsewhere it packs its own, in anonymous memory.

    ``bytes`` of packed weights, ``largest`` of the largest one; ``replaced``: bytes of the weights that are then only
    read at load.
    """

    onnxruntime: str
    instructions: tuple[str, ...]
    bytes: int
    largest: int
    replaced: int


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; ``files`` lists every file of the bundle except the manifest itself."""

    name: str
    task: Task
    tools: Mapping[str, str]
    source: Source
    shape: ModelShape
    quantization: Quantization
    graph: Graph
    tokens: Tokens
    chat_template: str | None
    generation: GenerationDefaults | None
    guard: GuardFormat | None
    parity: Parity | None
    files: Mapping[str, FileRecord]
    packed: Packed | None = None

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, two-space indent, a final newline."""
        value = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        _leave_out(value, "packed")  # what older versions do not know is only written where it says something
        for record in value["files"].values():
            _leave_out(record, "pieces")
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Strict reading; raises BundleError naming the field that is wrong."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST_FILE}: not JSON") from error
        if type(value) is not dict:
            raise BundleError("manifest: expected an object")
        if value.pop("format", None) != FORMAT:
            raise BundleError(f"manifest.format: not a {FORMAT}")
        if value.pop("format_version", None) != FORMAT_VERSION:
            raise BundleError(f"manifest.format_version: this version reads only {FORMAT_VERSION}")
        manifest = read_object(cls, value, "manifest")
        if (manifest.guard is not None) != (manifest.task == "guard"):
            raise BundleError("manifest.guard: a guard bundle has it, an instruct bundle has not")
        return manifest if manifest.guard is None else replace(manifest, guard=manifest.guard.in_order())


def _leave_out(value: dict[str, Any], name: str) -> None:
    if value[name] is None:
        del value[name]
