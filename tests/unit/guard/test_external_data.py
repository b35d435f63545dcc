"""Failure test 19: where a graph reads its weights from is known before ONNX Runtime opens it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from guard.bundle.external_data import check_external_data
from guard.errors import BundleError


def tensor(location: str) -> TensorProto:
    made = TensorProto(name="w", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="offset", value="0")
    made.external_data.add(key="location", value=location)
    return made


def holding(graph: GraphProto) -> ModelProto:
    return ModelProto(ir_version=9, graph=graph)


def by_attribute(attribute: AttributeProto) -> ModelProto:
    return holding(GraphProto(node=[NodeProto(op_type="If", attribute=[attribute])]))


OUTSIDE = tensor("../x")
SPARSE = SparseTensorProto(values=OUTSIDE)
PLACES = {
    "initializer": holding(GraphProto(initializer=[tensor("data"), OUTSIDE])),
    "sparse initializer": holding(GraphProto(sparse_initializer=[SPARSE])),
    "sparse indices": holding(GraphProto(sparse_initializer=[SparseTensorProto(indices=OUTSIDE)])),
    "attribute": by_attribute(AttributeProto(name="value", t=OUTSIDE)),
    "attribute's list": by_attribute(AttributeProto(name="value", tensors=[OUTSIDE])),
    "sparse attribute": by_attribute(AttributeProto(name="value", sparse_tensor=SPARSE)),
    "sparse attribute's list": by_attribute(AttributeProto(name="value", sparse_tensors=[SPARSE])),
    "branch": by_attribute(AttributeProto(name="then_branch", g=GraphProto(initializer=[OUTSIDE]))),
    "branches": by_attribute(AttributeProto(name="b", graphs=[GraphProto(initializer=[OUTSIDE])])),
    "function": ModelProto(
        functions=[FunctionProto(node=[NodeProto(attribute=[AttributeProto(name="value", t=OUTSIDE)])])]
    ),
}


def check(path: Path, data: bytes) -> None:
    (path / "model.onnx").write_bytes(data)
    check_external_data(path / "model.onnx", {"model.onnx", "data"})


@pytest.mark.parametrize("place", PLACES)
def test_files_outside_are_found_wherever_a_tensor_may_be(tmp_path: Path, place: str) -> None:
    with pytest.raises(BundleError, match=r"^model\.onnx: reads weights from a file that the manifest does not list"):
        check(tmp_path, PLACES[place].SerializeToString())


def test_listed_files_and_none_are_fine(tmp_path: Path) -> None:
    check(
        tmp_path,
        holding(GraphProto(initializer=[tensor("data"), TensorProto(name="v", raw_data=b"x")])).SerializeToString(),
    )


@pytest.mark.parametrize("location", ["", "/etc/passwd", "./data", "data/../data", "other", "data\0"])
def test_other_ways_to_say_a_place_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(BundleError):
        check(tmp_path, holding(GraphProto(initializer=[tensor(location)])).SerializeToString())


@pytest.mark.parametrize("data", [b"", b"graph", b"\x3a\x7fx", b"\x0b", b"\x3a" + b"\xff" * 11, b"\x09\x00"])
def test_what_is_no_graph_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^model\.onnx: not an ONNX graph$"):
        check(tmp_path, data)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    graph = GraphProto()
    for _ in range(30):
        graph = by_attribute(AttributeProto(name="b", g=graph)).graph
    with pytest.raises(BundleError, match="not an ONNX graph"):
        check(tmp_path, holding(graph).SerializeToString())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_anything_else_is_an_error_of_ours(tmp_path: Path, data: bytes) -> None:
    try:
        check(tmp_path, PLACES["branch"].SerializeToString() + data)
    except BundleError:
        return
    raise AssertionError("the file outside was not found")
