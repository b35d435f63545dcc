from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.graph.writer import ALIGNMENT, DATA_FILE, MODEL_FILE, GraphWriter


def test_pieces_may_come_in_any_order_and_end_up_in_one_matrix(tmp_path: Path) -> None:
    matrix = np.arange(35, dtype=np.float32).reshape(5, 7)
    with GraphWriter(tmp_path) as graph:
        by_rows = graph.matrix("rows", np.float32, [5, 7])
        by_columns = graph.matrix("columns", np.float32, [5, 7])
        for start, end in ((3, 5), (0, 3)):
            by_rows.write_rows(start, matrix[start:end])
        for start, end in ((4, 7), (0, 4)):
            by_columns.write_columns(start, matrix.T[start:end].T)
        graph.save("1")
    data = (tmp_path / DATA_FILE).read_bytes()
    for offset in (0, ALIGNMENT):
        assert data[offset : offset + matrix.nbytes] == matrix.tobytes()
    assert len(data) == 2 * ALIGNMENT


def test_every_external_offset_is_a_whole_page_and_recorded(tmp_path: Path) -> None:
    with GraphWriter(tmp_path) as graph:
        for index in range(3):
            graph.matrix(f"w{index}", np.int8, [ALIGNMENT + 1, 1]).write_rows(0, np.full((ALIGNMENT + 1, 1), index))
        graph.save("1")
    model = onnx.load(tmp_path / MODEL_FILE, load_external_data=False)
    offsets = []
    for tensor in model.graph.initializer:
        fields = {entry.key: entry.value for entry in tensor.external_data}
        assert fields["location"] == DATA_FILE
        assert int(fields["length"]) == ALIGNMENT + 1
        offsets.append(int(fields["offset"]))
    assert offsets == [0, 2 * ALIGNMENT, 4 * ALIGNMENT]


def test_a_constant_is_stored_once(tmp_path: Path) -> None:
    with GraphWriter(tmp_path) as graph:
        graph.constant("one", np.array(1, np.float32))
        graph.constant("one", np.array(1, np.float32))
        assert graph.has("one") and not graph.has("two")
        graph.save("1")
    assert len(onnx.load(tmp_path / MODEL_FILE).graph.initializer) == 1


def test_pieces_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with GraphWriter(tmp_path) as graph:
        slot = graph.matrix("w", np.float32, [4, 3])
        with pytest.raises(ValueError, match="row 3"):
            slot.write_rows(3, np.zeros((2, 3)))
        with pytest.raises(ValueError, match="row 0"):
            slot.write_rows(0, np.zeros((2, 4)))
        with pytest.raises(ValueError, match="column 2"):
            slot.write_columns(2, np.zeros((4, 2)))
        with pytest.raises(ValueError, match="column 0"):
            slot.write_columns(0, np.zeros((3, 2)))


def test_never_writes_over_an_existing_data_file(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).write_bytes(b"kept")
    with pytest.raises(FileExistsError):
        GraphWriter(tmp_path)
    assert (tmp_path / DATA_FILE).read_bytes() == b"kept"
