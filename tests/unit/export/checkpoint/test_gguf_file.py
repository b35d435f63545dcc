from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.checkpoint import gguf_file
from export.checkpoint.files import RandomAccessFile
from export.checkpoint.gguf_file import GgufFile
from guard.errors import CheckpointError, UnsupportedError

from .gguf_files import GgufContent
from .hostile import check_refusal_or_success, damaged

F32, F16, Q8_0, Q4_0 = (gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_0"))


def open_file(path: Path) -> GgufFile:
    return GgufFile(RandomAccessFile(path))


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def tensor_info(name: bytes, sizes: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def opened(tmp_path: Path, data: bytes) -> GgufFile:
    (tmp_path / "x.gguf").write_bytes(data)
    return open_file(tmp_path / "x.gguf")


@pytest.fixture
def content() -> GgufContent:
    random = np.random.default_rng(0)
    return GgufContent(
        {
            "a.text": "héllo",
            "a.number": 7,
            "a.float": 0.5,
            "a.flag": True,
            "a.texts": ["x", "", "yz"],
            "a.numbers": [1, 2, 3],
        },
        {
            "plain": (random.standard_normal((3, 5)).astype(np.float32), F32),
            "vector": (random.standard_normal(64).astype(np.float32), F32),
            "half": (random.standard_normal((4, 32)).astype(np.float32), F16),
            "eight": (random.standard_normal((50, 64)).astype(np.float32), Q8_0),
            "four": (random.standard_normal((2, 3, 96)).astype(np.float32), Q4_0),
            "row": (random.standard_normal(96).astype(np.float32), Q4_0),
        },
    )


def test_metadata(content: GgufContent, tmp_path: Path) -> None:
    metadata = open_file(content.write(tmp_path / "x.gguf")).metadata
    numbers = metadata.pop("a.numbers")
    assert isinstance(numbers, np.ndarray)
    assert numbers.tolist() == [1, 2, 3]
    assert metadata == {
        "general.architecture": "llama",
        "a.text": "héllo",
        "a.number": 7,
        "a.float": 0.5,
        "a.flag": True,
        "a.texts": ["x", "", "yz"],
    }


@pytest.mark.parametrize("chunk", [32, 1 << 20])
def test_tensors_and_row_slices(
    content: GgufContent, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_CHUNK_ITEMS", chunk)
    file = open_file(content.write(tmp_path / "x.gguf"))
    assert file.names() == content.tensors.keys()
    for name, (values, kind) in content.tensors.items():
        expected = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)
        assert file.shape(name) == values.shape
        np.testing.assert_array_equal(file.read(name), expected)
        np.testing.assert_array_equal(file.read(name, slice(1, 2)), expected[1:2])
        np.testing.assert_array_equal(file.read(name, slice(0, 0)), expected[:0])
    with pytest.raises(CheckpointError, match="tensor other is missing"):
        file.read("other")


def test_version_2_and_another_alignment(tmp_path: Path) -> None:
    start = header(1, 1, version=2) + text(b"general.alignment") + struct.pack("<II", 4, 8)
    data = start + tensor_info(b"t", (2,), 0, 0)
    data += bytes(-len(data) % 8) + struct.pack("<2f", 1.0, 2.0)
    assert opened(tmp_path, data).read("t").tolist() == [1.0, 2.0]


def test_text_longer_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "_WINDOW_BYTES", 16)
    value = b"x" * 1000
    pair = text(b"k") + struct.pack("<I", 8) + text(value)
    assert opened(tmp_path, header(values=1) + pair).metadata == {"k": value.decode()}


NUMBER = text(b"k") + struct.pack("<II", 4, 1)
HUGE = 2**64 - 1


@pytest.mark.parametrize(
    ("data", "error", "named"),
    [
        (b"GGU", CheckpointError, "not a GGUF file"),
        (b"GGML" + bytes(20), CheckpointError, "not a GGUF file"),
        (header(version=1), UnsupportedError, "version 1"),
        (header(version=4), UnsupportedError, "version 4"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnsupportedError, "big-endian"),
        (header(tensors=HUGE), CheckpointError, "limit"),
        (header(values=HUGE), CheckpointError, "limit"),
        (header(values=1), CheckpointError, "0 are left"),
        (header(values=1) + struct.pack("<Q", HUGE), CheckpointError, "name"),
        (header(values=1) + text(b"k") + struct.pack("<IQ", 8, HUGE), CheckpointError, "name|left"),
        (header(values=1) + text(b"k") + struct.pack("<IQ", 8, 2**20), CheckpointError, "0 are left"),
        (header(values=1) + text(b"k") + struct.pack("<I", 77), CheckpointError, "'k': unknown value type 77"),
        (header(values=1) + text(b"k") + struct.pack("<IB", 7, 2), CheckpointError, "'k': a truth value"),
        (header(values=1) + text(b"\xff") + struct.pack("<IB", 7, 1), CheckpointError, "UTF-8"),
        (header(values=1) + text(b"k") + struct.pack("<IIQ", 9, 4, HUGE), CheckpointError, "left"),
        (header(values=1) + text(b"k") + struct.pack("<IIQ", 9, 8, HUGE), CheckpointError, "'k'.*texts"),
        (header(values=1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**19), CheckpointError, "'k'.*texts"),
        (header(values=1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1), UnsupportedError, "'k'.*type 9"),
        (header(values=2) + NUMBER * 2, CheckpointError, "duplicate metadata key 'k'"),
        (header(tensors=1) + tensor_info(b"t", (), 0, 0), CheckpointError, "'t': 0 dimensions"),
        (header(tensors=1) + tensor_info(b"t", (1,) * 5, 0, 0), CheckpointError, "'t': 5 dimensions"),
        (header(tensors=1) + tensor_info(b"t", (4,), 10, 0), UnsupportedError, "'t': type Q2_K"),
        (header(tensors=1) + tensor_info(b"t", (4,), 99, 0), UnsupportedError, "'t': type 99"),
        (header(tensors=1) + tensor_info(b"t", (0,), 0, 0), CheckpointError, "'t': sizes"),
        (header(tensors=1) + tensor_info(b"t", (HUGE, HUGE), 0, 0), CheckpointError, "'t': sizes"),
        (header(tensors=1) + tensor_info(b"t", (33,), 2, 0), CheckpointError, "'t': sizes do not suit type Q4_0"),
        (header(tensors=1) + tensor_info(b"t", (2**40,), 0, 0), CheckpointError, "'t': ends beyond"),
        (header(tensors=1) + tensor_info(b"t", (1,), 0, 32) + bytes(64), CheckpointError, "'t': begins at"),
        (
            header(tensors=2) + tensor_info(b"t", (8,), 0, 0) + tensor_info(b"u", (8,), 0, 0) + bytes(96),
            CheckpointError,
            "'u': begins at",
        ),
        (
            header(tensors=2) + tensor_info(b"t", (8,), 0, 0) + tensor_info(b"t", (8,), 0, 32) + bytes(96),
            CheckpointError,
            "'t': is there twice",
        ),
        (
            header(values=1) + text(b"general.alignment") + struct.pack("<II", 4, 24),
            CheckpointError,
            "general.alignment",
        ),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, data: bytes, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=rf"x\.gguf.*{named}"):
        opened(tmp_path, data)


def test_a_header_above_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "MAX_HEADER_BYTES", 100)
    pair = text(b"k") + struct.pack("<I", 8) + text(b"x" * 100)
    with pytest.raises(CheckpointError, match="left for the header"):
        opened(tmp_path, header(values=1) + pair)


def test_a_broken_scale_gives_nan_and_no_warning(tmp_path: Path) -> None:
    data = header(1) + tensor_info(b"t", (32,), 8, 0)
    data += bytes(-len(data) % 32) + b"\x00\x7c" + bytes(32)  # infinity times zero
    assert np.isnan(opened(tmp_path, data).read("t")).all()


def _read_all(path: Path) -> None:
    file = open_file(path)
    for name in file.names():
        file.read(name)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    content = GgufContent(
        {"a.text": "x", "a.texts": ["x", "yz"], "a.numbers": [1, 2], "general.alignment": 32},
        {
            "plain": (np.ones((2, 3), np.float32), F32),
            "eight": (np.ones((2, 32), np.float32), Q8_0),
        },
    )
    return content.write(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_refused_and_never_allocates(original: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Failure test 20."""
    broken = data.draw(damaged(original, len(original)))
    check_refusal_or_success(_read_all, broken, tmp_path / "x.gguf", peak_bytes=1 << 20)
