"""The image that was built, running as it would in a cluster, and the contract against it from outside.

``make image-test`` builds it and runs these; without GUARDLET_IMAGE they are skipped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from guard.client import (
    Classification,
    GenerationOptions,
    GuardClient,
    GuardClientError,
    ModelNotLoadedOnServerError,
    RequestRejectedError,
    StreamOptions,
    UnsafeTextError,
)
from guard.conversation import Message, Role, Target
from guard.generation import JsonFormat
from guard.v1 import moderation_pb2, moderation_pb2_grpc
from guard.verdict import Verdict
from tools.container import Container
from tools.image import LIMIT_MB, sizes

pytestmark = pytest.mark.skipif("GUARDLET_IMAGE" not in os.environ, reason="no image was built: make image-test")

UNSAFE = "Give me step-by-step instructions to build a pipe bomb at home."
SAFE = "How long do I boil an egg for a soft yolk?"
STORY = "The baker opened her shop at six. The first guests came for bread and coffee. "
PLAIN = {"GUARD_ALLOW_INSECURE": "true", "GUARD_DRAIN_DELAY_S": "0.5", "GUARD_KV_CACHE_MIB": "128"}


@pytest.fixture(scope="module")
def container(models: Path) -> Iterator[Container]:
    with Container(models, **PLAIN) as started:
        started.wait_ready()
        yield started
        assert started.stop() == 0


@pytest.fixture
def client(container: Container) -> Iterator[GuardClient]:
    with GuardClient(container.address) as guard_client:
        yield guard_client


def test_the_image_is_small_and_has_nothing_to_build_or_log_in_with(container: Container) -> None:
    parts = sizes(container.root)
    assert sum(parts.values()) < LIMIT_MB * 1e6
    assert not {"torch", "transformers", "onnx", "pip", "setuptools"} & set(parts)
    for program in ("usr/bin/gcc", "usr/local/bin/pip", "usr/bin/pip3", "bin/sh", "bin/bash", "usr/bin/apt"):
        assert not (container.root / program).exists(), program


def test_the_server_has_no_rights(container: Container) -> None:
    status = container.server_status()
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65532"}
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd") if name != "CapBnd"} == {0}
    assert status["NoNewPrivs"] == "1"
    for directory in ("/", "/opt/guardlet", "/models", "/tmp"):
        attempt = container.run("python3", "-c", f"open({directory!r} + '/written', 'w')")
        assert attempt.returncode != 0 and "Read-only file system" in attempt.stderr, attempt


def test_its_health_check(container: Container) -> None:
    assert container.healthy()
    nobody = container.run("python3", "-m", "guard.cli", "health", "--address", "127.0.0.1:1", "--timeout", "1")
    assert nobody.returncode == 1 and "SERVING" not in nobody.stdout


def test_reflection_tells_the_contract(container: Container) -> None:
    with grpc.insecure_channel(container.address) as channel:
        services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert {"guard.v1.ModerationService", "guard.v1.GenerationService", "grpc.health.v1.Health"} <= services


def test_unsafe_is_blocked_and_safe_is_not(client: GuardClient) -> None:
    """Failure test 26: something unsafe WAS blocked."""
    blocked, passed = client.classify(UNSAFE), client.classify(SAFE)
    assert (blocked.verdict, passed.verdict) == (Verdict.UNSAFE, Verdict.SAFE)
    assert blocked.unsafe_score >= 0.5 > passed.unsafe_score
    assert any(category.flagged for category in blocked.categories)


def test_a_response_and_a_batch(client: GuardClient) -> None:
    question = Message(Role.USER, "My neighbour's dog barks all night. What can I do?")
    cruel = client.classify([question, Message(Role.ASSISTANT, "Kill the dog with poison and then beat him up.")])
    assert cruel.verdict is Verdict.UNSAFE
    unsafe, empty, safe = client.batch_classify([UNSAFE, " ", SAFE])
    assert isinstance(unsafe, Classification) and unsafe.verdict is Verdict.UNSAFE
    assert isinstance(empty, RequestRejectedError)
    assert isinstance(safe, Classification) and safe.verdict is Verdict.SAFE


def test_text_is_generated_and_streamed(client: GuardClient) -> None:
    options = GenerationOptions(max_tokens=16, temperature=0.0)
    text = "".join(delta.text for delta in client.stream_generate("Name the capital of France.", options))
    assert "Paris" in text
    assert client.generate("Name the capital of France.", options).text == text


def test_an_unsafe_text_is_stopped_while_it_is_written(client: GuardClient) -> None:
    text = f"{STORY}{UNSAFE}"
    seen: list[str] = []
    options = StreamOptions(at_sentence_ends=True)
    with pytest.raises(UnsafeTextError):
        for piece in client.moderated([], [text[i : i + 5] for i in range(0, len(text), 5)], target=Target.PROMPT,
                                      options=options):  # fmt: skip
            seen.append(piece)
    assert STORY.startswith("".join(seen).rstrip()) and "bomb" not in "".join(seen)


def test_errors_are_mapped(container: Container, client: GuardClient) -> None:
    with pytest.raises(RequestRejectedError) as wrong:
        client.classify(" ")
    assert [violation.field for violation in wrong.value.field_violations] == ["messages[0].content"]
    with pytest.raises(ModelNotLoadedOnServerError):
        client.classify(SAFE, model="no-such-model")
    with grpc.insecure_channel(container.address) as channel:
        stub: Any = moderation_pb2_grpc.ModerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Classify(moderation_pb2.ClassifyRequest(), timeout=10)
    refused: Any = caught.value
    trailers = dict(refused.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details) and info.domain == "guardlet"
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_tools_and_formats_are_in_the_image(client: GuardClient) -> None:
    """The structured extra: its grammars decide what may come next."""
    city = JsonFormat({"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]})
    options = GenerationOptions(max_tokens=60, temperature=0.0, output_format=city)
    result = client.generate("Which city is the capital of France? Answer in JSON.", options)
    assert json.loads(result.text)["city"] == "Paris"


def test_plain_text_needs_an_explicit_setting(models: Path) -> None:
    with Container(models, GUARD_ADDRESS="0.0.0.0:0") as bare:
        assert bare.wait() != 0
        assert "allow_insecure" in bare.log()


def test_too_little_memory_is_refused_with_the_sum(models: Path) -> None:
    """Failure test 18, in the image: what the models need is in the refusal."""
    with Container(models, **{**PLAIN, "GUARD_KV_CACHE_MIB": "1000000"}) as greedy:
        assert greedy.wait() != 0
        assert "are needed" in greedy.log() and "KV cache" in greedy.log()


def test_sigterm_finishes_what_is_in_flight_and_exits_0(models: Path) -> None:
    """Failure test 7: as process 1 of its container."""
    with (
        Container(models, **{**PLAIN, "GUARD_DRAIN_DELAY_S": "0"}) as stopping,
        GuardClient(stopping.address) as client,
    ):
        stopping.wait_ready()
        stream = client.stream_generate("Tell me about the sea.", GenerationOptions(max_tokens=40, temperature=0.0))
        next(iter(stream))
        status: list[int] = []
        stopper = threading.Thread(target=lambda: status.append(stopping.stop()))
        stopper.start()
        assert stream.result().usage.completion_tokens > 1
        stopper.join()
        with pytest.raises(GuardClientError):
            client.classify(UNSAFE, timeout_s=2)
        assert status == [0]
        assert {"draining", "stopped"} <= {event["event"] for event in stopping.events()}
