from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from export.checkpoint import files
from export.checkpoint.files import FileReader, RandomAccessFile, parse_json_object
from guard.errors import CheckpointError


def test_reads_by_position_and_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 10
    path = tmp_path / "x"
    path.write_bytes(data)
    file = RandomAccessFile(path)
    monkeypatch.setattr(files, "_HASH_CHUNK_BYTES", 100)
    assert file.size == 2560
    assert file.read(250, 10) == data[250:260]
    np.testing.assert_array_equal(file.read_array(2, 3, "<u2"), np.frombuffer(data[2:8], "<u2"))
    assert file.read_array(2560, 0, "<f4").size == 0
    assert file.sha256() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (10, 1), (-1, 1), (0, 2**60), (2**60, 1), (5, -1)])
def test_bytes_outside_the_file_are_refused(tmp_path: Path, offset: int, length: int) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    file = RandomAccessFile(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"^x: bytes"):
        file.read(offset, length)
    with pytest.raises(CheckpointError, match=r"^x: bytes"):
        file.read_array(offset, length, np.uint8)


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10))
    file = RandomAccessFile(path)
    os.truncate(path, 5)
    with pytest.raises(CheckpointError, match="became shorter"):
        file.read(0, 10)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, problem in (
        ("fifo", "regular"),
        (".", "regular|directory"),
        ("dangling", "No such"),
        ("a\0b", "invalid"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            RandomAccessFile(tmp_path / name)


def test_the_descriptor_is_closed_with_the_object(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    held = [RandomAccessFile(tmp_path / "x") for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    held.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_small_files_have_a_limit_and_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": 1}')
    reader = FileReader(tmp_path)
    assert reader.read_json("x.json") == {"a": 1}
    assert reader.read_optional_json("y.json") == {}
    assert reader.hashes == {"x.json": hashlib.sha256(b'{"a": 1}').hexdigest()}
    monkeypatch.setattr(files, "MAX_TEXT_BYTES", 7)
    with pytest.raises(CheckpointError, match=r"x\.json: 8 bytes, the limit is 7"):
        reader.read_json("x.json")


def test_a_dangling_link_is_not_an_absent_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"x\.json"):
        FileReader(tmp_path).read_optional_json("x.json")


def test_json_of_countless_lists_is_refused_before_parsing() -> None:
    data = b'{"a": [' + b"[]," * (1 << 20) + b"[]]}"
    with pytest.raises(CheckpointError, match="more than 1048576"):
        parse_json_object(data, "where")


@pytest.mark.parametrize("data", [b"", b"5", b"[1]", b"{]", b'{"a": Infinity}', b'{"a": "\xc3"}', b'{"a": 1, "a": 1}'])
def test_json_is_strict(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^where: "):
        parse_json_object(data, "where")
