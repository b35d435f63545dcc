"""What was asked for when a bundle was made, beside the bundles: so that the next run knows which of them still hold.

A bundle's manifest says all but a few options, and is made before the bundle is published, so the record of an export
is written twice. Before it starts: its options, and which bundle, if any, it is to take the place of. After it: the
digest of the new manifest. A run that is killed in between leaves a bundle that is still the old one, or is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from export.batch.config import Job
from export.graph.builder import GRAPH_VERSION
from export.pipeline import exporter_versions
from export.quantize.profile import profile
from export.sign import check_signing_key
from guard.bundle import BundleKey, open_bundle
from guard.bundle.manifest import MANIFEST_FILE, Manifest, Source
from guard.engine.cpus import instruction_sets
from guard.errors import BundleError

RECORDS = ".exports"


@dataclass(frozen=True)
class Record:
    """``manifest``: SHA-256 of the bundle's manifest, None until it is published; ``replaces``: that of the bundle
    there was. ``seconds`` and ``peak_bytes`` of the export, where they are known.
    """

    options: Mapping[str, Any]
    manifest: str | None
    replaces: str | None
    seconds: float | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Decision:
    """What to do about a job, and why. ``refuse``: there is something that is not ours to replace."""

    action: Literal["make", "remake", "keep", "refuse"]
    reason: str


def options_of(job: Job) -> dict[str, Any]:
    """Everything that a bundle depends on beside its source's bytes, the versions of packages, and this processor."""
    request = job.request
    key = None if request.sign is None else check_signing_key(request.sign)
    return {
        "task": request.task,
        "quantization": request.quantization,
        "exporter": request.exporter,
        "name": request.name,
        "parity": request.parity,
        "calibration": request.calibrate and request.exporter == "direct" and profile(request.quantization).calibrated,
        "max_kl": request.max_kl,
        "packed": request.packed,
        "signed_by": None if key is None else _fingerprint(key),
        "graph_version": GRAPH_VERSION,
    }


def decide(job: Job, record: Record | None, source: Source | None, again: bool) -> Decision:
    """Whether the bundle of ``job`` is there and still what the file asks for.

    ``source``: what an export would read now; None: not known, and not compared. ``again``: make it anew whatever it
    is. Reads every byte of a bundle that might be kept.
    """
    directory = job.request.out
    digest = manifest_digest(directory)
    if digest is None:
        if directory.is_symlink() or (directory.exists() and not directory.is_dir()) or _any(directory):
            return Decision("refuse", "there is something that is no bundle")
        return Decision("make", "not there")
    if record is None or record.manifest not in (None, digest):
        if not again:
            return Decision("refuse", "there is a bundle that was not made by this batch; --overwrite replaces it")
        return Decision("remake", "was not made by this batch")
    if record.manifest is None and record.replaces == digest:
        return Decision("remake", "the last run did not finish it")
    if again:
        return Decision("remake", "as told")
    options = options_of(job)
    changed = [key for key in options if record.options.get(key) != options[key]]
    if changed:
        return Decision("remake", f"changed: {', '.join(changed)}")
    return _verified(job, source)


def _verified(job: Job, source: Source | None) -> Decision:
    key = None if job.request.sign is None else check_signing_key(job.request.sign)
    try:
        manifest = open_bundle(job.request.out, key).manifest
    except BundleError as error:
        return Decision("remake", f"damaged: {error}")
    if not _is_of(manifest, options_of(job)):
        return Decision("remake", "is another than was asked for")
    if source is not None and manifest.source != source:
        return Decision("remake", f"the source changed: {_source_changes(manifest.source, source)}")
    versions = exporter_versions(job.request.exporter)
    newer = [f"{name} {versions.get(name)}" for name in versions if manifest.tools.get(name) != versions[name]]
    if newer:
        return Decision("remake", f"made with another version: now {', '.join(newer)}")
    if manifest.packed is not None and manifest.packed.instructions != instruction_sets():
        return Decision("remake", "packed on another kind of processor")
    return Decision("keep", "as asked for")


def read_record(output: Path, name: str) -> Record | None:
    """The record of ``name``; None if there is none, or none that can be read."""
    try:
        return Record(**json.loads((output / RECORDS / f"{name}.json").read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def write_record(output: Path, name: str, record: Record) -> None:
    """Replace the record of ``name``: whole or not at all, and on the disk when this returns."""
    path = output / RECORDS / f"{name}.json"
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(asdict(record), file, indent=2, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def manifest_digest(directory: Path) -> str | None:
    """SHA-256 of the bundle's manifest; None where there is none."""
    try:
        return hashlib.sha256((directory / MANIFEST_FILE).read_bytes()).hexdigest()
    except OSError:
        return None


def known_manifest(directory: Path) -> Manifest | None:
    """The manifest, if there is one that can be read."""
    try:
        return Manifest.from_json((directory / MANIFEST_FILE).read_bytes())
    except (OSError, BundleError):
        return None


def _is_of(manifest: Manifest, options: Mapping[str, Any]) -> bool:
    """As far as a manifest tells: a bundle that was published when its run was killed has no digest on record."""
    told = (manifest.task, manifest.quantization.name, manifest.name, manifest.parity is not None)
    asked = tuple(options[key] for key in ("task", "quantization", "name", "parity"))
    return told == asked and (manifest.packed is not None) == options["packed"]


def _source_changes(before: Source, now: Source) -> str:
    if before.revision != now.revision:
        return f"revision {now.revision}"
    names = sorted(name for name in {*before.files, *now.files} if before.files.get(name) != now.files.get(name))
    if before.adapter != now.adapter:
        names.append("the adapter")
    return ", ".join(names) or f"its name is {now.name}"


def _any(directory: Path) -> bool:
    return directory.is_dir() and any(directory.iterdir())


def _fingerprint(key: BundleKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
