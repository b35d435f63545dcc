from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.checkpoint.files import FileReader, RandomAccessFile
from export.checkpoint.safetensors import (
    INDEX_FILE,
    MAX_HEADER_BYTES,
    SINGLE_FILE,
    SafetensorsFile,
    ShardedSafetensors,
    open_safetensors,
)
from guard.errors import CheckpointError, UnsupportedError

from .hostile import check_refusal_or_success, damaged

Header = dict[str, Any]


def write(path: Path, header: Header | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file from its parts, which need not fit together."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def open_file(path: Path) -> SafetensorsFile:
    return SafetensorsFile(RandomAccessFile(path))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reads_what_the_reference_library_writes(tmp_path: Path, dtype: type) -> None:
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "matrix": random.standard_normal((37, 5)).astype(dtype),
        "vector": random.standard_normal(11).astype(dtype),
        "scalar": np.array(1.5, dtype),
        "empty": np.empty((0, 4), dtype),
        "special": np.array([np.inf, -np.inf, np.nan, -0.0, 6e-8], dtype),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = open_file(tmp_path / "x.safetensors")
    assert file.names() == tensors.keys()
    for name, expected in tensors.items():
        assert file.shape(name) == expected.shape
        read = file.read(name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, expected.astype(np.float32))


@given(start=st.integers(0, 40), stop=st.integers(0, 40))
def test_row_slices_are_slices(tmp_path_factory: pytest.TempPathFactory, start: int, stop: int) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    matrix = np.arange(37 * 3, dtype=np.float32).reshape(37, 3)
    if not path.exists():
        safetensors.numpy.save_file({"m": matrix.astype(ml_dtypes.bfloat16)}, path)
    np.testing.assert_array_equal(open_file(path).read("m", slice(start, stop)), matrix[start:stop])


def test_reading_is_chunked_and_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.checkpoint.safetensors._CHUNK_ITEMS", 7)
    values = np.arange(100, dtype=np.float32).reshape(20, 5)
    safetensors.numpy.save_file({"m": values.astype(np.float16)}, tmp_path / "x.safetensors")
    file = open_file(tmp_path / "x.safetensors")
    first = file.read("m")
    np.testing.assert_array_equal(first, values)
    first += 1
    np.testing.assert_array_equal(file.read("m"), values)


def test_only_contiguous_rows_can_be_read(tmp_path: Path) -> None:
    file = open_file(write(tmp_path / "x.safetensors", {"m": entry("F32", [2, 1], 0, 8)}, bytes(8)))
    with pytest.raises(ValueError, match="contiguous"):
        file.read("m", slice(0, 2, 2))
    with pytest.raises(CheckpointError, match="tensor other is missing"):
        file.read("other")


def test_trailing_spaces_in_the_header_are_allowed(tmp_path: Path) -> None:
    header = json.dumps({"m": entry("F32", [1], 0, 4)}).encode() + b"   "
    assert open_file(write(tmp_path / "x.safetensors", header, bytes(4))).read("m") == [0]


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("F16", [2, 2], 8, 16)}


@pytest.mark.parametrize(
    ("header", "data_bytes", "error", "named"),
    [
        (GOOD | {"b": entry("F16", [2, 2], 4, 12)}, 16, CheckpointError, "'b'.*overlaps"),
        (GOOD | {"b": entry("F16", [2, 2], 12, 20)}, 20, CheckpointError, "'b'.*gap"),
        (GOOD | {"b": entry("F16", [2, 2], 8, 16)}, 15, CheckpointError, "'b'.*there are 15 bytes"),
        (GOOD, 17, CheckpointError, "1 bytes after the last tensor"),
        (GOOD | {"b": entry("F16", [2, 3], 8, 16)}, 16, CheckpointError, "'b'.*12 bytes by shape and dtype"),
        (GOOD | {"b": entry("F16", [2**40, 2**40], 8, 16)}, 16, CheckpointError, "'b'.*by shape and dtype"),
        (GOOD | {"b": entry("F16", [2, 2], 16, 8)}, 16, CheckpointError, "'b'.*begin, end"),
        (GOOD | {"b": entry("F16", [-2, -2], 8, 16)}, 16, CheckpointError, "'b'.*sizes"),
        (GOOD | {"b": entry("F16", [1] * 9, 8, 10)}, 10, CheckpointError, "'b'.*at most 8 sizes"),
        (GOOD | {"b": {"dtype": "F16", "shape": [2, 2]}}, 16, CheckpointError, "'b'.*data_offsets"),
        (GOOD | {"b": entry("F16", [2, 2], 8, 16) | {"more": 1}}, 16, CheckpointError, "'b'.*expected"),
        (GOOD | {"b": 5}, 16, CheckpointError, "'b'.*expected"),
        (GOOD | {"b": entry("I64", [1], 8, 16)}, 16, UnsupportedError, "'b'.*'I64'"),
        (GOOD | {"b": entry("F8_E4M3", [8], 8, 16)}, 16, UnsupportedError, "'b'.*'F8_E4M3'"),
    ],
)
def test_headers_that_do_not_fit_are_refused(
    tmp_path: Path, header: Header, data_bytes: int, error: type[Exception], named: str
) -> None:
    """Failure test 20: overlapping offsets, wrong types and sizes."""
    with pytest.raises(error, match=rf"x\.safetensors.*{named}"):
        open_file(write(tmp_path / "x.safetensors", header, bytes(data_bytes)))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"[]", "expected a JSON object"),
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": %s}' % (b"9" * 5000), "not JSON"),
        (b'{"a": 1, "a": 2}', "duplicate key 'a'"),
        (b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}', "duplicate key 'dtype'"),
    ],
)
def test_headers_that_are_not_strict_json_are_refused(tmp_path: Path, text: bytes, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        open_file(write(tmp_path / "x.safetensors", text))


@pytest.mark.parametrize("length", [2**64 - 1, 2**40, MAX_HEADER_BYTES + 1, 100])
def test_a_giant_header_is_refused_before_it_is_read(tmp_path: Path, length: int) -> None:
    """Failure test 20."""
    with pytest.raises(CheckpointError, match=f"a header of {length} bytes"):
        open_file(write(tmp_path / "x.safetensors", b"{}", length=length))


def test_a_giant_header_in_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """Failure test 20."""
    path = write(tmp_path / "x.safetensors", b"{}", length=MAX_HEADER_BYTES + 1)
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=f"the limit is {MAX_HEADER_BYTES}"):
        open_file(path)


def test_a_file_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="too few"):
        open_file(tmp_path / "x.safetensors")


def _read_all(path: Path) -> None:
    file = open_file(path)
    for name in file.names():
        file.read(name)


def _original() -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}} | GOOD).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=damaged(_original(), len(_original())))
def test_damage_is_refused_and_never_allocates(tmp_path: Path, data: bytes) -> None:
    """Failure test 20."""
    check_refusal_or_success(_read_all, data, tmp_path / "x.safetensors", peak_bytes=1 << 20)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write(tmp_path / "one.safetensors", {"a": entry("F32", [1], 0, 4)}, struct.pack("<f", 1.0))
    write(tmp_path / "two.safetensors", {"b": entry("F32", [2], 0, 8)}, struct.pack("<2f", 2.0, 3.0))
    write_index(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    return tmp_path


def write_index(directory: Path, weight_map: Any) -> None:
    (directory / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_read_as_one(sharded: Path) -> None:
    reader = FileReader(sharded)
    tensors = open_safetensors(reader)
    assert isinstance(tensors, ShardedSafetensors)
    assert tensors.names() == {"a", "b"}
    assert tensors.shape("b") == (2,)
    assert tensors.read("b", slice(1, 2)) == [3.0]
    assert reader.hashes.keys() == {INDEX_FILE, "one.safetensors", "two.safetensors"}
    with pytest.raises(CheckpointError, match="tensor c is missing"):
        tensors.read("c")


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a": "one.safetensors", "b": "three.safetensors"}, "shard 'three.safetensors' is missing"),
        ({"a": "../one.safetensors"}, "plain name"),
        ({"a": "/etc/one.safetensors"}, "plain name"),
        ({"a": "sub/one.safetensors"}, "plain name"),
        ({"a": "..\\one.safetensors"}, "plain name"),
        ({"a": ".hidden.safetensors"}, "plain name"),
        ({"a": "one.safetensors\0.safetensors"}, "plain name"),
        ({"a": "one.bin"}, "plain name"),
        ({"a": 5}, "plain name"),
        ({}, "weight_map"),
        ([], "weight_map"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "one.safetensors: tensor 'b' is not in the shard"),
        ({"a": "one.safetensors", "c": "two.safetensors"}, "two.safetensors: tensor 'b' is not in the index"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(sharded: Path, weight_map: Any, named: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=named):
        open_safetensors(FileReader(sharded))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    """Failure test 20."""
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(UnsupportedError, match=rf"{name}: pickle"):
        open_safetensors(FileReader(tmp_path))


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=SINGLE_FILE):
        open_safetensors(FileReader(tmp_path))
