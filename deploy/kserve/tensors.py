"""The tensors of the Open Inference Protocol, version 2, to and from BatchClassify. N rows are N independent questions.

In, each BYTES of shape [N] or [N, 1], 1 to 1024 rows:
    text      one message a row; or instead of it
    messages  a JSON list a row: [{"role": "user", "content": "..."}, ...], the last one is judged
    role      of each text: "user" (as without it) or "assistant"

Out:
    verdict          BYTES [N]     "safe" or "unsafe"
    action           BYTES [N]     what the policy says to do: "allow", "block" or "report" (shadow mode)
    unsafe_score     FP64  [N]     as ClassifyResponse.unsafe_score
    categories       BYTES [K]     the codes of all categories that were judged, sorted
    category_scores  FP64  [N, K]  their scores in that order; NaN where a row was not judged for one
    flagged          BYTES [N]     the codes that the policy flags, joined by commas
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from kserve import InferInput, InferOutput, InferRequest, InferResponse

from guard.errors import InvalidInputError
from guard.tools.values import read_json
from guard.v1 import moderation_pb2
from server.moderation import MAX_BATCH
from server.openai_http.fields import Fields

_ROLES = {"user": moderation_pb2.ROLE_USER, "assistant": moderation_pb2.ROLE_ASSISTANT}
_VERDICTS = {moderation_pb2.VERDICT_SAFE: "safe", moderation_pb2.VERDICT_UNSAFE: "unsafe"}
_INPUTS = ("text", "messages", "role")
#: Of the request. The second is REST's, and KServe's own.
_PARAMETERS = ("policy_name", "binary_data_output")
INPUTS: list[dict[str, Any]] = [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in _INPUTS]
OUTPUTS: list[dict[str, Any]] = [
    {"name": "verdict", "datatype": "BYTES", "shape": [-1]},
    {"name": "action", "datatype": "BYTES", "shape": [-1]},
    {"name": "unsafe_score", "datatype": "FP64", "shape": [-1]},
    {"name": "categories", "datatype": "BYTES", "shape": [-1]},
    {"name": "category_scores", "datatype": "FP64", "shape": [-1, -1]},
    {"name": "flagged", "datatype": "BYTES", "shape": [-1]},
]


def batch_request(request: InferRequest) -> moderation_pb2.BatchClassifyRequest:
    """The question: one item a row. Raises InvalidInputError with the name of the tensor and the limit."""
    tensors = _tensors(request.inputs)
    if ("text" in tensors) == ("messages" in tensors):
        raise InvalidInputError("inputs", "expected one of the tensors text and messages")
    policy_name = _policy_name(request.parameters or {})
    batch = moderation_pb2.BatchClassifyRequest(request_id=request.id or "")
    for messages in _conversations(tensors):
        batch.requests.add(messages=messages, policy_name=policy_name)
    return batch


def infer_response(answer: moderation_pb2.BatchClassifyResponse, name: str, binary: bool) -> InferResponse:
    """The answer to a question whose items were all judged."""
    judged = [result.response for result in answer.results]
    scores = [{found.code: found.score for found in each.categories} for each in judged]
    codes = sorted({code for row in scores for code in row}, key=lambda code: (len(code), code))
    flagged = [",".join(found.code for found in each.categories if found.flagged) for each in judged]
    table = np.array([[row.get(code, math.nan) for code in codes] for row in scores], np.float64)
    outputs = {
        "verdict": _bytes(_VERDICTS[each.verdict] for each in judged),
        "action": _bytes(moderation_pb2.Action.Name(each.action).removeprefix("ACTION_").lower() for each in judged),
        "unsafe_score": np.array([each.unsafe_score for each in judged], np.float64),
        "categories": _bytes(codes),
        "category_scores": table.reshape(len(judged), len(codes)),
        "flagged": _bytes(flagged),
    }
    assert list(outputs) == [output["name"] for output in OUTPUTS]
    return InferResponse(answer.request_id, name, [_output(*named, binary) for named in outputs.items()])


def _tensors(inputs: Sequence[InferInput]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for tensor in inputs:
        name = tensor.name
        if name not in _INPUTS:
            raise InvalidInputError("inputs", f"a tensor that is not one of {', '.join(_INPUTS)}")
        if name in found:
            raise InvalidInputError(name, "is there twice")
        found[name] = _rows(tensor)
    if len({len(rows) for rows in found.values()}) > 1:
        raise InvalidInputError("inputs", "the tensors have different numbers of rows")
    return found


def _rows(tensor: InferInput) -> list[str]:
    if tensor.datatype != "BYTES":
        raise InvalidInputError(tensor.name, "expected the datatype BYTES")
    shape = list(tensor.shape)
    if len(shape) not in (1, 2) or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise InvalidInputError(tensor.name, f"shape {shape}, expected [N] or [N, 1]")
    if shape[0] > MAX_BATCH:
        raise InvalidInputError(tensor.name, f"{shape[0]} rows, the limit is {MAX_BATCH}")
    rows = list(_elements(tensor))
    if len(rows) != shape[0]:
        raise InvalidInputError(tensor.name, f"{len(rows)} elements, the shape says {shape[0]}")
    return rows


def _elements(tensor: InferInput) -> Iterator[str]:
    """Of whichever form they came in: raw bytes, gRPC's contents, or JSON."""
    raw = tensor._raw_data
    try:
        for element in _unpacked(raw) if raw is not None else _flat(tensor.data or []):
            yield element if isinstance(element, str) else bytes(element).decode()
    except (struct.error, TypeError, ValueError):  # UnicodeDecodeError is a ValueError
        raise InvalidInputError(tensor.name, "expected elements of text in UTF-8") from None


def _unpacked(raw: bytes) -> Iterator[bytes]:
    """Each element after its length, four bytes, little-endian."""
    place = 0
    while place < len(raw):
        (size,) = struct.unpack_from("<I", raw, place)
        place += 4 + size
        if place > len(raw):
            raise ValueError("cut off")
        yield raw[place - size : place]


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    """REST may nest the rows of [N, 1]."""
    for element in data:
        if isinstance(element, list):
            yield from element
        elif isinstance(element, str | bytes):
            yield element
        else:
            raise TypeError


def _policy_name(parameters: Mapping[str, Any]) -> str:
    """KServe hands on gRPC's parameters as InferParameter, REST's as JSON."""
    if unknown := set(parameters) - set(_PARAMETERS):
        raise InvalidInputError("parameters", f"{len(unknown)} not known; there are: {', '.join(_PARAMETERS)}")
    given: Any = parameters.get("policy_name", "")
    name = getattr(given, "string_param", given)
    if not isinstance(name, str):
        raise InvalidInputError("parameters.policy_name", "expected text")
    return name


def _conversations(tensors: Mapping[str, list[str]]) -> Iterator[list[moderation_pb2.Message]]:
    if "messages" in tensors:
        if "role" in tensors:
            raise InvalidInputError("role", "goes with text; messages have roles of their own")
        for row, conversation in enumerate(tensors["messages"]):
            yield list(_turns(conversation, f"messages[{row}]"))
        return
    roles = tensors.get("role", ["user"] * len(tensors["text"]))
    for row, (text, role) in enumerate(zip(tensors["text"], roles, strict=True)):
        yield [moderation_pb2.Message(role=_role(role, f"role[{row}]"), content=text)]


def _turns(text: str, where: str) -> Iterator[moderation_pb2.Message]:
    try:
        conversation = Fields({where: read_json(text)}, "")  # as a field, so that errors have its path
    except ValueError:
        raise InvalidInputError(where, "expected a JSON list of messages, no key twice") from None
    for turn in conversation.objects(where):
        turn.only(("role", "content"))
        role = _role(turn.need("role", str), turn.path("role"))
        yield moderation_pb2.Message(role=role, content=turn.need("content", str))


def _role(name: str, where: str) -> moderation_pb2.Role:
    if name not in _ROLES:
        raise InvalidInputError(where, f"expected one of {', '.join(_ROLES)}")
    return _ROLES[name]


def _bytes(texts: Any) -> np.ndarray[Any, Any]:
    return np.array([text.encode() for text in texts], np.object_)


def _output(name: str, values: np.ndarray[Any, Any], binary: bool) -> InferOutput:
    output = InferOutput(name, list(values.shape), "FP64" if values.dtype == np.float64 else "BYTES")
    output.set_data_from_numpy(values, binary_data=binary)
    return output
