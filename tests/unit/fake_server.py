"""A gRPC server in this process whose answers a test scripts: what the client meets, with no model behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from guard.v1 import generation_pb2_grpc, model_pb2_grpc, moderation_pb2, moderation_pb2_grpc

Handler = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class FakeServer:
    """``handlers`` maps a method name to what answers it; ``calls`` keeps every (method, request) that arrived."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    health: HealthServicer = field(default_factory=HealthServicer)
    address: str = ""

    def requests(self, method: str) -> list[Any]:
        """Every request of ``method``, in order."""
        return [request for name, request in self.calls if name == method]

    def handle(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        """Note the call and let the script answer."""
        self.calls.append((method, request))
        return self.handlers[method](request, context)


@contextmanager
def running(server: FakeServer, credentials: grpc.ServerCredentials | None = None) -> Iterator[FakeServer]:
    """``server`` on a free loopback port, while the block runs."""
    executor = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    moderation_pb2_grpc.add_ModerationServiceServicer_to_server(_Moderation(server), executor)
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_Generation(server), executor)
    model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(server), executor)
    health_pb2_grpc.add_HealthServicer_to_server(server.health, executor)
    if credentials is None:
        port = executor.add_insecure_port("127.0.0.1:0")
    else:
        port = executor.add_secure_port("127.0.0.1:0", credentials)
    server.address = f"127.0.0.1:{port}"
    server.health.set("", health_pb2.HealthCheckResponse.SERVING)
    executor.start()
    try:
        yield server
    finally:
        executor.stop(None).wait()


def judged(**changes: Any) -> moderation_pb2.ClassifyResponse:
    """A complete UNSAFE answer, with ``changes``."""
    response = moderation_pb2.ClassifyResponse(
        request_id="r-1",
        verdict=moderation_pb2.VERDICT_UNSAFE,
        unsafe_score=0.9,
        categories=[
            moderation_pb2.CategoryScore(code="S1", name="Violent Crimes", score=0.1, flagged=False),
            moderation_pb2.CategoryScore(code="S2", name="Non-Violent Crimes", score=0.8, flagged=True),
        ],
        model="fake-guard",
        usage=moderation_pb2.Usage(prompt_tokens=120, cached_tokens=80, completion_tokens=0),
        target=moderation_pb2.TARGET_PROMPT,
        mode=moderation_pb2.CLASSIFICATION_MODE_ONE_PASS,
        view=moderation_pb2.TEXT_VIEW_RAW,
        window=moderation_pb2.TextWindow(start=0, end=5, index=0, count=1),
        passes=1,
        policy_name="default",
        policy_digest="d1",
        action=moderation_pb2.ACTION_BLOCK,
        decided_by=moderation_pb2.DECIDED_BY_MODEL,
    )
    response.timings.total.FromMilliseconds(250)
    response.MergeFrom(moderation_pb2.ClassifyResponse(**changes))
    return response


def failing(code: grpc.StatusCode, message: str, *details: Message) -> Handler:
    """A handler that fails with a google.rpc.Status that has ``details``."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)

    def handler(request: Any, context: grpc.ServicerContext) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, message)

    return handler


class _Moderation(moderation_pb2_grpc.ModerationServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802  # gRPC's own naming
        return self._server.handle("Classify", request, context)

    def BatchClassify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("BatchClassify", request, context)

    def StreamClassify(self, requests: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        def noted() -> Iterator[Any]:
            for request in requests:
                self._server.calls.append(("StreamClassify", request))
                yield request

        context.send_initial_metadata(())
        yield from self._server.handlers["StreamClassify"](noted(), context)

    def ListPolicies(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("ListPolicies", request, context)


class _Generation(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def Generate(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("Generate", request, context)

    def StreamGenerate(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        yield from self._server.handle("StreamGenerate", request, context)

    def Tag(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("Tag", request, context)


class _Models(model_pb2_grpc.ModelServiceServicer):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("ListModels", request, context)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return self._server.handle("GetModel", request, context)
