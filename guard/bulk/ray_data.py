"""Judging on a Ray cluster: Ray Data takes chunks of rows to actors with a guard each, and brings the answers in order.

Ray restarts an actor that was killed and gives its chunk to another. The file is read by one task and its results are
written by this process, as without Ray, so a run may begin here and end there.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import pyarrow
import ray
import ray.data
import ray.exceptions
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from guard.bulk.judge import LocalGuard
from guard.bulk.output import Identity
from guard.bulk.source import Chunk, Source
from guard.errors import GuardError, UnavailableError

#: Of a cluster that is started here, whose objects are chunks of rows: bytes.
_OBJECT_STORE = 256 << 20
#: What Ray's own processes say, to be set before it starts; a user's choice goes first. No statistics are sent to its
#: makers. At its normal level each run begins with an error about arguments of actors, which live as long as the run.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}


class RayActors:
    """A ``Backend`` of ``count`` actors. ``address`` of the cluster; None: one of this machine that ends with the run.

    On a cluster, each node needs this package, the bundle and the file under the same paths.
    """

    def __init__(self, guard: LocalGuard, count: int, address: str | None = None) -> None:
        self._guard = guard
        self._count = count
        self._address = address

    @property
    def identity(self) -> Identity:
        """Of the verdicts."""
        return self._guard.identity

    def judge(self, source: Source) -> Iterator[tuple[bytes, ...]]:
        """Raises UnavailableError when the cluster cannot go on, with what the guard or the source raised there."""
        with redirect_stdout(sys.stderr), self._connected():  # Ray prints there what happened to its processes
            due = 0
            try:
                for table in self._answers(source).iter_batches(
                    batch_size=None, batch_format="pyarrow", prefetch_batches=0
                ):
                    for index, lines in zip(*table.to_pydict().values(), strict=True):
                        if index != due:
                            raise GuardError("Ray's answers are not in order")
                        due += 1
                        yield tuple(lines)
            except ray.exceptions.RayError as error:
                raise UnavailableError(f"Ray stopped: {_reason(error)}") from None

    def _answers(self, source: Source) -> Any:
        """The dataset of answers, which is computed as it is read."""
        chunks = ray.data.read_datasource(_Chunks(source), override_num_blocks=1, num_cpus=0)
        chunks.context.execution_options.preserve_order = True
        chunks.context.target_max_block_size = 1  # bytes: what is yielded at once stays one block
        chunks.context.enable_progress_bars = False
        return chunks.map_batches(
            _Actor,
            fn_constructor_args=(self._guard,),
            compute=ray.data.ActorPoolStrategy(size=self._count),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self._guard.threads,
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        if ray.is_initialized():
            yield
            return
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            cpus = self._count * self._guard.threads
            options |= {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE, "include_dashboard": False}
        try:
            ray.init(self._address or "local", **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UnavailableError(f"no Ray cluster ({type(error).__name__})") from None
        for handler in logging.getLogger("ray.data").handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.ERROR)  # its plan and its times; they are in Ray's logs
        try:
            yield
        finally:
            ray.shutdown()


class _Chunks(Datasource):  # type: ignore[misc] # Ray is untyped here
    """Reads a source in one task, a block for each chunk."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown."""
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **options: Any) -> list[ReadTask]:
        """One: the order of rows in a file is known to who reads it from the start."""
        source = self._source
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None)
        return [ReadTask(lambda: map(_block, source.chunks()), metadata)]


class _Actor:
    """One guard."""

    def __init__(self, guard: LocalGuard) -> None:
        self._judge = guard.load()

    def __call__(self, blocks: Any) -> Any:
        """Columns ``index`` and ``lines`` for a table of chunks."""
        chunks: list[Chunk] = [pickle.loads(chunk) for chunk in blocks["chunk"].to_pylist()]
        lines = [list(self._judge.lines(chunk.items)) for chunk in chunks]
        return pyarrow.table({"index": [chunk.index for chunk in chunks], "lines": lines})


def _block(chunk: Chunk) -> Any:
    return pyarrow.table({"chunk": [pickle.dumps(chunk)]})


def _reason(error: BaseException) -> str:
    """What a guard or a source said; of others the type, for their text may hold a row's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, GuardError):
            return str(cause)
        cause = getattr(cause, "cause", None) or cause.__cause__
    return type(error).__name__
