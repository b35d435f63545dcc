"""Runs the exported graph: tokens in, logits out, the KV cache advanced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from guard.bundle import Bundle
from guard.bundle.manifest import ModelShape
from guard.engine.cpus import available_cpus
from guard.engine.decode_batch import DecodeBatch
from guard.engine.kv_cache import KvCache
from guard.errors import BundleError

Float32 = npt.NDArray[np.float32]

#: docs/decisions/0161-waiting-awake.md
_SPIN_US = "50"


class Runner(Protocol):
    """One loaded graph. Not thread-safe: the engine's thread is the only caller."""

    shape: ModelShape
    #: Token id to row of the logits.
    rows: dict[int, int]

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        """Append ``token_ids`` to ``cache`` and return the logits float32 [len(wanted), rows] at the given indexes of
        them.
        """

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        """Append one token to each cache of ``batch``, in its order; returns logits float32 [caches, rows], the same as
        each cache would have given alone.
        """


def load_runner(bundle: Bundle, threads: int) -> Runner:
    """Load the verified bundle's graph; ``threads`` 0 means the container's CPU quota. Raises BundleError if ORT
    refuses it.
    """
    options = session_options(threads)
    try:
        session = ort.InferenceSession(str(bundle.graph_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises bare exceptions of its own for each kind of failure
        raise BundleError(f"{bundle.manifest.graph.file}: ONNX Runtime cannot load it") from error
    kind = GqaRunner if bundle.manifest.graph.interface == "gqa" else ConcatRunner
    return kind(session, bundle.manifest.shape, bundle.manifest.graph.head_token_ids)


def session_options(threads: int) -> ort.SessionOptions:
    """How every graph is loaded; ``threads`` as for ``load_runner``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # The arena and the memory pattern keep the peak of the longest request forever; without them memory goes back.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    # Between two nodes of the graph threads wait awake, for a moment: to wake them takes longer than most nodes do. A
    # long wait, or one between calls, burns the CPU quota that another container, or our own event loop, needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    return options


class GqaRunner:
    """The direct exporter's graph: GroupQueryAttention writes keys and values into the cache in place."""

    def __init__(self, session: ort.InferenceSession, shape: ModelShape, head: Sequence[int] | None) -> None:
        self.shape = shape
        self.rows = _head_rows(shape, head)
        self._session = session
        self._past = [
            (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
            for layer in range(shape.layers)
            for part in ("key", "value")
        ]

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        total = cache.length + len(token_ids)
        cache.grow_to(total)
        positions = np.array([wanted], np.int64)
        logits: Float32 = self._run(cache.arrays, np.array([token_ids], np.int64), [total], positions)[0]
        cache.length = total
        return logits

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        totals = [cache.length + 1 for cache in batch.caches]
        for cache, total in zip(batch.caches, totals, strict=True):
            cache.grow_to(total)
        tokens = np.array(token_ids, np.int64)[:, None]
        logits: Float32 = self._run(batch.arrays(), tokens, totals, np.zeros((len(totals), 1), np.int64))[:, 0]
        for cache, total in zip(batch.caches, totals, strict=True):
            cache.length = total
        return logits

    def _run(
        self,
        arrays: Sequence[Float32],
        token_ids: npt.NDArray[np.int64],
        totals: Sequence[int],
        wanted: npt.NDArray[np.int64],
    ) -> Float32:
        """One call of the graph: logits float32 [batch, wanted, rows]; ``totals`` are the lengths after it."""
        binding = self._session.io_binding()
        inputs = {
            "input_ids": token_ids,
            "seqlens_k": np.array(totals, np.int32) - 1,
            "total_sequence_length": np.array(max(totals), np.int32),
            "logit_positions": wanted,
        }
        for name, value in inputs.items():
            binding.bind_cpu_input(name, value)
        binding.bind_output("logits")  # first, so that it is the first of get_outputs()
        for (past, present), array in zip(self._past, arrays, strict=True):
            memory = ort.OrtValue.ortvalue_from_numpy(array)  # shares the array's memory
            binding.bind_ortvalue_input(past, memory)
            binding.bind_ortvalue_output(present, memory)
        self._session.run_with_iobinding(binding)
        logits: Float32 = binding.get_outputs()[0].numpy()
        return logits


class ConcatRunner:
    """optimum's graph: takes the past, returns it grown; logits at every position over the whole vocabulary."""

    def __init__(self, session: ort.InferenceSession, shape: ModelShape, head: Sequence[int] | None) -> None:
        self.shape = shape
        self.rows = _head_rows(shape, None)
        self._session = session
        self._inputs = {value.name for value in session.get_inputs()}
        self._past = [f"past_key_values.{layer}.{part}" for layer in range(shape.layers) for part in ("key", "value")]
        self._outputs = ["logits", *(name.replace("past_key_values", "present") for name in self._past)]
        if head is not None:
            raise BundleError("manifest.graph.head_token_ids: a concat graph has the whole vocabulary")

    def forward(self, cache: KvCache, token_ids: Sequence[int], wanted: Sequence[int]) -> Float32:
        start, total = cache.length, cache.length + len(token_ids)
        cache.grow_to(total)
        feed: dict[str, npt.NDArray[np.generic]] = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(start, total, dtype=np.int64)[None],
        }
        feed = {name: value for name, value in feed.items() if name in self._inputs}
        feed |= {name: array[:, :, :start] for name, array in zip(self._past, cache.arrays, strict=True)}
        logits, *present = self._session.run(self._outputs, feed)
        for array, grown in zip(cache.arrays, present, strict=True):
            array[:, :, start:total] = grown[:, :, start:]
        cache.length = total
        result: Float32 = logits[0, list(wanted)]
        return result

    def decode(self, batch: DecodeBatch, token_ids: Sequence[int]) -> Float32:
        # The graph copies the whole past at every step, so there is little to gain by stepping several together.
        steps = zip(batch.caches, token_ids, strict=True)
        return np.concatenate([self.forward(cache, [token], [0]) for cache, token in steps])


def _head_rows(shape: ModelShape, head: Sequence[int] | None) -> dict[int, int]:
    return {token: row for row, token in enumerate(range(shape.vocab_size) if head is None else head)}
