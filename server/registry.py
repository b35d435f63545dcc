"""The models of this server: which there are, whether they serve, loading and unloading."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from guard.bundle.manifest import Manifest, Task
from guard.classifier import Classifier
from guard.engine.settings import EngineSettings
from guard.errors import InvalidInputError, ModelNotLoadedError, UnavailableError
from guard.generator import Generator
from guard.runtime import load_guard, load_instruct
from guard.tagger import Tagger
from server.errors import ModelNotFoundError

#: How often an unload looks whether the model's requests have ended.
_POLL_S = 0.05
Model = Classifier | Generator
T = TypeVar("T")


class State(Enum):
    """Whether a model serves."""

    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"


@dataclass(frozen=True)
class Entry:
    """A loaded model. ``name`` is the bundle's, made unique on this server. Instruct models have a ``tagger``."""

    name: str
    task: Task
    model: Model
    state: State
    tagger: Tagger | None = None

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle it was loaded from."""
        return self.model.bundle.manifest


#: Opens a bundle directory for a task; blocks for seconds. Raises BundleError.
Loader = Callable[[Path, Task, EngineSettings], Model]


def load_model(directory: Path, task: Task, settings: EngineSettings) -> Model:
    """The real Loader."""
    return load_guard(directory, settings) if task == "guard" else load_instruct(directory, settings)


class Registry:
    """Models by name. Used from the event loop's thread only; loading and closing run on other threads."""

    def __init__(self, settings: EngineSettings, loader: Loader = load_model) -> None:
        self._settings = settings
        self._loader = loader
        self._entries: dict[str, Entry] = {}
        self._loading: Counter[Task] = Counter()
        self._one_at_a_time = asyncio.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        #: Called with the manifests of the loaded models and a bundle's directory before that is loaded; may refuse it.
        self.before_load: Callable[[Sequence[Manifest], Path], None] = lambda manifests, directory: None
        #: Called after every change.
        self.on_change: Callable[[], None] = lambda: None

    def guard(self, name: str = "") -> tuple[Entry, Classifier]:
        """The guard model ``name``, or the first one for "". Raises ModelNotLoadedError or UnavailableError."""
        entry = self._serving("guard", name)
        assert isinstance(entry.model, Classifier)
        return entry, entry.model

    def instruct(self, name: str = "") -> tuple[Entry, Generator]:
        """As ``guard``, for instruct models."""
        entry = self._serving("instruct", name)
        assert isinstance(entry.model, Generator)
        return entry, entry.model

    def tagger(self, name: str = "") -> tuple[Entry, Tagger]:
        """As ``instruct``, for choosing labels."""
        entry = self._serving("instruct", name)
        assert entry.tagger is not None
        return entry, entry.tagger

    def entries(self) -> list[Entry]:
        """All models, in the order of their names."""
        return [self._entries[name] for name in sorted(self._entries)]

    def entry(self, name: str) -> Entry:
        """The model ``name``, in whatever state; raises ModelNotFoundError."""
        entry = self._entries.get(name)
        if entry is None:
            raise ModelNotFoundError("no model of that name")
        return entry

    def serves(self, task: Task) -> bool:
        """Whether a model for ``task`` is ready."""
        return any(entry.task == task and entry.state is State.READY for entry in self._entries.values())

    @property
    def settled(self) -> bool:
        """Whether nothing is being loaded and every model is ready."""
        ready = all(entry.state is State.READY for entry in self._entries.values())
        return ready and not self._loading.total()

    def load(self, directory: Path, task: Task) -> asyncio.Future[Entry]:
        """Load a bundle, after those that were asked for before. Raises BundleError, or InvalidInputError when a model
        of its name and task is loaded already. A load goes on when its caller is cancelled: a thread cannot be.
        """
        self._loading[task] += 1
        return self._start(self._load(directory, task))

    def unload(self, name: str) -> asyncio.Future[None]:
        """Take a model out of service, wait for its requests, and free it. Raises ModelNotFoundError. Goes on when its
        caller is cancelled.
        """
        entry = self.entry(name)
        self._set_state(entry, State.UNLOADING)
        return self._start(self._unload(entry))

    async def close(self) -> None:
        """Wait for loads, stop every engine after its current step, and forget the models."""
        await asyncio.gather(*self._running, return_exceptions=True)
        for entry in self._entries.values():
            await asyncio.to_thread(entry.model.close)
        self._entries.clear()

    def _start(self, work: Coroutine[None, None, T]) -> asyncio.Future[T]:
        def done(finished: asyncio.Future[T]) -> None:
            self._running.discard(finished)
            if not finished.cancelled():
                finished.exception()  # seen, also when the caller has left

        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(done)
        return asyncio.shield(task)

    async def _load(self, directory: Path, task: Task) -> Entry:
        try:
            async with self._one_at_a_time:
                self.before_load([entry.manifest for entry in self.entries()], directory)
                model = await asyncio.to_thread(self._loader, directory, task, self._settings)
                name = self._free_name(model.bundle.manifest.name, task)
                if name is None:
                    await asyncio.to_thread(model.close)
                    raise InvalidInputError("bundle", "a model of that name is loaded already")
                tagger = Tagger(model) if isinstance(model, Generator) else None
                self._entries[name] = entry = Entry(name, task, model, State.READY, tagger)
        finally:
            self._loading[task] -= 1
            self.on_change()
        return entry

    async def _unload(self, entry: Entry) -> None:
        while entry.model.engine.alive and entry.model.engine.jobs:
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(entry.model.close)
        self._entries.pop(entry.name, None)
        self.on_change()

    def check_engines(self) -> list[Entry]:
        """Mark the models whose engine has died as FAILED, and return those that died since the last check."""
        dead = [e for e in self._entries.values() if e.state is State.READY and not e.model.engine.alive]
        for entry in dead:
            self._set_state(entry, State.FAILED)
        return dead

    def _serving(self, task: Task, name: str) -> Entry:
        found = [e for e in self._entries.values() if e.task == task and name in ("", e.name)]
        ready = next((entry for entry in found if entry.state is State.READY), None)
        if ready is not None:
            return ready
        if found or self._loading[task]:
            raise UnavailableError(f"the {task} model is not ready")
        which = "of that name " if name else ""
        raise ModelNotLoadedError(f"no {task} model {which}is loaded")

    def _free_name(self, name: str, task: Task) -> str | None:
        """``name``, or with the task when a model of the other task has it; None when its own task has it already."""
        if any(entry.task == task and entry.manifest.name == name for entry in self._entries.values()):
            return None
        return next((free for free in (name, f"{name}-{task}") if free not in self._entries), None)

    def _set_state(self, entry: Entry, state: State) -> None:
        self._entries[entry.name] = replace(entry, state=state)
        self.on_change()
