"""Writes a bundle so that its destination is either absent or complete, whenever the process dies."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from guard.bundle.hashes import record_file
from guard.bundle.manifest import MANIFEST_FILE, Manifest
from guard.errors import BundleError


@contextmanager
def staging(destination: Path, overwrite: bool) -> Iterator[Path]:
    """An empty directory beside ``destination`` to build in; removed on any error, and by the next export after a kill.

    ``publish`` turns it into the destination. Raises BundleError when the destination is in use, not empty (unless
    ``overwrite``), or when the disk refuses a write.
    """
    destination = Path(os.path.abspath(destination))
    _check_destination(destination, overwrite)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        directory, descriptor = _claim(destination)
    except OSError as error:
        raise _unwritable(destination, error) from error
    try:
        yield directory
    except OSError as error:
        raise _unwritable(destination, error) from error
    finally:
        _release(directory, descriptor)


def finish_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Hash every file of ``directory``, write the manifest beside them, and return it with ``files`` filled in."""
    names = sorted(entry.name for entry in os.scandir(directory))
    complete = replace(manifest, files={name: record_file(directory / name) for name in names})
    (directory / MANIFEST_FILE).write_bytes(complete.to_json())
    return complete


def publish(directory: Path, destination: Path, overwrite: bool) -> None:
    """Flush the finished ``directory`` to disk and rename it to ``destination``, replacing an old bundle whole."""
    destination = Path(os.path.abspath(destination))
    for entry in os.scandir(directory):
        os.chmod(entry.path, 0o644)
        _fsync(Path(entry.path))
    os.chmod(directory, 0o755)
    _fsync(directory)
    _check_destination(destination, overwrite)
    if destination.exists():
        _replace(directory, destination)
    else:
        os.rename(directory, destination)
    with suppress(OSError):
        shutil.rmtree(_old(destination))  # just replaced, or left by an export that was killed between two renames
    _fsync(destination.parent)


def _check_destination(destination: Path, overwrite: bool) -> None:
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise BundleError(f"{destination}: exists and is not a directory")
    if not destination.is_dir() or not any(destination.iterdir()):
        return
    if not overwrite:
        raise BundleError(f"{destination}: not empty; overwrite was not asked for")
    if not (destination / MANIFEST_FILE).is_file():
        raise BundleError(f"{destination}: not empty and not a bundle, so it is not overwritten")


def _claim(destination: Path) -> tuple[Path, int]:
    """Create and lock the staging directory. One that a killed export left is unlocked, so it is taken and emptied."""
    directory = destination.parent / f".{destination.name}.partial"
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino != directory.stat().st_ino:  # its owner renamed it in between
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise BundleError(f"{destination}: another export is writing it") from None
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    return directory, descriptor


def _release(directory: Path, descriptor: int) -> None:
    """Remove the staging directory if it is still ours: once published, the path may already be another export's."""
    with suppress(FileNotFoundError):
        if os.fstat(descriptor).st_ino == directory.stat().st_ino:
            shutil.rmtree(directory, ignore_errors=True)
    os.close(descriptor)


def _replace(directory: Path, destination: Path) -> None:
    """Swap in the new bundle; for a moment the destination is absent, never half."""
    old = _old(destination)
    shutil.rmtree(old, ignore_errors=True)
    os.rename(destination, old)
    try:
        os.rename(directory, destination)
    except OSError:
        os.rename(old, destination)
        raise


def _old(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.old"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(destination: Path, error: OSError) -> BundleError:
    return BundleError(f"{destination}: cannot be written: {error.strerror or type(error).__name__}")
