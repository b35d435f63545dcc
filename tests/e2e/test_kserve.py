"""deploy/kserve: the predictor under KServe's own server, with the embedded guard; and its manifest.

Whatever goes wrong, an unsafe text is never found safe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from tests.e2e.conftest import ROOT
from tests.e2e.documented import blocks, output

from .facade import UNSAFE
from .test_ray_serve import free_ports

kserve = pytest.importorskip("kserve")

from kserve.protocol.grpc import grpc_predict_v2_pb2 as v2  # noqa: E402
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as v2_grpc  # noqa: E402

SAFE = "How long do I boil an egg for a soft yolk?"
_START_S = 60.0


class Predictor:
    """``python -m deploy.kserve.predictor`` on free ports."""

    def __init__(self, log: Path, **variables: str) -> None:
        self.http, self.grpc = free_ports(2)
        command = [sys.executable, "-m", "deploy.kserve.predictor", "--model_name", "guard"]
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--http_port", str(self.http), "--grpc_port", str(self.grpc)],
                cwd=ROOT,
                env={**os.environ, "GUARD_THREADS": "1", "GUARD_CACHE_ENTRIES": "0", **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def post(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """What REST answers."""
        url = f"http://127.0.0.1:{self.http}/v2/models/guard/infer"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def predictor(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    """One that admits two requests at a time."""
    log = tmp_path_factory.mktemp("kserve") / "log"
    started = Predictor(log, GUARD_GUARD=str(models / "embedded-guard"), GUARD_MAX_REQUESTS="2")
    try:
        yield started
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) == 0
    finally:
        started.process.kill()
        started.process.wait()
    assert not any(word in log.read_text(encoding="utf-8") for word in ("pipe bomb", "soft yolk"))


@pytest.fixture(scope="module")
def stub(predictor: Predictor) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{predictor.grpc}") as channel:
        try:
            grpc.channel_ready_future(channel).result(_START_S)
        except grpc.FutureTimeoutError:
            pytest.fail(predictor.log.read_text(encoding="utf-8")[-4000:])
        yield v2_grpc.GRPCInferenceServiceStub(channel)


def infer(stub: Any, texts: list[str], shape: list[int] | None = None, **options: Any) -> dict[str, Any]:
    """The outputs of ModelInfer, by name."""
    request = v2.ModelInferRequest(model_name="guard")
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=shape or [len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    answer = kserve.InferResponse.from_grpc(stub.ModelInfer(request, **({"timeout": 60} | options)))
    return {output.name: output.as_numpy().tolist() for output in answer.outputs}


def test_infer(stub: Any) -> None:
    found = infer(stub, [SAFE, UNSAFE])
    assert found["verdict"] == [b"safe", b"unsafe"]
    assert found["action"] == [b"allow", b"block"]
    safe, unsafe = found["unsafe_score"]
    assert safe < 0.5 < unsafe
    assert found["categories"][0] == b"S1" and len(found["category_scores"][1]) == len(found["categories"])
    assert sum(found["category_scores"][1]) == pytest.approx(unsafe)
    assert found["flagged"][0] == b"" and found["flagged"][1]


def test_the_server_says_what_it_has(stub: Any) -> None:
    assert stub.ServerLive(v2.ServerLiveRequest()).live and stub.ServerReady(v2.ServerReadyRequest()).ready
    assert stub.ModelReady(v2.ModelReadyRequest(name="guard")).ready
    metadata = stub.ModelMetadata(v2.ModelMetadataRequest(name="guard"))
    assert [tensor.name for tensor in metadata.inputs] == ["text", "messages", "role"]
    answered = infer(stub, [SAFE])
    assert [tensor.name for tensor in metadata.outputs] == list(answered)


@pytest.mark.parametrize(
    ("texts", "shape", "said"),
    [
        ([SAFE, " "], None, "INVALID_INPUT: row 1: messages[0].content: is empty"),
        ([SAFE], [2], "INVALID_INPUT: text: 1 elements, the shape says 2"),
        ([SAFE] * 1025, None, "INVALID_INPUT: text: 1025 rows, the limit is 1024"),
        (["x" * (5 << 20)], None, "INVALID_INPUT: request: a message of"),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(
    stub: Any, texts: list[str], shape: list[int] | None, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        infer(stub, texts, shape)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(said)


def test_a_deadline_comes_as_metadata(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as late:
        infer(stub, [UNSAFE * 20], metadata=[("guardlet-timeout", "0.001")])
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (late.value.details() or "").startswith("DEADLINE: ")


def test_the_program_of_the_documentation(predictor: Predictor, stub: Any) -> None:
    (program,) = blocks("docs/scaling.md", "kserve", "python")
    assert output(program, {"127.0.0.1:8081": f"127.0.0.1:{predictor.grpc}"}).startswith(
        "verdict [b'safe' b'unsafe']\n"
    )


def test_a_deadline_that_passes_stops_the_work(predictor: Predictor, stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as late:
        infer(stub, [f"{UNSAFE * 50} {index}" for index in range(64)], timeout=0.5)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    deadline = time.monotonic() + _START_S
    while '"code": "CANCELLED"' not in predictor.log.read_text(encoding="utf-8"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_overload_is_refused_and_never_safe(stub: Any) -> None:
    def ask(index: int) -> str:
        try:
            (verdict,) = infer(stub, [f"{UNSAFE} {index}"])["verdict"]
            return str(verdict.decode())
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            assert (error.details() or "").startswith("QUEUE_FULL: ") and "; try again in " in (error.details() or "")
            return "refused"

    found: set[str] = set()
    deadline = time.monotonic() + _START_S
    with ThreadPoolExecutor(8) as threads:
        while "refused" not in found and time.monotonic() < deadline:
            found |= set(threads.map(ask, range(16)))
    assert found == {"unsafe", "refused"}


def test_rest_has_the_same_answers(predictor: Predictor, stub: Any) -> None:
    def tensor(*texts: str) -> dict[str, Any]:
        return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}

    status, answer = predictor.post(tensor(SAFE, UNSAFE))
    assert (status, answer["outputs"][0]["data"]) == (200, ["safe", "unsafe"])
    status, answer = predictor.post(tensor(" "))
    assert status == 400 and answer == {
        "error": "INVALID_INPUT: row 0: messages[0].content: is empty or only white space"
    }


def test_a_broken_bundle_never_serves(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models / "embedded-guard", broken)
    (graph,) = broken.glob("*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    started = Predictor(tmp_path / "log", GUARD_GUARD=str(broken))
    try:
        assert started.process.wait(_START_S) != 0
    finally:
        started.process.kill()
        started.process.wait()
    assert "Starting gRPC server" not in started.log.read_text(encoding="utf-8")


def unknown_fields(kind: str, value: Any, path: str = "") -> list[str]:
    """The fields of ``value`` that ``kind``, a type of the OpenAPI models of KServe and Kubernetes, does not have."""
    if kind.startswith("list["):
        return [bad for index, item in enumerate(value) for bad in unknown_fields(kind[5:-1], item, f"{path}[{index}]")]
    from kubernetes import client

    model = getattr(kserve, kind, None) or getattr(client, kind, None)
    if model is None:  # text, numbers, maps
        return []
    names = {name: field for field, name in model.attribute_map.items()}
    bad = [f"{path}.{name}" for name in value if name not in names]
    known = {name: part for name, part in value.items() if name in names}
    model(**{names[name]: part for name, part in known.items()})  # raises ValueError for what is required
    for name, part in known.items():
        bad += unknown_fields(model.openapi_types[names[name]], part, f"{path}.{name}")
    return bad


def test_the_manifest_is_an_inference_service_whose_settings_the_server_reads() -> None:
    manifest = yaml.safe_load((ROOT / "deploy" / "kserve" / "guardlet.yaml").read_text(encoding="utf-8"))
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert unknown_fields("V1beta1InferenceService", manifest) == []
    manifest["spec"]["predictor"]["minReplica"] = 1
    manifest["spec"]["predictor"]["containers"][0]["portz"] = []
    assert unknown_fields("V1beta1InferenceService", manifest) == [
        ".spec.predictor.minReplica",
        ".spec.predictor.containers[0].portz",
    ]
    from server.settings_sources import load_settings

    (container,) = manifest["spec"]["predictor"]["containers"]
    settings = load_settings({}, {each["name"]: each["value"] for each in container["env"]})
    assert manifest["spec"]["predictor"]["timeout"] >= settings.max_deadline_s + 30
    assert f"--grpc_port={container['ports'][0]['containerPort']}" in container["args"]
