"""What a server knows of each of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType

from guard.bundle import BundleKey
from guard.bundle.manifest import Manifest, Task
from guard.classifier import Classifier
from guard.engine.memory import give_back
from guard.engine.settings import EngineSettings
from guard.errors import BundleError
from guard.generator import Generator
from guard.runtime import load_guard, load_instruct
from guard.tagger import Tagger

Model = Classifier | Generator


class State(Enum):
    """Whether a model serves."""

    READY = "ready"
    FAILED = "failed"
    UNLOADING = "unloading"


class Users:
    """Counts the requests that use a model, each for as long as its ``with`` block runs. Event loop's thread only."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.count -= 1


@dataclass(frozen=True)
class Entry:
    """A loaded model and its name here; instruct models have a ``tagger``. It is not freed while it has users."""

    name: str
    task: Task
    directory: Path
    model: Model
    state: State = State.READY
    tagger: Tagger | None = None
    users: Users = field(default_factory=Users, compare=False)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle it was loaded from."""
        return self.model.bundle.manifest

    @property
    def digest(self) -> str:
        """SHA-256 of that manifest."""
        return self.model.bundle.digest

    @property
    def idle(self) -> bool:
        """Whether no request uses it."""
        return not self.users.count and not (self.model.engine.alive and self.model.engine.jobs)


@dataclass(frozen=True)
class Down:
    """A model whose engine has failed: what is known of it without its memory, which is given back when ``freed``."""

    name: str
    task: Task
    directory: Path
    manifest: Manifest
    digest: str
    freed: asyncio.Future[None] = field(compare=False, repr=False)
    state: State = State.FAILED


#: Opens a bundle directory for a task; blocks for seconds. Raises BundleError.
Loader = Callable[[Path, Task, EngineSettings], Model]


def load_model(directory: Path, task: Task, settings: EngineSettings, key: BundleKey | None = None) -> Model:
    """The real Loader; with ``key``, of bundles that are signed with it alone. The model has answered once when it
    comes back, so that its first request is as fast as the next ones.
    """
    model: Model = (load_guard if task == "guard" else load_instruct)(directory, settings, key)
    try:
        model.warm_up()
    except BundleError:
        model.close()
        raise
    give_back()  # what the first answer took
    return model


def entry_of(name: str, task: Task, directory: Path, model: Model) -> Entry:
    """The entry of a model that has just been loaded."""
    return Entry(name, task, directory, model, tagger=Tagger(model) if isinstance(model, Generator) else None)
