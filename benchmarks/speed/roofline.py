"""What the machine can do at most, with so many threads: reading memory, and 8-bit products as ONNX Runtime computes
them. Run as a program it prints one JSON object; OPENBLAS_NUM_THREADS=1 keeps numpy's own threads out of it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

#: (K, N) of the four products of a layer of the 1B shape, and how many layers there are.
SHAPES = {"qkv": (2048, 3072), "o": (2048, 2048), "gate and up": (2048, 16384), "down": (8192, 2048)}
LAYERS = 16
#: Rows: what is left of a guard prompt of 40 tokens behind its prefix, and a large prefill.
ROWS = (128, 512)
#: Embedding tables and the sines and cosines of positions.
_TAKES_ROWS = ("Gather", "GatherBlockQuantized", "GroupQueryAttention")
_REPEATS = 7
_BYTES = 1 << 30  # in all, well beyond any cache of the threads' own


@dataclass(frozen=True)
class Roofline:
    """GB/s read; billions of 8-bit multiply-adds a second over the products of a layer together, at each of ROWS, and
    with each product at its best of them (``int8_peak``).
    """

    threads: int
    read_gb_s: float
    int8_gmac_s: dict[int, float]
    int8_by_shape: dict[str, float]
    int8_peak: float


def measure(threads: int) -> Roofline:
    """Takes about 20 seconds."""
    seconds = {rows: {name: _gemm_seconds(rows, *shape, threads) for name, shape in SHAPES.items()} for rows in ROWS}
    macs = {name: k * n for name, (k, n) in SHAPES.items()}
    by_shape = {name: max(rows * macs[name] / seconds[rows][name] for rows in ROWS) / 1e9 for name in SHAPES}
    return Roofline(
        threads,
        _read_gb_s(threads),
        {rows: rows * sum(macs.values()) / sum(times.values()) / 1e9 for rows, times in seconds.items()},
        by_shape,
        sum(macs.values()) / sum(macs[name] / by_shape[name] for name in SHAPES),
    )


def macs_per_token() -> int:
    """Multiply-adds of one token through the layers' products; the head and attention are left out."""
    return LAYERS * sum(k * n for k, n in SHAPES.values())


def bytes_per_step(graph: Path) -> int:
    """Bytes of weights that one decode step reads: all of a graph's, but for tables that it takes single rows from."""
    model = onnx.load(graph, load_external_data=False).graph
    read_whole = {name for node in model.node for name in node.input if node.op_type not in _TAKES_ROWS}
    return sum(_size(tensor) for tensor in model.initializer if tensor.name in read_whole)


def _size(tensor: TensorProto) -> int:
    for entry in tensor.external_data:
        if entry.key == "length":
            return int(entry.value)
    return len(tensor.SerializeToString())


def gemm_model(k: int, n: int) -> bytes:
    """One MatMulIntegerToFloat of unsigned activations [rows, k] and constant signed weights [k, n]."""
    weights = np.random.default_rng(1).integers(-127, 127, (k, n), np.int8)
    constants = {
        "w": weights,
        "xs": np.float32(1),
        "ws": np.full(n, 0.01, np.float32),
        "xz": np.uint8(128),
    }
    node = helper.make_node("MatMulIntegerToFloat", ["x", *constants], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["rows", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", n])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def _gemm_seconds(rows: int, k: int, n: int, threads: int) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(gemm_model(k, n), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.random.default_rng(2).integers(0, 255, (rows, k), np.uint8))
    # Into memory that is there already: fresh pages for every result would cost as much as the product.
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(np.zeros((rows, n), np.float32)))
    return _best(lambda: session.run_with_iobinding(binding))


def _read_gb_s(threads: int) -> float:
    """Dot products over arrays that fit no cache: two streams for each thread, nothing written."""
    count = _BYTES // 8 // threads
    pairs = [(np.ones(count, np.float32), np.ones(count, np.float32)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(lambda pair: np.dot(*pair), pairs)))
    return _BYTES / seconds / 1e9


def _best(run: Callable[[], object]) -> float:
    """The median of the faster half: a limit is what the machine reaches when nothing disturbs it."""
    times = []
    for _ in range(_REPEATS + 2):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(sorted(times[2:])[: _REPEATS // 2 + 1])


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1])))))
