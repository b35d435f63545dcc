"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2

from guard.client import convert, convert_generation
from guard.client.channel import DEFAULT_TIMEOUT_S, HEALTH_CHECK, POLL_S, ApiKey, open_channel
from guard.client.convert import Text
from guard.client.convert_policy import PolicyFields, read_policy
from guard.client.errors import GuardClientError, not_serving, typed_errors
from guard.client.generation import GenerationOptions, GenerationResult, Label, TagResult
from guard.client.generation_stream import GenerationStream
from guard.client.results import (
    Classification,
    ModelInfo,
    PolicyInfo,
    StreamOptions,
)
from guard.client.stream import Call, ClassificationStream
from guard.conversation import Target
from guard.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    moderation_pb2,
    moderation_pb2_grpc,
)


class GuardClient:
    """One channel to the server at ``address`` (``host:port``). Threads may share it. Close it, or use ``with``.

    ``credentials`` turns TLS on (``tls_credentials()``). ``api_key``, an API key or a token, says who calls; a function
    is asked before every call. ``timeout_s`` (seconds) is the deadline of every call that brings none of its own. Every
    method raises GuardClientError.
    """

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        api_key: ApiKey = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self._channel = open_channel(address, credentials, api_key)
        self._timeout_s = timeout_s
        self._moderation = moderation_pb2_grpc.ModerationServiceStub(self._channel)
        self._generation = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health_check = self._channel.unary_unary(**HEALTH_CHECK)

    def __enter__(self) -> GuardClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls in flight are cancelled."""
        self._channel.close()

    def classify(
        self,
        text: Text,
        *,
        policy: PolicyFields | None = None,
        policy_name: str = "",
        exact: bool = False,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Classification:
        """Judge the last message of ``text`` (a plain string is one user message) by its role.

        ``policy_name`` is one of ``list_policies()``, otherwise the server's default; ``policy`` goes before it, field
        by field. ``exact`` lets the model write its whole answer out, so that every category it lists is seen; slower.
        """
        request = convert.classify_request(text, policy, policy_name, exact, model, request_id)
        with typed_errors():
            response = self._moderation.Classify(request, timeout=self._deadline(timeout_s))
        return convert.read_classification(response)

    def batch_classify(
        self,
        texts: Sequence[Text],
        *,
        policy: PolicyFields | None = None,
        policy_name: str = "",
        exact: bool = False,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> tuple[Classification | GuardClientError, ...]:
        """Judge independent conversations. An item that failed is the error itself, in its place."""
        request = convert.batch_request(texts, policy, policy_name, exact, model, request_id)
        with typed_errors():
            response = self._moderation.BatchClassify(request, timeout=self._deadline(timeout_s))
        return convert.read_batch(response, len(request.requests))

    def stream_classify(
        self,
        messages: Text,
        deltas: Iterable[str],
        *,
        target: Target = Target.RESPONSE,
        policy: PolicyFields | None = None,
        policy_name: str = "",
        options: StreamOptions | None = None,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> ClassificationStream:
        """Judge the message after ``messages`` while ``deltas`` bring it, in whatever pieces.

        ``timeout_s`` is the deadline of the whole stream.
        """
        how = options or StreamOptions()
        start = convert.stream_start(messages, target, policy, policy_name, how, model, request_id)

        def connect(steps: Iterator[moderation_pb2.StreamClassifyRequest]) -> Call:
            call: Call = self._moderation.StreamClassify(steps, timeout=self._deadline(timeout_s))
            return call

        return ClassificationStream(connect, start, deltas)

    def moderated(
        self,
        messages: Text,
        deltas: Iterable[str],
        *,
        target: Target = Target.RESPONSE,
        policy: PolicyFields | None = None,
        policy_name: str = "",
        options: StreamOptions | None = None,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[str]:
        """``deltas``, less what may not be shown: text is held back until it was judged.

        Raises UnsafeTextError where the rest is unsafe, after all that may be shown.
        """
        stream = self.stream_classify(
            messages,
            deltas,
            target=target,
            policy=policy,
            policy_name=policy_name,
            options=options,
            model=model,
            request_id=request_id,
            timeout_s=timeout_s,
        )
        return stream.released()

    def generate(
        self,
        text: Text,
        options: GenerationOptions | None = None,
        *,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> GenerationResult:
        """Write the next message of ``text``, whole."""
        request = convert_generation.generate_request(text, options or GenerationOptions(), model, request_id)
        with typed_errors():
            response = self._generation.Generate(request, timeout=self._deadline(timeout_s))
        return convert_generation.read_generation(response)

    def stream_generate(
        self,
        text: Text,
        options: GenerationOptions | None = None,
        *,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> GenerationStream:
        """Write the next message of ``text`` piece by piece: iterate, then ask for ``result()``."""
        request = convert_generation.stream_generate_request(text, options or GenerationOptions(), model, request_id)
        return GenerationStream(self._generation.StreamGenerate(request, timeout=self._deadline(timeout_s)))

    def tag(
        self,
        text: Text,
        labels: Sequence[str | Label],
        *,
        instruction: str = "",
        calibrated: bool = True,
        model: str = "",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> TagResult:
        """Choose one of ``labels`` for ``text``, in one pass of the instruct model.

        ``instruction`` tells it what the labels are about; ``calibrated`` takes out what it prefers before it has read
        any text.
        """
        request = convert_generation.tag_request(text, labels, instruction, calibrated, model, request_id)
        with typed_errors():
            response = self._generation.Tag(request, timeout=self._deadline(timeout_s))
        return convert_generation.read_tag(response)

    def list_models(self, *, timeout_s: float | None = None) -> tuple[ModelInfo, ...]:
        """All models of the server, by name."""
        models: list[ModelInfo] = []
        token = ""
        while True:
            request = model_pb2.ListModelsRequest(page_token=token)
            with typed_errors():
                response = self._models.ListModels(request, timeout=self._deadline(timeout_s))
            models += map(convert.read_model, response.models)
            token = response.next_page_token
            if not token:
                return tuple(models)

    def list_policies(self, *, timeout_s: float | None = None) -> tuple[PolicyInfo, ...]:
        """The policies that a request can name, by name."""
        with typed_errors():
            response = self._moderation.ListPolicies(
                moderation_pb2.ListPoliciesRequest(), timeout=self._deadline(timeout_s)
            )
        return tuple(map(read_policy, response.policies))

    def get_model(self, name: str, *, timeout_s: float | None = None) -> ModelInfo:
        """One model by its name."""
        with typed_errors():
            response = self._models.GetModel(model_pb2.GetModelRequest(name=name), timeout=self._deadline(timeout_s))
        return convert.read_model(response.model)

    def is_serving(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the health service says SERVING for ``service`` ("" is the whole server)."""
        with typed_errors():
            request = health_pb2.HealthCheckRequest(service=service)
            response = self._health_check(request, timeout=self._deadline(timeout_s))
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    def wait_until_serving(self, service: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Return once the server serves; raises the last error, or ServerUnavailableError, after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            error: GuardClientError = not_serving()
            try:
                if self.is_serving(service, timeout_s=max(POLL_S, min(1.0, deadline - time.monotonic()))):
                    return
            except GuardClientError as failure:
                error = failure
            if time.monotonic() + POLL_S > deadline:
                raise error
            time.sleep(POLL_S)

    def _deadline(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s
