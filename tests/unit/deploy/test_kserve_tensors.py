"""deploy/kserve/tensors: what comes in becomes a question unchanged, or is refused by the tensor's name."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

kserve = pytest.importorskip("kserve")

from kserve.protocol.grpc import grpc_predict_v2_pb2 as v2  # noqa: E402

from deploy.kserve import tensors  # noqa: E402
from guard.errors import InvalidInputError  # noqa: E402
from guard.v1 import moderation_pb2  # noqa: E402

_TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5)


def asked(raw: bool = False, parameters: dict[str, str] | None = None, **given: Any) -> Any:
    """An InferRequest as KServe makes it: each tensor is its rows, or the whole of shape, elements and datatype."""
    request = v2.ModelInferRequest(model_name="guard", id="r-1")
    for name, tensor in given.items():
        shape, elements, datatype = tensor if isinstance(tensor, tuple) else ([len(tensor)], tensor, "BYTES")
        encoded = [element if isinstance(element, bytes) else element.encode() for element in elements]
        added = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            request.raw_input_contents.append(b"".join(struct.pack("<I", len(each)) + each for each in encoded))
        else:
            added.contents.bytes_contents.extend(encoded)
    for name, value in (parameters or {}).items():
        request.parameters[name].string_param = value
    return kserve.InferRequest.from_grpc(request)


@given(_TEXTS, st.booleans(), st.booleans())
def test_texts_come_through_as_they_are(texts: list[str], raw: bool, column: bool) -> None:
    shape = [len(texts), 1] if column else [len(texts)]
    batch = tensors.batch_request(asked(raw, text=(shape, texts, "BYTES")))
    assert [[turn.content for turn in item.messages] for item in batch.requests] == [[text] for text in texts]
    assert {item.messages[0].role for item in batch.requests} == {moderation_pb2.ROLE_USER}
    assert batch.request_id == "r-1"


@given(_TEXTS)
def test_conversations_come_through_as_they_are(texts: list[str]) -> None:
    roles = ["user", "assistant"]
    turns = [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]
    (item,) = tensors.batch_request(asked(messages=[json.dumps(turns)])).requests
    assert [turn.content for turn in item.messages] == texts
    assert [turn.role for turn in item.messages[:2]] == [1, 2][: len(texts)]


def test_roles_and_policy() -> None:
    batch = tensors.batch_request(
        asked(text=["a", "b"], role=["assistant", "user"], parameters={"policy_name": "strict"})
    )
    assert [item.messages[0].role for item in batch.requests] == [2, 1]
    assert {item.policy_name for item in batch.requests} == {"strict"}


def test_rest_may_nest_and_has_text() -> None:
    for data in (["a", "b"], [["a"], ["b"]]):
        tensor = kserve.InferInput("text", [2, 1], "BYTES", data)
        batch = tensors.batch_request(kserve.InferRequest("guard", [tensor]))
        assert [item.messages[0].content for item in batch.requests] == ["a", "b"]


@pytest.mark.parametrize(
    ("request_", "field", "problem"),
    [
        (asked(), "inputs", "expected one of"),
        (asked(text=["a"], messages=["[]"]), "inputs", "expected one of"),
        (asked(text=["a"], image=["b"]), "inputs", "a tensor that is not one of text, messages, role"),
        (asked(text=([1], ["a"], "INT8")), "text", "BYTES"),
        (asked(text=([], ["a"], "BYTES")), "text", "shape [], expected [N] or [N, 1]"),
        (asked(text=([1, 2], ["a", "b"], "BYTES")), "text", "shape [1, 2], expected [N] or [N, 1]"),
        (asked(text=([-1], ["a"], "BYTES")), "text", "shape [-1]"),
        (asked(text=([0], [], "BYTES")), "text", "shape [0]"),
        (asked(text=([2], ["a"], "BYTES")), "text", "1 elements, the shape says 2"),
        (asked(text=["a"] * 1025), "text", "1025 rows, the limit is 1024"),
        (asked(text=[b"\xff"]), "text", "UTF-8"),
        (asked(text=["a"], role=["user", "user"]), "inputs", "different numbers of rows"),
        (asked(text=["a"], role=["system"]), "role[0]", "expected one of user, assistant"),
        (asked(messages=["[]"], role=["user"]), "role", "goes with text"),
        (asked(messages=["{}"]), "messages[0]", "a list"),
        (asked(messages=["[1]"]), "messages[0][0]", "an object"),
        (asked(messages=["[", "[]"]), "messages[0]", "JSON list"),
        (asked(messages=['[{"role": "user", "role": "user"}]']), "messages[0]", "no key twice"),
        (asked(messages=['[{"role": "user"}]']), "messages[0][0].content", "is required"),
        (asked(messages=['[{"role": "user", "content": "a", "name": "b"}]']), "messages[0][0].name", "no such field"),
        (asked(text=["a"], parameters={"polcy_name": "strict"}), "parameters", "1 not known"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(request_: Any, field: str, problem: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        tensors.batch_request(request_)
    assert caught.value.field == field
    assert problem in caught.value.problem


@given(st.binary(max_size=40))
def test_any_raw_bytes_are_text_or_refused(raw: bytes) -> None:
    tensor = kserve.InferInput("text", [1], "BYTES")
    tensor._raw_data = raw
    try:
        (item,) = tensors.batch_request(kserve.InferRequest("guard", [tensor])).requests
    except InvalidInputError as error:
        assert error.field == "text"
    else:
        encoded = item.messages[0].content.encode()
        assert raw == struct.pack("<I", len(encoded)) + encoded


def result(verdict: Any, action: Any, **scores: float) -> Any:
    found = moderation_pb2.ClassifyResponse(verdict=verdict, action=action, unsafe_score=sum(scores.values()))
    for code, score in scores.items():
        found.categories.add(code=code, score=score, flagged=score > 0.5)
    return moderation_pb2.BatchClassifyResult(response=found)


@pytest.mark.parametrize("binary", [False, True])
def test_the_answer_has_a_row_for_each_question(binary: bool) -> None:
    rows = [result(1, 1, S10=0.25, S2=0.125), result(2, 2, S2=0.75), result(2, 3)]
    answer = tensors.infer_response(
        moderation_pb2.BatchClassifyResponse(request_id="r-1", results=rows), "guard", binary
    )
    answer = kserve.InferResponse.from_grpc(answer.to_grpc())
    found = {output.name: output.as_numpy() for output in answer.outputs}
    assert list(found["verdict"]) == [b"safe", b"unsafe", b"unsafe"]
    assert list(found["action"]) == [b"allow", b"block", b"report"]
    assert list(found["unsafe_score"]) == [0.375, 0.75, 0.0]
    assert list(found["categories"]) == [b"S2", b"S10"]
    assert str(found["category_scores"].tolist()) == "[[0.125, 0.25], [0.75, nan], [nan, nan]]"
    assert list(found["flagged"]) == [b"", b"S2", b""]


def test_a_verdict_that_was_not_given_is_no_answer() -> None:
    with pytest.raises(KeyError):
        tensors.infer_response(moderation_pb2.BatchClassifyResponse(results=[result(0, 0)]), "guard", False)
