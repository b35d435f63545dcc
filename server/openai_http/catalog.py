"""GET /v1/models: ModelService's answers as OpenAI's."""

from __future__ import annotations

from typing import Any

from guard.v1 import model_pb2
from server.openai_http.fields import EXTENSION, shown


def models(response: model_pb2.ListModelsResponse) -> dict[str, Any]:
    """The list."""
    return {"object": "list", "data": [model(item) for item in response.models]}


def model(item: model_pb2.Model) -> dict[str, Any]:
    """One model. ``created`` is 0: a bundle does not say when it was made."""
    return {"id": item.name, "object": "model", "created": 0, "owned_by": "guardlet", EXTENSION: shown(item)}
