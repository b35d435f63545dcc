"""Paths to what answers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from guard.v1 import generation_pb2, model_pb2, moderation_pb2
from server import call, status
from server.call import Call
from server.convert_generation import GenerateRequest
from server.generation import GenerationService
from server.interceptors.around import Around
from server.invocation import Invocation, Invoker
from server.models import ModelService
from server.moderation import ModerationService
from server.openai_http import catalog, chat, completions, errors, moderations, page
from server.openai_http.errors import HttpError
from server.openai_http.exchange import Endpoint, Exchange, reading_gate
from server.openai_http.fields import put, read_body
from server.openai_http.settings import HttpSettings

#: What calls are counted, permitted and audited as.
_CLASSIFY = "/guard.v1.ModerationService/Classify"
_GENERATE = "/guard.v1.GenerationService/Generate"
_LIST_MODELS = "/guard.v1.ModelService/ListModels"
_GET_MODEL = "/guard.v1.ModelService/GetModel"


@dataclass(frozen=True)
class Parts:
    """What the facade stands on. ``interceptors`` are around every call, ``entrance`` around a look at ``stats``.

    ``moderated`` says whether the texts of a caller are judged although its request does not ask for it.
    """

    interceptors: Sequence[Around]
    entrance: Sequence[Around]
    moderation: ModerationService
    generation: GenerationService
    models: ModelService
    serving: Callable[[], bool]
    stats: Callable[[], dict[str, Any]]
    moderated: Callable[[str | None], bool]


def application(parts: Parts, settings: HttpSettings) -> Starlette:
    """The ASGI application."""
    facade, reading = _Facade(parts), reading_gate(settings)

    def route(method: str, path: str, answer: Callable[[Exchange], Awaitable[None]]) -> Route:
        return Route(path, Endpoint(answer, settings, reading), methods=[method])

    return Starlette(
        routes=[
            route("GET", "/", facade.page),
            route("GET", "/healthz", facade.health),
            route("GET", "/stats", facade.stats),
            route("GET", "/v1/models", facade.models),
            route("GET", "/v1/models/{model}", facade.model),
            route("POST", "/v1/moderations", facade.moderations),
            route("POST", "/v1/chat/completions", facade.chat_completions),
        ],
        exception_handlers={HTTPException: _no_route},
    )


class _Facade:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._calls, self._entrance = Invoker(parts.interceptors), Invoker(parts.entrance)
        self._page, self._page_headers = page.load()

    async def page(self, exchange: Exchange) -> None:
        await exchange.respond(200, "text/html; charset=utf-8", self._page, self._page_headers)

    async def health(self, exchange: Exchange) -> None:
        if not self._parts.serving():
            raise HttpError(503)
        await exchange.json({"status": "ok"})

    async def stats(self, exchange: Exchange) -> None:
        async def handler(request: None, context: Any) -> dict[str, Any]:
            return self._parts.stats()

        invocation = Invocation(exchange.headers)
        found = await self._entrance.invoke(_LIST_MODELS, b"", invocation, lambda this: None, handler)
        await exchange.json(found)

    async def models(self, exchange: Exchange) -> None:
        def decode(this: Call) -> Any:
            return model_pb2.ListModelsRequest()

        handler = self._parts.models.ListModels
        response = await self._calls.invoke(_LIST_MODELS, b"", Invocation(exchange.headers), decode, handler)
        await exchange.json(catalog.models(response))

    async def model(self, exchange: Exchange) -> None:
        def decode(this: Call) -> Any:
            request = model_pb2.GetModelRequest()
            put(request, "name", exchange.path_params["model"], "model")
            return request

        handler = self._parts.models.GetModel
        response = await self._calls.invoke(_GET_MODEL, b"", Invocation(exchange.headers), decode, handler)
        await exchange.json(catalog.model(response.model))

    async def moderations(self, exchange: Exchange) -> None:
        def decode(this: Call) -> moderation_pb2.BatchClassifyRequest:
            request = moderations.batch_request(read_body(exchange.body))
            request.request_id = exchange.request_id
            return request

        async def handler(request: moderation_pb2.BatchClassifyRequest, context: Any) -> Any:
            response = await self._parts.moderation.BatchClassify(request, context)
            failed = moderations.failure(response)
            if failed is not None:
                await status.abort(context, failed)
            return response

        response = await self._calls.invoke(_CLASSIFY, exchange.body, Invocation(exchange.headers), decode, handler)
        await exchange.json(moderations.answer(response), response.request_id)

    async def chat_completions(self, exchange: Exchange) -> None:
        """Whole or as a stream, which is not known before the call may come in and its body is read."""
        chunks: completions.Chunks | None = None

        def decode(this: Call) -> GenerateRequest:
            nonlocal chunks
            body = read_body(exchange.body)
            usage, stream = chat.wants_usage(body), chat.wants_stream(body)
            kind = generation_pb2.StreamGenerateRequest if stream else generation_pb2.GenerateRequest
            request = kind(request_id=exchange.request_id)
            chat.generate_request(body, request, self._parts.moderated(this.caller))
            if stream:
                chunks = completions.Chunks(max(1, request.choices), usage, request.logprobs)
            return request

        async def write(part: generation_pb2.StreamGenerateResponse) -> None:
            assert chunks is not None
            for chunk in chunks.of(part):
                await exchange.event(chunk, part.request_id)

        async def handler(request: GenerateRequest, context: Any) -> generation_pb2.GenerateResponse | None:
            if isinstance(request, generation_pb2.GenerateRequest):
                return await self._parts.generation.Generate(request, context)
            await self._parts.generation.StreamGenerate(request, context)
            return None

        invocation = Invocation(exchange.headers, write)
        response = await self._calls.invoke(_GENERATE, exchange.body, invocation, decode, handler)
        if response is None:
            await exchange.event("[DONE]")
            await exchange.end()
        else:
            await exchange.json(completions.completion(response), response.request_id)


async def _no_route(request: Request, error: Exception) -> Response:
    found = error.status_code if isinstance(error, HTTPException) else 404
    problem = errors.of_http(HttpError(found), call.new_request_id())
    return JSONResponse(problem.body, problem.status)
