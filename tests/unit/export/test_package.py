from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from export.package import finish_manifest, publish, staging
from export.synthetic import TINY
from guard.bundle.hashes import record_file
from guard.bundle.manifest import Graph, Manifest, Quantization, Source, Tokens
from guard.errors import BundleError

MANIFEST = Manifest(
    name="m",
    task="instruct",
    tools={},
    source=Source("huggingface", "s", None, {}, None),
    shape=TINY.shape(),
    quantization=Quantization("none", "float32", "float32", "float32", "float32", "none"),
    graph=Graph("model.onnx", "gqa", None),
    tokens=Tokens(None, (1,), {}),
    chat_template=None,
    generation=None,
    guard=None,
    parity=None,
    files={},
)


def write_bundle(destination: Path, content: bytes, overwrite: bool = False) -> Manifest:
    with staging(destination, overwrite) as directory:
        (directory / "model.onnx").write_bytes(content)
        manifest = finish_manifest(directory, MANIFEST)
        publish(directory, destination, overwrite)
    return manifest


def left_beside(destination: Path) -> list[str]:
    return sorted(entry.name for entry in destination.parent.iterdir() if entry != destination)


def test_a_bundle_appears_whole_with_the_hash_of_every_file(tmp_path: Path) -> None:
    destination = tmp_path / "new" / "bundle"
    manifest = write_bundle(destination, b"graph")
    assert {path.name for path in destination.iterdir()} == {"model.onnx", "manifest.json"}
    record = manifest.files["model.onnx"]
    assert (record.sha256, record.bytes) == (hashlib.sha256(b"graph").hexdigest(), 5)
    assert Manifest.from_json((destination / "manifest.json").read_bytes()) == manifest
    assert left_beside(destination) == []
    assert (destination.stat().st_mode & 0o777, (destination / "model.onnx").stat().st_mode & 0o777) == (0o755, 0o644)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    """Failure test 21."""
    with pytest.raises(KeyError), staging(tmp_path / "bundle", overwrite=False) as directory:
        (directory / "half").write_bytes(b"x")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_bundle_error_and_leaves_nothing(tmp_path: Path) -> None:
    """Failure test 21."""
    with pytest.raises(BundleError, match="No space left"), staging(tmp_path / "bundle", overwrite=False) as directory:
        (directory / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_a_destination_in_use_is_kept(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    write_bundle(destination, b"old")
    with pytest.raises(BundleError, match="not empty"):
        write_bundle(destination, b"new")
    assert (destination / "model.onnx").read_bytes() == b"old"
    assert left_beside(destination) == []


def test_overwriting_replaces_a_bundle_whole(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    write_bundle(destination, b"old")
    (destination / "extra").write_bytes(b"x")
    write_bundle(destination, b"new", overwrite=True)
    assert {path.name for path in destination.iterdir()} == {"model.onnx", "manifest.json"}
    assert (destination / "model.onnx").read_bytes() == b"new"
    assert left_beside(destination) == []


def test_a_failed_overwrite_keeps_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failure test 21."""
    destination = tmp_path / "bundle"
    write_bundle(destination, b"old")
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        if Path(source).name == ".bundle.partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(BundleError, match="Input/output error"):
        write_bundle(destination, b"new", overwrite=True)
    assert (destination / "model.onnx").read_bytes() == b"old"
    assert left_beside(destination) == []


def test_overwriting_never_removes_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(tmp_path, b"new", overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_destination_that_is_no_directory_is_refused(tmp_path: Path, kind: str) -> None:
    destination = tmp_path / "bundle"
    if kind == "file":
        destination.write_text("x")
    else:
        destination.symlink_to(tmp_path)
    with pytest.raises(BundleError, match="not a directory"):
        write_bundle(destination, b"new", overwrite=True)


def test_an_empty_destination_is_used(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    write_bundle(tmp_path / "bundle", b"new")
    assert (tmp_path / "bundle" / "model.onnx").exists()


def test_two_exports_to_one_place_do_not_mix(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    with staging(destination, overwrite=False) as directory:
        (directory / "model.onnx").write_bytes(b"first")
        with pytest.raises(BundleError, match="another export"):
            write_bundle(destination, b"second")
        finish_manifest(directory, MANIFEST)
        publish(directory, destination, overwrite=False)
    assert (destination / "model.onnx").read_bytes() == b"first"


def _write_forever(destination: Path, started: str) -> None:
    with staging(destination, overwrite=False) as directory:
        (directory / "half").write_bytes(b"x")
        (directory / "scratch").mkdir()
        Path(started).touch()
        time.sleep(600)


def test_a_killed_export_leaves_no_destination_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    """Failure test 21."""
    destination, started = tmp_path / "out" / "bundle", tmp_path / "started"
    process = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(destination, str(started)))
    process.start()
    deadline = time.monotonic() + 60
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not destination.exists() and left_beside(destination) == [".bundle.partial"]
    write_bundle(destination, b"new")
    assert {path.name for path in destination.iterdir()} == {"model.onnx", "manifest.json"}
    assert left_beside(destination) == []


def _die_at(event: int, destination: Path) -> bool:
    """Overwrite a bundle in a process that is killed before its ``event``-th look at, or change of, the file system
    below ``destination``'s parent; whether it was.
    """
    pid = os.fork()
    if pid == 0:
        left = event

        def count(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if name.startswith(("open", "os.", "shutil.")) and str(destination.parent) in str(arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            write_bundle(destination, b"new", overwrite=True)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("first", [True, False])
def test_killed_at_any_point_the_destination_is_absent_or_whole(tmp_path: Path, first: bool) -> None:
    """Failure test 21: before each of its operations on files in turn, over an old bundle and without one."""
    seen, event = set(), 0
    for event in range(1, 200):
        destination = tmp_path / str(event) / "bundle"
        destination.parent.mkdir()
        if not first:
            write_bundle(destination, b"old")
        killed = _die_at(event, destination)
        if destination.exists():
            manifest = Manifest.from_json((destination / "manifest.json").read_bytes())
            content = (destination / "model.onnx").read_bytes()
            assert manifest.files["model.onnx"].sha256 == hashlib.sha256(content).hexdigest()
            assert {path.name for path in destination.iterdir()} == {"model.onnx", "manifest.json"}
            seen.add(content)
        else:
            seen.add(b"absent")
        write_bundle(destination, b"next", overwrite=True)
        assert (destination / "model.onnx").read_bytes() == b"next"
        assert left_beside(destination) == []
        if not killed:
            break
    assert 10 < event < 199
    assert {b"new", b"absent" if first else b"old"} <= seen <= {b"new", b"old", b"absent"}


def test_a_really_full_disk_is_named_and_keeps_the_old_bundle(tmp_path: Path) -> None:
    """Failure test 21: the file system itself refuses, midway through a file."""
    destination = tmp_path / "bundle"
    write_bundle(destination, b"old")
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
            write_bundle(destination, bytes(1 << 20), overwrite=True)
        except BundleError as error:
            os._exit(7 if "File too large" in str(error) else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert (destination / "model.onnx").read_bytes() == b"old"
    assert left_beside(destination) == []


def test_the_manifest_does_not_keep_what_it_was_told_about_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    stale = replace(MANIFEST, files={"gone": record_file(tmp_path / "a")})
    assert set(finish_manifest(tmp_path, stale).files) == {"a"}
