"""Judging in this process, or in several of this machine that share a mapped bundle's pages."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from guard.bulk.judge import LocalGuard
from guard.bulk.output import Identity
from guard.bulk.source import Chunk, Source
from guard.errors import BundleError, GuardError, UnavailableError

#: A chunk whose processes ended so often ends the run: it would go on for ever.
_MAX_ENDS = 3
#: Chunks that may be done ahead of the oldest one that is not, for each process.
_AHEAD = 16
#: What a process sends once it can judge.
_READY = "ready"


class InProcess:
    """A ``Backend`` of one guard in this process."""

    def __init__(self, guard: LocalGuard) -> None:
        self._guard = guard

    @property
    def identity(self) -> Identity:
        """Of the verdicts."""
        return self._guard.identity

    def judge(self, source: Source) -> Iterator[tuple[bytes, ...]]:
        """Load the guard and judge chunk by chunk."""
        judge = self._guard.load()
        try:
            for chunk in source.chunks():
                yield judge.lines(chunk.items)
        finally:
            judge.close()


class Processes:
    """A ``Backend`` of ``count`` processes with a guard each. This one reads and writes, and loads no guard.

    A process that ends, by the kernel for want of memory or by anybody's kill, is replaced and its chunk judged anew.
    """

    def __init__(self, guard: LocalGuard, count: int) -> None:
        self._guard = guard
        self._count = count

    @property
    def identity(self) -> Identity:
        """Of the verdicts."""
        return self._guard.identity

    def judge(self, source: Source) -> Generator[tuple[bytes, ...], None, None]:
        """Raises BundleError when the guard cannot be loaded, UnavailableError when processes end again and again."""
        team = _Team(self._guard, self._count)
        try:
            yield from team.judge(source.chunks())
        finally:
            team.end()


@dataclass
class _Worker:
    """A process, and the chunk it has; ``ready`` once it has said so."""

    process: SpawnProcess
    connection: Connection
    ready: bool = False
    chunk: Chunk | None = None


@dataclass
class _Team:
    guard: LocalGuard
    count: int
    workers: list[_Worker] = field(default_factory=list)
    #: Chunks whose process ended, to be given out first, and how often each did.
    again: deque[Chunk] = field(default_factory=deque)
    ends: dict[int, int] = field(default_factory=dict)
    failed_starts: int = 0

    def judge(self, chunks: Iterator[Chunk]) -> Iterator[tuple[bytes, ...]]:
        """In order, whichever is done first."""
        done: dict[int, tuple[bytes, ...]] = {}
        due = given = 0
        left = True
        while True:
            while len(self.workers) < self.count:
                self.workers.append(_start(self.guard))
            for worker in [worker for worker in self.workers if worker.ready and worker.chunk is None]:
                chunk = self.again.popleft() if self.again else None
                if chunk is None and left and given - due < _AHEAD * self.count:
                    chunk = next(chunks, None)
                    left = chunk is not None
                    given += left
                if chunk is not None:
                    self._give(worker, chunk)
            if not left and given == due:
                return
            for worker, lines in self._answers():
                if worker.chunk is not None:
                    done[worker.chunk.index] = lines
                    worker.chunk = None
            while due in done:
                yield done.pop(due)
                due += 1

    def end(self) -> None:
        """Kill what still runs: all that was asked for is done, or nobody waits for it."""
        for worker in self.workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()

    def _give(self, worker: _Worker, chunk: Chunk) -> None:
        worker.chunk = chunk
        try:
            worker.connection.send(chunk)
        except OSError:  # it has just ended: its connection says so, too
            worker.ready = False

    def _answers(self) -> Iterator[tuple[_Worker, tuple[bytes, ...]]]:
        """Wait until something comes. Replaces processes that ended; raises what they could not go on with."""
        busy = [worker for worker in self.workers if worker.chunk is not None or not worker.ready]
        arrived = set(map(id, wait([worker.connection for worker in busy])))
        for worker in [worker for worker in busy if id(worker.connection) in arrived]:
            try:
                answer: Any = worker.connection.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            if isinstance(answer, GuardError):
                raise answer
            if answer == _READY:
                worker.ready, self.failed_starts = True, 0
            else:
                yield worker, answer

    def _replace(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.join()
        self.workers.remove(worker)
        how = _how(worker.process.exitcode)
        if worker.chunk is None:
            self.failed_starts += 1
            if self.failed_starts == _MAX_ENDS:
                raise UnavailableError(f"{_MAX_ENDS} processes ended while they loaded the guard ({how})")
            return
        chunk = worker.chunk
        self.ends[chunk.index] = self.ends.get(chunk.index, 0) + 1
        if self.ends[chunk.index] == _MAX_ENDS:
            rows = f"rows {chunk.items[0].number} to {chunk.items[-1].number}"
            raise UnavailableError(f"{_MAX_ENDS} processes ended while they judged {rows} ({how})")
        self.again.append(chunk)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        more = ", perhaps for want of memory" if -exitcode == signal.SIGKILL else ""
        return f"signal {-exitcode}{more}"
    return f"exit status {exitcode}"


def _start(guard: LocalGuard) -> _Worker:
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads that it does not copy
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(guard, there), name="guard-bulk", daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _work(guard: LocalGuard, connection: Connection) -> None:
    """The life of a process: load, then a chunk for a chunk, until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        judge = guard.load()
        connection.send(_READY)
        while True:
            connection.send(judge.lines(connection.recv().items))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except GuardError as error:  # sent as one that has no more than a message: others do not survive pickling
        connection.send(BundleError(str(error)) if isinstance(error, BundleError) else UnavailableError(str(error)))
    except Exception as error:  # noqa: BLE001 - its text may hold a row's
        connection.send(UnavailableError(f"a process failed with {type(error).__name__}"))


def _end_with_parent() -> None:
    """A parent that was killed leaves nothing behind that still computes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
