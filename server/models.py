"""ModelService: which models there are; loading and unloading where the operator allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc.aio

from guard.bundle import read_manifest
from guard.classifier import Classifier
from guard.errors import InvalidInputError
from guard.v1 import model_pb2, model_pb2_grpc
from server import convert
from server.entries import Down, Entry
from server.errors import AdminDisabledError
from server.registry import Registry
from server.settings import Settings

MAX_PAGE_SIZE = 1000
_Context = grpc.aio.ServicerContext[Any, Any]


class ModelService(model_pb2_grpc.ModelServiceServicer):
    """The servicer; errors that it raises are mapped by ``interceptors.errors``."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings

    async def ListModels(  # noqa: N802 - gRPC's name
        self, request: model_pb2.ListModelsRequest, context: _Context
    ) -> model_pb2.ListModelsResponse:
        """The models in the order of their names; a page token is the last name of the page before."""
        if not 0 <= request.page_size <= MAX_PAGE_SIZE:
            raise InvalidInputError("page_size", f"expected 0 to {MAX_PAGE_SIZE}")
        left = [entry for entry in self._registry.listed() if entry.name > request.page_token]
        page = left[: request.page_size or MAX_PAGE_SIZE]
        return model_pb2.ListModelsResponse(
            models=[self._shown(entry) for entry in page],
            next_page_token=page[-1].name if len(page) < len(left) else "",
        )

    async def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: _Context
    ) -> model_pb2.GetModelResponse:
        """One model."""
        if not request.name:
            raise InvalidInputError("name", "is required")
        return model_pb2.GetModelResponse(model=self._shown(self._registry.entry(request.name)))

    async def LoadModel(  # noqa: N802
        self, request: model_pb2.LoadModelRequest, context: _Context
    ) -> model_pb2.LoadModelResponse:
        """Admin: load a bundle below the model directory, in the place of another model if one is named."""
        directory = self._bundle_directory(request.bundle)
        task = read_manifest(directory).task  # the loader verifies the bundle before it uses any of it
        entry = await self._registry.load(directory, task, request.name, request.replace)
        return model_pb2.LoadModelResponse(model=self._shown(entry))

    async def UnloadModel(  # noqa: N802
        self, request: model_pb2.UnloadModelRequest, context: _Context
    ) -> model_pb2.UnloadModelResponse:
        """Admin: unload a model after its requests."""
        self._check_admin()
        if not request.name:
            raise InvalidInputError("name", "is required")
        await self._registry.unload(request.name)
        return model_pb2.UnloadModelResponse()

    def _shown(self, entry: Entry | Down) -> model_pb2.Model:
        shown = convert.model(entry)
        shown.is_default = self._registry.is_default(entry.name)
        if isinstance(entry, Entry):
            shown.requests = entry.users.count
            shown.kv_bytes_in_use = entry.model.engine.kv_bytes_in_use
            cache = entry.model.cache if isinstance(entry.model, Classifier) else None
            if cache is not None and cache.limits.entries:
                shown.verdict_cache.hits = cache.hits
                shown.verdict_cache.misses = cache.misses
                shown.verdict_cache.entries = len(cache)
                shown.verdict_cache.bytes = cache.memory_bytes
        return shown

    def _check_admin(self) -> None:
        if not self._settings.admin:
            raise AdminDisabledError("the server was started without the admin calls")

    def _bundle_directory(self, bundle: str) -> Path:
        """The directory asked for, which must exist and lie below the model directory, links followed."""
        self._check_admin()
        if self._settings.model_directory is None or not bundle or "\0" in bundle:
            raise InvalidInputError("bundle", "expected a path relative to the server's model directory")
        root = self._settings.model_directory.resolve()
        directory = (root / bundle).resolve()
        if root not in directory.parents or not directory.is_dir():
            raise InvalidInputError("bundle", "is no directory below the server's model directory")
        return directory
