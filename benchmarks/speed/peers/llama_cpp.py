"""llama.cpp through llama-cpp-python's bindings, as its own server drives it: the KV cache keeps what prompts share,
and only the last token's logits are computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.speed.engine import Classify, Decode, Engine, Prefill

_CONTEXT = 2560
_STREAMS = 8
_BATCH = 512
_QUIET = llama_cpp.llama_log_callback(lambda level, text, data: None)


def load(task: str, weights: str, threads: int) -> Engine:
    """A GGUF file; the task makes no difference."""
    return LlamaCpp(weights, threads)


class LlamaCpp:
    """One model; sequence 0 is the prompts', all of them are decode's."""

    def __init__(self, weights: str, threads: int) -> None:
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_QUIET, None)
        self._model = llama_cpp.llama_load_model_from_file(weights.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise ValueError("llama.cpp cannot load the file")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = _CONTEXT, _CONTEXT, _BATCH
        params.n_seq_max, params.kv_unified = _STREAMS, True
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_new_context_with_model(self._model, params)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_n_vocab(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_CONTEXT, 0, 1)
        self._kept: tuple[int, ...] = ()

    def classify(self, work: Classify) -> float:
        prefix = tuple(work.prefix)
        if not work.warm:
            self._clear()
            began = time.perf_counter()
            self._append([*prefix, *work.rest], 0)
        else:
            if self._kept != prefix:
                self._clear()
                self._append(prefix, 0)
                self._kept = prefix
            llama_cpp.llama_memory_seq_rm(self._memory, 0, len(prefix), -1)
            began = time.perf_counter()
            self._append(work.rest, len(prefix))
        position = len(prefix) + len(work.rest)
        for step in range(work.answer - 1 if work.generated else 0):
            self._append([int(self._logits(0).argmax())], position + step)
        self._logits(0).argmax()
        return time.perf_counter() - began

    def prefill(self, work: Prefill) -> float:
        self._clear()
        began = time.perf_counter()
        self._append(work.token_ids, 0)
        self._logits(0).argmax()
        return time.perf_counter() - began

    def decode(self, work: Decode) -> float:
        self._clear()
        self._append(work.prompt, 0)
        first = int(self._logits(0).argmax())
        for stream in range(1, work.streams):
            llama_cpp.llama_memory_seq_cp(self._memory, 0, stream, -1, -1)
        tokens = [first] * work.streams
        began = time.perf_counter()
        for step in range(work.steps):
            rows = [(token, len(work.prompt) + step, stream, True) for stream, token in enumerate(tokens)]
            self._run(rows)
            tokens = [int(self._logits(index).argmax()) for index in range(work.streams)]
        return time.perf_counter() - began

    def _clear(self) -> None:
        llama_cpp.llama_memory_clear(self._memory, True)
        self._kept = ()

    def _append(self, token_ids: Sequence[int], position: int) -> None:
        last = len(token_ids) - 1
        self._run([(token, position + index, 0, index == last) for index, token in enumerate(token_ids)])

    def _run(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        self._wanted = []
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
            if wanted:
                self._wanted.append(index)
        if llama_cpp.llama_decode(self._context, batch):
            raise ValueError("llama_decode failed")

    def _logits(self, number: int) -> npt.NDArray[np.float32]:
        row = llama_cpp.llama_get_logits_ith(self._context, self._wanted[number])
        return np.ctypeslib.as_array(row, shape=(self._vocabulary,))
