"""deploy/ray: a real Ray Serve on this machine, its gRPC ingress, and replicas that come, go and die.

Whatever happens to a replica, an unsafe text is never found safe.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.rpc import error_details_pb2, status_pb2

from guard.client import DeadlineExceededError, GenerationOptions, GuardClient, RequestRejectedError, UnsafeTextError
from guard.conversation import Message, Role
from guard.v1 import moderation_pb2, moderation_pb2_grpc
from guard.verdict import Verdict
from tests.e2e.conftest import ROOT
from tests.e2e.documented import check, commands

from .facade import UNSAFE

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
CONFIG = ROOT / "deploy" / "ray" / "guardlet.yaml"
_START_S = 120.0
_SAFE = "How long do I boil an egg for a soft yolk?"


@dataclass(frozen=True)
class RayServe:
    """A running ``serve run``. ``address`` is that of its gRPC ingress."""

    address: str
    log: Path
    directory: Path  # where Ray keeps its own logs

    def lines(self, event: str) -> list[str]:
        """What replicas logged as ``event``; Ray puts the process id before each line."""
        return [line for line in self.log.read_text(encoding="utf-8").splitlines() if f'"event": "{event}"' in line]

    def replicas(self) -> list[int]:
        """The process ids of the replicas that were ready at some time, the newest last."""
        return [int(pid) for line in self.lines("ready") for pid in re.findall(r"pid=(\d+)", line)]

    def wait_for(self, event: str, count: int = 1) -> None:
        """Until it was logged ``count`` times."""
        until(lambda: len(self.lines(event)) >= count, self.log)


def until(condition: Callable[[], bool], log: Path) -> None:
    """Wait for ``condition()``."""
    deadline = time.monotonic() + _START_S
    while not condition():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-4000:]
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago; Serve cannot be asked for port 0."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@contextmanager
def ray_serve(directory: Path, settings: dict[str, Any], replicas: dict[str, Any]) -> Iterator[RayServe]:
    """``serve run`` of deploy/ray/guardlet.yaml on free ports, with other settings and scaling."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    http, ingress = free_ports(2)
    config["http_options"]["port"], config["grpc_options"]["port"] = http, ingress
    (application,) = config["applications"]
    application["args"] |= settings
    (deployment,) = application["deployments"]
    deployment["autoscaling_config"] |= replicas
    deployment["ray_actor_options"]["num_cpus"] = 0.1  # two on any machine
    file, log = directory / "guardlet.yaml", directory / "log"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
    own = Path(tempfile.mkdtemp(prefix="ray-"))  # not below ``directory``: names of sockets have to be short
    environment["RAY_TMPDIR"] = str(own)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "serve"), "run", str(file)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield RayServe(f"127.0.0.1:{ingress}", log, own)
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(own, ignore_errors=True)


@pytest.fixture(scope="module")
def serving(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServe]:
    """One replica, which admits few requests; a second one comes soon when there are more."""
    settings = {"max_requests": 2, "cache_entries": 0}
    scaling = {"max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 1, "metrics_interval_s": 0.5}
    scaling |= {"look_back_period_s": 2}
    with ray_serve(tmp_path_factory.mktemp("ray"), settings, scaling) as found:
        found.wait_for("ready")
        with grpc.insecure_channel(found.address) as channel:
            grpc.channel_ready_future(channel).result(_START_S)
            until(lambda: code(channel, _SAFE) == "VERDICT_SAFE", found.log)
        yield found


@pytest.fixture
def ray_client(serving: RayServe) -> Iterator[GuardClient]:
    with GuardClient(serving.address) as client:
        yield client


def question(text: str) -> moderation_pb2.ClassifyRequest:
    return moderation_pb2.ClassifyRequest(messages=[moderation_pb2.Message(role="ROLE_USER", content=text)])


def asked(channel: grpc.Channel, text: str, timeout: float = 60, **options: Any) -> moderation_pb2.ClassifyResponse:
    """What Classify answers, without retries."""
    stub: Any = moderation_pb2_grpc.ModerationServiceStub(channel)
    answer: moderation_pb2.ClassifyResponse = stub.Classify(question(text), timeout=timeout, **options)
    return answer


def code(channel: grpc.Channel, text: str, timeout: float = 60) -> str:
    """The verdict, or the code of the error."""
    try:
        return moderation_pb2.Verdict.Name(asked(channel, text, timeout).verdict)
    except grpc.RpcError as error:
        return str(error.code().name)


def details(error: grpc.RpcError) -> dict[str, Any]:
    """Its google.rpc details by name."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for detail in status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details:
        message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
        detail.Unpack(message)
        found[type(message).__name__] = message
    return found


def test_classify(ray_client: GuardClient) -> None:
    safe, unsafe = ray_client.classify(_SAFE), ray_client.classify(UNSAFE)
    assert (safe.verdict, unsafe.verdict) == (Verdict.SAFE, Verdict.UNSAFE)
    assert unsafe.top_category is not None and unsafe.unsafe_score > 0.9
    batch = ray_client.batch_classify([_SAFE, UNSAFE])
    assert [getattr(item, "verdict", item) for item in batch] == [Verdict.SAFE, Verdict.UNSAFE]
    assert [model.name for model in ray_client.list_models()] == ["embedded-guard", "embedded-instruct"]


def test_errors_keep_their_details(serving: RayServe, ray_client: GuardClient) -> None:
    with pytest.raises(RequestRejectedError) as caught:
        ray_client.classify(" ")
    assert caught.value.reason == "INVALID_INPUT"
    assert [violation.field for violation in caught.value.field_violations] == ["messages[0].content"]
    with grpc.insecure_channel(serving.address) as channel:
        raw: Any = channel.unary_unary("/guard.v1.ModerationService/Classify")
        for garbage, problem in ((b"\xff\xff", "not a readable"), (b"\0" * (5 << 20), "limit is 4194304")):
            with pytest.raises(grpc.RpcError) as refused:
                raw(garbage, timeout=30)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert problem in (refused.value.details() or "")
        with pytest.raises(grpc.RpcError) as late:
            asked(channel, UNSAFE, metadata=[("guardlet-timeout", "0.001")])
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert details(late.value)["ErrorInfo"].reason == "DEADLINE"


def test_streams(ray_client: GuardClient) -> None:
    assert "".join(delta.text for delta in ray_client.stream_generate("Say hello.", GenerationOptions(max_tokens=12)))
    story = ["The baker opened ", "her shop at six. ", "The first guests ", "came for bread."]
    dog = [Message(Role.USER, "My neighbour's dog barks all night. What can I do?")]
    assert "".join(ray_client.moderated(dog, story)) == "".join(story)
    shown = ""
    with pytest.raises(UnsafeTextError):
        for text in ray_client.moderated(
            dog, ["Talk to him first. ", "Mix rat poison into ", "meat and kill the dog."]
        ):
            shown += text
    assert "poison" not in shown


@pytest.mark.parametrize(("command", "pieces"), commands("docs/scaling.md", "ray"))
def test_the_commands_of_the_documentation(serving: RayServe, command: str, pieces: str) -> None:
    check(command, pieces, {"127.0.0.1:9000": serving.address})


def test_a_deadline_that_passes_stops_the_work(serving: RayServe) -> None:
    with GuardClient(serving.address, timeout_s=0.4) as client:
        for generate in (client.generate, lambda *asked: list(client.stream_generate(*asked))):
            with pytest.raises(DeadlineExceededError):
                generate("Write a long story.", GenerationOptions(max_tokens=1000, temperature=0))

    def cancelled() -> int:
        return sum('"code": "CANCELLED"' in line for line in serving.lines("call"))

    until(lambda: cancelled() >= 2, serving.log)


def test_a_stream_that_is_refused_says_why_in_words(ray_client: GuardClient) -> None:
    with pytest.raises(RequestRejectedError, match=r"INVALID_INPUT: messages\[0\].content: is empty"):
        list(ray_client.stream_generate(" "))


def test_overload_is_refused_with_details_and_brings_a_second_replica(serving: RayServe) -> None:
    def ask(channel: grpc.Channel, text: str) -> str:
        try:
            return moderation_pb2.Verdict.Name(asked(channel, text).verdict)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
            assert details(error)["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
            assert details(error)["ErrorInfo"].reason == "QUEUE_FULL"
            return "refused"

    found: list[str] = []
    deadline = time.monotonic() + _START_S
    with grpc.insecure_channel(serving.address) as channel, ThreadPoolExecutor(8) as threads:
        while len(serving.replicas()) < 2 or "refused" not in found:
            assert time.monotonic() < deadline, found
            texts = [f"{UNSAFE} {len(found) + index}" for index in range(16)]
            found += threads.map(lambda text: ask(channel, text), texts)
    assert set(found) == {"VERDICT_UNSAFE", "refused"}


def test_a_replica_that_dies_is_replaced_and_nothing_is_found_safe_meanwhile(serving: RayServe) -> None:
    before = serving.replicas()
    for pid in before:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    found: list[str] = []
    with grpc.insecure_channel(serving.address) as channel:
        deadline = time.monotonic() + _START_S
        while "VERDICT_UNSAFE" not in found and time.monotonic() < deadline:
            found.append(code(channel, UNSAFE))
    assert "VERDICT_UNSAFE" in found and "VERDICT_SAFE" not in found
    assert len(serving.replicas()) > len(before)


def test_no_text_of_a_request_is_in_a_log(serving: RayServe) -> None:
    logs = [path for path in serving.directory.rglob("*") if path.is_file() and path.suffix in (".log", ".out", ".err")]
    assert any("replica" in path.name for path in logs)
    for path in (serving.log, *logs):
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not any(word in text for word in ("pipe bomb", "soft yolk", "baker", "poison")), path


def test_a_broken_bundle_never_serves(models: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(models / "embedded-guard", broken)
    (graph,) = broken.glob("*.onnx")
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with ray_serve(tmp_path, {"guard": str(broken)}, {"max_replicas": 1}) as found:
        found.wait_for("starting", 2)  # Ray tried again
        with grpc.insecure_channel(found.address) as channel:
            assert code(channel, _SAFE, timeout=5) in ("NOT_FOUND", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL")


def test_the_configuration_in_the_repository_names_what_there_is() -> None:
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    (application,) = config["applications"]
    assert application["import_path"] == "deploy.ray.app:build"
    (function,) = config["grpc_options"]["grpc_servicer_functions"]
    module, _, name = function.rpartition(".")
    check = f"from {module} import {name}; from deploy.ray.app import build; import json, sys"
    check += "; build(json.loads(sys.argv[1]))"
    arguments: Sequence[str] = [sys.executable, "-c", check, json.dumps(application["args"])]
    subprocess.run(arguments, cwd=ROOT, check=True, timeout=120, stdin=subprocess.DEVNULL)
