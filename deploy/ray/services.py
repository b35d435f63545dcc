"""The methods of guard.v1 for Ray Serve's gRPC ingress, as bytes: nothing is parsed before the guard admits it."""

from __future__ import annotations

from typing import Any

import grpc

from server.embedded import METHODS, SERVICES


def add_guard_v1(servicer: Any, server: Any) -> None:
    """Register every method with ``server``; for ``grpc_servicer_functions``. Without deserializers, so that requests
    come as the bytes that were sent. Ray puts handlers of its own in the place of ``servicer``'s.
    """
    for service in SERVICES:
        handlers = {}
        for method in service.methods:
            found = METHODS[method.name]
            kinds = [
                "stream" if streaming else "unary" for streaming in (found.request_streaming, found.response_streaming)
            ]
            make = getattr(grpc, f"{kinds[0]}_{kinds[1]}_rpc_method_handler")
            handlers[method.name] = make(getattr(servicer, method.name))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
