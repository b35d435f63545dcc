"""Guardlet as a KServe predictor: ``python -m deploy.kserve.predictor``, with KServe's options and GUARD_* variables.

docs/scaling.md says how it is deployed and what KServe does not hand on.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_interceptor.exceptions import GrpcException
from kserve import InferRequest, InferResponse, Model, ModelServer, model_server
from kserve.errors import InvalidInput

from deploy.kserve import tensors
from guard.errors import InvalidInputError
from guard.v1 import moderation_pb2
from server.embedded import Embedded, Headers, in_words, worded
from server.invocation import Refused
from server.settings import Settings
from server.settings_sources import load_settings


class GuardletModel(Model):  # type: ignore[misc]  # kserve has no types
    """The guard as one model. It works on an event loop of its own, as KServe makes its loop after the models."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name)
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="guardlet", daemon=True)
        self._embedded: Embedded | None = None

    def open(self) -> None:
        """Load the models; raises what loading raises."""
        self._thread.start()
        self._embedded = asyncio.run_coroutine_threadsafe(Embedded.open(self._settings), self._loop).result()
        self.ready = True

    def close(self) -> None:
        """Finish what is in flight, and free everything."""
        if self._embedded is not None:
            asyncio.run_coroutine_threadsafe(self._embedded.close(), self._loop).result()
            self._embedded = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def load(self) -> bool:
        """KServe calls it for a model that is not ready. There is nothing that it could do: the engine heals itself."""
        return bool(self.ready)

    def start(self) -> None:
        """It is ready already, which KServe would set here."""

    async def healthy(self) -> bool:
        """What ModelReady says."""
        return self._embedded is not None and self._embedded.healthy

    def get_input_types(self) -> list[dict[str, Any]]:
        """Of ModelMetadata."""
        return tensors.INPUTS

    def get_output_types(self) -> list[dict[str, Any]]:
        """Of ModelMetadata."""
        return tensors.OUTPUTS

    async def predict(
        self,
        payload: Any,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """The verdicts of all rows, or an error: one row that cannot be judged fails all, as there is no place for its
        error beside the verdicts of others. KServe's errors are a status and a text; details are said in words.
        """
        if not isinstance(payload, InferRequest):
            raise InvalidInput("inputs: expected a request of the Open Inference Protocol, version 2")
        try:
            answer = await self._classify(tensors.batch_request(payload), list((headers or {}).items()))
        except InvalidInputError as error:
            raise InvalidInput(f"{error.reason}: {error}") from None
        except Refused as refused:
            raise _error(refused.code.value[0], in_words(refused.status)) from None
        for row, result in enumerate(answer.results):
            if result.HasField("error"):
                failed = result.error
                retry_s = failed.retry_delay.ToTimedelta().total_seconds() if failed.HasField("retry_delay") else None
                raise _error(failed.code, worded(failed.reason, f"row {row}: {failed.message}", retry_s))
        return tensors.infer_response(answer, self.name, payload.use_binary_outputs)

    async def _classify(
        self, request: moderation_pb2.BatchClassifyRequest, headers: Headers
    ) -> moderation_pb2.BatchClassifyResponse:
        if self._embedded is None:
            raise _error(grpc.StatusCode.UNAVAILABLE.value[0], "UNAVAILABLE: shutting down")
        call = self._embedded.unary("BatchClassify", request.SerializeToString(), headers)
        answer = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))
        assert isinstance(answer, moderation_pb2.BatchClassifyResponse)
        return answer


def _error(number: int, text: str) -> Exception:
    """What KServe makes this status of; InvalidInput is 400 over REST, where all others are 500."""
    code = next(found for found in grpc.StatusCode if found.value[0] == number)
    return InvalidInput(text) if code is grpc.StatusCode.INVALID_ARGUMENT else GrpcException(text, code)


def main() -> int:
    """Serve until SIGTERM; returns the exit status."""
    model = GuardletModel(model_server.args.model_name, load_settings({}, os.environ))
    model.open()
    try:
        ModelServer(workers=1).start([model])
    finally:
        model.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
