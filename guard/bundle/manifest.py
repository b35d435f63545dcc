"""The manifest of a bundle (``manifest.json``): what the exported model is, and the hash of every file in it.

The published JSON schema is ``guard/bundle/manifest.schema.json``; this module is its Python reading. Nothing in a
manifest depends on the time or the machine, so exporting twice gives identical bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from guard.bundle.fields import Fields
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


@dataclass(frozen=True)
class FileRecord:
    """Digest and size of one file of the bundle."""

    sha256: str
    bytes: int


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
class Parity:
    """The exported graph against a float32 reference forward over ``positions`` token positions of fixed prompts."""

    reference: str
    positions: int
    max_abs_logit_difference: float
    mean_kl: float  # nats
    top1_agreement: float  # 0..1
    max_unsafe_score_difference: float | None  # guard only


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

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, two-space indent, a final newline."""
        value = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Strict reading; raises BundleError naming the field that is wrong."""
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST_FILE}: not JSON") from error
        fields = Fields(value, "manifest")
        if fields.take(str, "format") != FORMAT:
            raise BundleError(f"manifest.format: not a {FORMAT}")
        if fields.take(int, "format_version") != FORMAT_VERSION:
            raise BundleError(f"manifest.format_version: this version reads only {FORMAT_VERSION}")
        task = _choice(fields.take(str, "task"), ("guard", "instruct"), "manifest.task")
        guard = fields.take_optional(dict, "guard")
        if (guard is not None) != (task == "guard"):
            raise BundleError("manifest.guard: a guard bundle has it, an instruct bundle has not")
        manifest = cls(
            name=fields.take(str, "name"),
            task=cast(Task, task),
            tools=fields.take_map(str, "tools"),
            source=_source(fields.take_object("source")),
            shape=_shape(fields.take_object("shape")),
            quantization=_quantization(fields.take_object("quantization")),
            graph=_graph(fields.take_object("graph")),
            tokens=_tokens(fields.take_object("tokens")),
            chat_template=fields.take_optional(str, "chat_template"),
            generation=_generation(fields.take_optional(dict, "generation")),
            guard=None if guard is None else GuardFormat.from_json(guard, "manifest.guard"),
            parity=_parity(fields.take_optional(dict, "parity")),
            files={name: _file(item, name) for name, item in fields.take_object("files").items()},
        )
        fields.finish()
        return manifest


def _choice(value: str, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise BundleError(f"{where}: expected one of {', '.join(allowed)}")
    return value


def _source(value: dict[str, Any]) -> Source:
    fields = Fields(value, "manifest.source")
    adapter = fields.take_optional(dict, "adapter")
    result = Source(
        kind=fields.take(str, "kind"),
        name=fields.take(str, "name"),
        revision=fields.take_optional(str, "revision"),
        files=fields.take_map(str, "files"),
        adapter=adapter,
    )
    fields.finish()
    return result


def _shape(value: dict[str, Any]) -> ModelShape:
    fields = Fields(value, "manifest.shape")
    result = ModelShape(
        architecture=fields.take(str, "architecture"),
        hidden_size=fields.take(int, "hidden_size"),
        intermediate_size=fields.take(int, "intermediate_size"),
        layers=fields.take(int, "layers"),
        heads=fields.take(int, "heads"),
        kv_heads=fields.take(int, "kv_heads"),
        head_dim=fields.take(int, "head_dim"),
        vocab_size=fields.take(int, "vocab_size"),
        max_positions=fields.take(int, "max_positions"),
    )
    fields.finish()
    return result


def _quantization(value: dict[str, Any]) -> Quantization:
    fields = Fields(value, "manifest.quantization")
    result = Quantization(
        name=fields.take(str, "name"),
        linears=fields.take(str, "linears"),
        down_proj=fields.take(str, "down_proj"),
        embedding=fields.take(str, "embedding"),
        head=fields.take(str, "head"),
        rotation=fields.take(str, "rotation"),
    )
    fields.finish()
    return result


def _graph(value: dict[str, Any]) -> Graph:
    fields = Fields(value, "manifest.graph")
    interface = _choice(fields.take(str, "interface"), ("gqa", "concat"), "manifest.graph.interface")
    rows = fields.take_optional(list, "head_token_ids")
    if rows is not None and not all(type(row) is int for row in rows):
        raise BundleError("manifest.graph.head_token_ids: expected integers")
    result = Graph(
        file=fields.take(str, "file"),
        interface=cast(Interface, interface),
        head_token_ids=None if rows is None else tuple(rows),
    )
    fields.finish()
    return result


def _tokens(value: dict[str, Any]) -> Tokens:
    fields = Fields(value, "manifest.tokens")
    result = Tokens(
        bos=fields.take_optional(int, "bos"),
        stop=fields.take_tuple(int, "stop"),
        control=fields.take_map(int, "control"),
    )
    fields.finish()
    return result


def _generation(value: dict[str, Any] | None) -> GenerationDefaults | None:
    if value is None:
        return None
    fields = Fields(value, "manifest.generation")
    result = GenerationDefaults(
        temperature=fields.take(float, "temperature"),
        top_p=fields.take(float, "top_p"),
        top_k=fields.take(int, "top_k"),
    )
    fields.finish()
    return result


def _parity(value: dict[str, Any] | None) -> Parity | None:
    if value is None:
        return None
    fields = Fields(value, "manifest.parity")
    result = Parity(
        reference=fields.take(str, "reference"),
        positions=fields.take(int, "positions"),
        max_abs_logit_difference=fields.take(float, "max_abs_logit_difference"),
        mean_kl=fields.take(float, "mean_kl"),
        top1_agreement=fields.take(float, "top1_agreement"),
        max_unsafe_score_difference=fields.take_optional(float, "max_unsafe_score_difference"),
    )
    fields.finish()
    return result


def _file(value: Any, name: str) -> FileRecord:
    fields = Fields(value, f"manifest.files.{name}")
    result = FileRecord(sha256=fields.take(str, "sha256"), bytes=fields.take(int, "bytes"))
    fields.finish()
    return result
