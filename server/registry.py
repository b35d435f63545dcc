"""The models of this server: which there are, whether they serve, loading, replacing and unloading."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from guard.bundle.manifest import Manifest, Task
from guard.classifier import Classifier
from guard.engine.memory import give_back
from guard.engine.settings import EngineSettings
from guard.errors import InvalidInputError, ModelNotLoadedError, UnavailableError
from guard.generator import Generator
from guard.tagger import Tagger
from server.entries import Down, Entry, Loader, Model, State, entry_of, load_model
from server.errors import ModelNotFoundError

__all__ = ["Entry", "Loader", "Model", "Registry", "State", "load_model"]

#: How often it is looked whether the requests of a model that is to be freed have ended.
_POLL_S = 0.05
#: How long a restart waits for the requests of the dead engine, which have been told already, to let go of its memory.
_LET_GO_S = 5.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
T = TypeVar("T")


class Registry:
    """Models by name. Used from the event loop's thread only; loading and closing run on other threads."""

    def __init__(self, settings: EngineSettings, loader: Loader = load_model) -> None:
        self._settings = settings
        self._loader = loader
        self._entries: dict[str, Entry] = {}
        self._down: dict[str, Down] = {}
        self._leaving: list[Entry] = []  # unloaded or replaced, but not freed yet
        self._defaults: dict[Task, str] = {}
        self._loading: Counter[Task] = Counter()
        self._one_at_a_time = asyncio.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        #: The name of the guard that only goes before others: never the default, and not to be asked for. "" for none.
        self.screen = ""
        #: Called with the manifests of all models in memory and a bundle's directory before that is loaded; may refuse.
        self.before_load: Callable[[Sequence[Manifest], Path], None] = lambda manifests, directory: None
        #: Called after every change.
        self.on_change: Callable[[], None] = lambda: None

    def guard(self, name: str = "") -> tuple[Entry, Classifier]:
        """The guard model ``name``, or the default one for "". Raises ModelNotLoadedError or UnavailableError.

        A request enters ``Entry.users`` before it awaits anything, and leaves when it needs the model no more.
        """
        entry = self._serving("guard", name)
        assert isinstance(entry.model, Classifier)
        return entry, entry.model

    def screener(self) -> tuple[Entry, Classifier]:
        """The screen; raises as ``guard``."""
        entry = self._ready("guard", self.screen)
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
        """All models that have an engine, in the order of their names."""
        return [self._entries[name] for name in sorted(self._entries)]

    def listed(self) -> list[Entry | Down]:
        """All models, in whatever state, in the order of their names."""
        known: dict[str, Entry | Down] = {**self._entries, **self._down}
        return [known[name] for name in sorted(known)]

    def entry(self, name: str) -> Entry | Down:
        """The model ``name``, in whatever state; raises ModelNotFoundError."""
        entry = self._entries.get(name) or self._down.get(name)
        if entry is None:
            raise ModelNotFoundError("no model of that name")
        return entry

    def in_memory(self) -> list[Entry]:
        """All models that have an engine, with those that are gone for callers but not freed yet."""
        return [*self._entries.values(), *self._leaving]

    def is_default(self, name: str) -> bool:
        """Whether requests that name no model get this one."""
        return name in self._defaults.values()

    def serves(self, task: Task) -> bool:
        """Whether requests for ``task`` that name no model are served."""
        default = self._entries.get(self._defaults.get(task, ""))
        return default is not None and default.state is State.READY

    @property
    def healthy(self) -> bool:
        """Whether no model's engine is down. Without the screen all is answered, so it does not count."""
        return not self._down.keys() - {self.screen}

    def load(self, directory: Path, task: Task, name: str = "", replaces: str = "") -> asyncio.Future[Entry]:
        """Load a bundle, after those that were asked for before, under ``name`` or the bundle's own; or in the place,
        and without ``name`` under the name, of the model that it ``replaces``, which serves until the new one does.

        Raises InvalidInputError for names that are taken or none, ModelNotFoundError, BundleError, and what
        ``before_load`` raises. A load goes on when its caller is cancelled: a thread cannot be.
        """
        if name and not _NAME.fullmatch(name):
            raise InvalidInputError("name", 'expected 1 to 64 letters, digits, ".", "_" or "-"')
        self._loading[task] += 1
        return self._start(self._load(directory, task, name, replaces))

    def unload(self, name: str) -> asyncio.Future[None]:
        """Take a model out of service, wait for its requests, and free it. Raises ModelNotFoundError. Goes on when its
        caller is cancelled.
        """
        found = self.entry(name)
        if isinstance(found, Down):
            del self._down[name]  # its restart, if one is under way, finds that nobody wants it
            self._pass_on_default(found)
            self.on_change()
            return found.freed
        entry = self._entries[name] = replace(found, state=State.UNLOADING)
        self._pass_on_default(entry)
        self.on_change()
        return self._start(self._unload(entry))

    def fail(self, entry: Entry) -> Down:
        """``entry``'s engine is down: from now on its requests are refused. For ``restart`` to bring it back."""
        entry.model.engine.abandon()  # whoever still waits is told
        del self._entries[entry.name]
        self._leaving.append(entry)
        freed = self._start(self._free(entry, _LET_GO_S))
        down = Down(entry.name, entry.task, entry.directory, entry.manifest, entry.digest, freed)
        self._down[entry.name] = down
        self.on_change()
        return down

    def restart(self, down: Down) -> asyncio.Future[bool]:
        """Load a failed model anew; False when it was unloaded or replaced meanwhile. Raises what loading raises."""
        return self._start(self._restart(down))

    async def close(self) -> None:
        """Wait for loads, stop every engine after its current step, and forget the models."""
        while self._running:
            await asyncio.wait(self._running)
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

    async def _load(self, directory: Path, task: Task, name: str, replaces: str) -> Entry:
        try:
            async with self._one_at_a_time:
                self._check_names(task, name, replaces)
                model = await self._open(directory, task)
                free = name or replaces or self._free_name(model.bundle.manifest.name, task)
                if free is None:
                    await asyncio.to_thread(model.close)
                    raise InvalidInputError("bundle", "a model of that name is loaded already")
                entry = entry_of(free, task, directory, model)
                self._put(entry, replaces)
        finally:
            self._loading[task] -= 1
            self.on_change()
        return entry

    async def _restart(self, down: Down) -> bool:
        await down.freed
        async with self._one_at_a_time:
            if self._down.get(down.name) is not down:
                return False
            await asyncio.to_thread(give_back)  # the dead model's memory, before there is a second one
            model = await self._open(down.directory, down.task)
            if self._down.get(down.name) is not down:
                await asyncio.to_thread(model.close)
                return False
            del self._down[down.name]
            self._entries[down.name] = entry_of(down.name, down.task, down.directory, model)
        self.on_change()
        return True

    async def _open(self, directory: Path, task: Task) -> Model:
        self.before_load([entry.manifest for entry in self.in_memory()], directory)
        return await asyncio.to_thread(self._loader, directory, task, self._settings)

    async def _unload(self, entry: Entry) -> None:
        await self._free(entry)
        if (now := self._entries.get(entry.name)) is not None and now.model is entry.model:
            del self._entries[entry.name]
        self._pass_on_default(entry)
        self.on_change()

    async def _free(self, entry: Entry, within_s: float | None = None) -> None:
        """Close it once no request uses it any more; after ``within_s`` seconds in any case."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not entry.idle:
                    await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(entry.model.close)
        self._leaving = [other for other in self._leaving if other.model is not entry.model]
        self._start(self._give_back())

    async def _give_back(self) -> None:
        """Once nothing refers to a closed model any more."""
        await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(give_back)

    def _check_names(self, task: Task, name: str, replaces: str) -> None:
        if replaces:
            old = self.entry(replaces)
            if old.task != task:
                raise InvalidInputError("replace", f"is no {task} model, as the bundle is")
            if old.state is State.UNLOADING:
                raise InvalidInputError("replace", "is being unloaded")
        if name and name != replaces and (name in self._entries or name in self._down):
            raise InvalidInputError("name", "a model of that name is loaded already")

    def _free_name(self, name: str, task: Task) -> str | None:
        """``name``, or with the task when a model of the other task has it; None when its own task has it already."""
        taken: dict[str, Entry | Down] = {**self._entries, **self._down}
        if name in taken and taken[name].task == task:
            return None
        return next((free for free in (name, f"{name}-{task}") if free not in taken), None)

    def _put(self, entry: Entry, replaces: str) -> None:
        """The switch: everything that asks from now on gets the new one."""
        old = self._entries.pop(replaces, None)
        self._down.pop(replaces, None)
        self._entries[entry.name] = entry
        if entry.name != self.screen and self._defaults.setdefault(entry.task, entry.name) == replaces:
            self._defaults[entry.task] = entry.name
        if old is not None:
            self._leaving.append(old)
            if old.state is not State.UNLOADING:
                self._start(self._free(old))

    def _pass_on_default(self, leaving: Entry | Down) -> None:
        """When the default leaves, the oldest other model of its task is the default, if there is one."""
        name, task = leaving.name, leaving.task
        if self._defaults.get(task) != name:
            return
        models: list[Entry | Down] = [*self._entries.values(), *self._down.values()]
        others = [model for model in models if model.task == task and model.name not in (name, self.screen)]
        staying = [model.name for model in others if model.state is not State.UNLOADING]
        if staying:
            self._defaults[task] = staying[0]
        elif name not in self._entries:
            del self._defaults[task]

    def _serving(self, task: Task, name: str) -> Entry:
        if name and name == self.screen:
            raise ModelNotLoadedError("the screen judges nothing alone: name no model, or another one")
        return self._ready(task, name or self._defaults.get(task, ""))

    def _ready(self, task: Task, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is not None and entry.task == task and entry.state is State.READY:
            return entry
        known = entry or self._down.get(name)
        if (known is not None and known.task == task) or self._loading[task]:
            raise UnavailableError(f"the {task} model is not ready")
        which = "of that name " if name else ""
        raise ModelNotLoadedError(f"no {task} model {which}is loaded")
