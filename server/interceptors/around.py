"""The base of the interceptors: run something around the handler of every guard.v1 method, and of Envoy's.

Health and reflection are left alone: they must answer when everything else is full or late.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import grpc
import grpc.aio

from server.auth.permissions import EXT_PROC

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # not generic at run time
#: ``behavior(request, context)``; for client streams, ``request`` is the iterator of requests.
Behavior = Callable[[Any, Context], Awaitable[Any]]
Wrap = Callable[[Behavior], Behavior]
OWN_METHODS = ("/guard.v1.", f"/{EXT_PROC}/")


class Around(grpc.aio.ServerInterceptor, ABC):
    """Handlers of guard.v1 are coroutines, streaming ones too (they ``await context.write``): an async generator that
    is cancelled may see GeneratorExit instead of CancelledError.
    """

    @abstractmethod
    def around(self, method: str, request: Any, context: Context) -> AbstractAsyncContextManager[None]:
        """A context manager that the handler of one call runs in. ``request`` is the bytes that came, which
        ``decode``, further in, makes a message of; for client streams, their iterator.
        """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler that is found for a call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(OWN_METHODS):
            return handler

        def wrap(behavior: Behavior) -> Behavior:
            async def wrapped(request: Any, context: Context) -> Any:
                async with self.around(method, request, context):
                    return await behavior(request, context)

            return wrapped

        return rewrap(handler, wrap)


def code_of(context: Context) -> grpc.StatusCode:
    """The status so far; gRPC has 0 for "nothing went wrong"."""
    code: Any = context.code()
    return code if isinstance(code, grpc.StatusCode) else grpc.StatusCode.OK


def rewrap(handler: Handler, wrap: Wrap, deserializer: Callable[[bytes], Any] | None = None) -> Handler:
    """A handler of the same kind around ``wrap(behavior)``, with another request deserializer if one is given."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    behavior = getattr(handler, kind)
    made: Handler = make(
        wrap(behavior),
        request_deserializer=deserializer or handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made
