"""The YAML file of a batch of exports: a list of checkpoints, each with one or more values for what is exported of it.

exports.schema.json, beside this module, says the same to editors and other tools. Paths in the file are relative to it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from export.batch.document import STRING, Entry, parse
from export.checkpoint.open import is_hub_id
from export.pipeline import NAME, ExportRequest, check_request, plain_name
from export.quantize.profile import PROFILES, PURPOSES
from guard.cli.plan import read_size
from guard.errors import InvalidInputError, UnsupportedError

#: More than this is a slip in a list, not a plan.
MAX_EXPORTS = 1000
MAX_FILE_BYTES = 1 << 20
#: The report of a run lies beside the bundles.
JSON_FILE, MARKDOWN_FILE = "exports.json", "exports.md"
DEFAULT_NAME = "{source}-{task}-{quantization}{packed}"
T = TypeVar("T")
_OWN = ("source", "revision")
_SHARED = (
    *("task", "quantization", "profile", "adapter", "packed"),
    *("exporter", "name", "model_name", "parity", "calibration", "max_kl", "sign"),
)
_PLACEHOLDERS = ("source", "task", "quantization", "adapter", "packed")


@dataclass(frozen=True)
class Job:
    """One bundle: ``name`` is its directory's in the output, and what ``--only`` takes. ``request.out`` is absolute."""

    name: str
    request: ExportRequest

    @property
    def from_hub(self) -> bool:
        """Whether the source has to be downloaded, or was."""
        return not os.path.isabs(self.request.source)


@dataclass(frozen=True)
class Batch:
    """What a file asks for. ``max_memory``: bytes that the estimates of running exports may sum to; None: what is free
    when the run begins. ``parallel``: exports at once, at most; None: one for each four CPUs.
    """

    config: Path
    output: Path
    max_memory: int | None
    parallel: int | None
    jobs: tuple[Job, ...]


def load_batch(config: Path) -> Batch:
    """Read ``config``. Raises InvalidInputError naming the file, and the key and line of what is wrong in it."""
    try:
        if config.stat().st_size > MAX_FILE_BYTES:
            raise InvalidInputError("config", f"{config}: more than {MAX_FILE_BYTES} bytes")
        text = config.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("config", f"{config}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError("config", f"{config}: not UTF-8") from error
    try:
        return read_batch(text, config)
    except InvalidInputError as error:
        raise InvalidInputError("config", f"{config}: {error}") from None


def read_batch(text: str, config: Path) -> Batch:
    """The batch that ``text``, of the file ``config``, gives. Raises InvalidInputError naming key and line."""
    root = parse(text).mapping({"output", "max_memory", "parallel", "defaults", "exports"}, ("output", "exports"))
    base = Path(os.path.abspath(config)).parent
    output = base / root["output"].text()
    defaults = root["defaults"].mapping(_SHARED) if "defaults" in root else {}
    jobs: dict[str, Job] = {}
    for entry in root["exports"].items():
        for job in _expand(entry, defaults, base, output):
            if job.name in jobs:
                raise entry.refusal(f"gives the name {job.name} a second time; set name, with {_placeholders()}")
            jobs[job.name] = job
            if len(jobs) > MAX_EXPORTS:
                raise root["exports"].refusal(f"more than {MAX_EXPORTS} exports")
    return Batch(
        config=config,
        output=Path(os.path.abspath(output)),
        max_memory=_size(root["max_memory"]) if "max_memory" in root else None,
        parallel=root["parallel"].count() if "parallel" in root else None,
        jobs=tuple(jobs.values()),
    )


def _expand(entry: Entry, defaults: Mapping[str, Entry], base: Path, output: Path) -> list[Job]:
    """Every combination of the values of one export."""
    given = entry.mapping((*_OWN, *_SHARED), ("source",))
    inherited = {key: value for key, value in defaults.items() if not _overruled(key, given)}
    fields = {**inherited, **given}
    if "profile" in fields and "quantization" in fields:
        raise fields["profile"].refusal("is another word for quantization; give one of them")
    exporter: Any = _one(fields, "exporter", lambda value: value.choice(("direct", "optimum")), "direct")
    unsaid = "none" if exporter == "optimum" else "int8"
    quantizations = _some(fields, "quantization", lambda value: value.choice(tuple(PROFILES)), unsaid)
    if "profile" in fields:
        quantizations = _some(fields, "profile", lambda value: PURPOSES[value.choice(tuple(PURPOSES))], unsaid)
    tasks: list[Any] = _some(fields, "task", lambda value: value.choice(("guard", "instruct")), "guard")
    common = ExportRequest(
        source="",
        out=output,
        task=tasks[0],
        revision=_one(fields, "revision", Entry.text, None),
        exporter=exporter,
        parity=_one(fields, "parity", Entry.flag, True),
        calibrate=_one(fields, "calibration", Entry.flag, True),
        max_kl=_one(fields, "max_kl", lambda value: value.number(0), None),
        sign=_one(fields, "sign", lambda value: base / value.text(), None),
    )
    combinations = product(
        [_source(value, base) for value in fields["source"].one_or_more()],
        tasks,
        _some(fields, "adapter", lambda value: base / value.text(), None),
        quantizations,
        _some(fields, "packed", Entry.flag, False),
    )
    return [
        _job(
            entry,
            fields,
            replace(common, source=source, task=task, adapter=adapter, quantization=quantization, packed=packed),
        )
        for source, task, adapter, quantization, packed in combinations
    ]


def _job(entry: Entry, fields: Mapping[str, Entry], request: ExportRequest) -> Job:
    """The job of ``request``, whose ``out`` is the directory of all bundles, and which has no name yet."""
    values = {
        "source": plain_name(request.source),
        "task": request.task,
        "quantization": request.quantization,
        "adapter": "" if request.adapter is None else plain_name(request.adapter.name),
        "packed": "-packed" if request.packed else "",
    }
    name = _named(fields["name"], values) if "name" in fields else DEFAULT_NAME.format_map(values)
    place = fields.get("name", entry)
    if not NAME.fullmatch(name):
        raise place.refusal(f"gives {name!r}: expected up to 128 letters, digits, '.', '_', '-'")
    if name in (JSON_FILE, MARKDOWN_FILE):
        raise place.refusal(f"gives {name!r}, which the report is called")
    model_name = _named(fields["model_name"], values) if "model_name" in fields else name
    complete = replace(request, out=Path(os.path.abspath(request.out / name)), name=model_name)
    _check(entry, fields, complete)
    return Job(name, complete)


def _one(fields: Mapping[str, Entry], name: str, read: Callable[[Entry], T], unsaid: T) -> T:
    return read(fields[name]) if name in fields else unsaid


def _some(fields: Mapping[str, Entry], name: str, read: Callable[[Entry], T], unsaid: T) -> list[T]:
    return [read(value) for value in fields[name].one_or_more()] if name in fields else [unsaid]


def _overruled(key: str, given: Mapping[str, Entry]) -> bool:
    """An export that says its profile does not want the default quantization too, and the other way round."""
    same = ("quantization", "profile")
    return key in given or (key in same and any(name in given for name in same))


def _source(entry: Entry, base: Path) -> str:
    """An absolute path, or a hub id."""
    text = entry.text()
    path = os.path.abspath(base / text)
    return text if is_hub_id(text) and not os.path.exists(path) else path


def _named(entry: Entry, values: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise entry.refusal(f"has no {match[0]}; there are {_placeholders()}")
        return values[match[1]]

    return re.sub(r"\{([^{}]*)\}", value, entry.text())


def _placeholders() -> str:
    return ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS)


def _size(entry: Entry) -> int:
    if entry.tag == STRING:
        try:
            size = read_size(entry.text())
        except InvalidInputError as error:
            raise entry.refusal(error.problem) from None
        if size:
            return size
    return entry.count()


def _check(entry: Entry, fields: Mapping[str, Entry], request: ExportRequest) -> None:
    """What a single export would refuse before any work, at its place in the file."""
    try:
        check_request(request)
    except InvalidInputError as error:
        key = "model_name" if error.field == "name" else error.field
        raise fields.get(key, entry).refusal(error.problem) from None
    except UnsupportedError as error:
        raise entry.refusal(str(error)) from None
