"""Envoy's messages (envoy.service.ext_proc.v3): read, and written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guard.errors import InvalidInputError
from server.ext_proc.replies import Reply
from server.ext_proc.v3 import external_processor_pb2 as ext_proc

#: Headers of ours; whoever else sends them is not believed.
PREFIX = "x-guardlet-"
PROMPT_VERDICT = PREFIX + "prompt-verdict"
VERDICT = PREFIX + "verdict"
CATEGORIES = PREFIX + "categories"
REQUEST_ID = "x-request-id"
_SET = ext_proc.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


def check_modes(request: Any) -> None:
    """Raises InvalidInputError unless Envoy sends bodies in the modes in which nothing leaves before it was judged."""
    modes, mode = request.protocol_config, ext_proc.ProcessingMode
    if modes.request_body_mode != mode.BUFFERED:
        raise InvalidInputError("processing_mode.request_body_mode", "expected BUFFERED")
    if modes.response_body_mode != mode.FULL_DUPLEX_STREAMED:
        raise InvalidInputError("processing_mode.response_body_mode", "expected FULL_DUPLEX_STREAMED")


def headers_of(message: Any) -> dict[str, str]:
    """Names in lower case to values; those that come more than once are joined with commas."""
    return _joined(message.headers)


def trailers_of(message: Any) -> dict[str, str]:
    """The same of trailers."""
    return _joined(message.trailers)


def _joined(headers: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for header in headers.headers:
        value = header.value or header.raw_value.decode("latin-1")
        name = header.key.lower()
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def mutation(headers: Mapping[str, str], remove: tuple[str, ...] = ()) -> Any:
    """A HeaderMutation that sets ``headers``, but for empty values, and removes ``remove``."""
    options = [
        ext_proc.HeaderValueOption(
            header=ext_proc.HeaderValue(key=key, raw_value=value.encode("ascii")), append_action=_SET
        )
        for key, value in headers.items()
        if value
    ]
    return ext_proc.HeaderMutation(set_headers=options, remove_headers=remove)


def forged(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The names among ``headers`` that are only ours to set."""
    return tuple(name for name in headers if name.startswith(PREFIX))


def request_headers(headers: Mapping[str, str], remove: tuple[str, ...]) -> Any:
    """Let the request's headers pass."""
    return ext_proc.ProcessingResponse(request_headers=ext_proc.HeadersResponse(response=_common(headers, remove)))


def request_body(headers: Mapping[str, str]) -> Any:
    """Let the request's body pass."""
    return ext_proc.ProcessingResponse(request_body=ext_proc.BodyResponse(response=_common(headers, ())))


def response_headers(headers: Mapping[str, str], remove: tuple[str, ...]) -> Any:
    """Let the answer's headers pass."""
    return ext_proc.ProcessingResponse(response_headers=ext_proc.HeadersResponse(response=_common(headers, remove)))


def response_body(data: bytes, end: bool) -> Any:
    """The next piece of the answer's body."""
    streamed = ext_proc.StreamedBodyResponse(body=data, end_of_stream=end)
    common = ext_proc.CommonResponse(body_mutation=ext_proc.BodyMutation(streamed_response=streamed))
    return ext_proc.ProcessingResponse(response_body=ext_proc.BodyResponse(response=common))


def response_trailers(headers: Mapping[str, str], remove: tuple[str, ...]) -> Any:
    """Let the answer's trailers pass."""
    return ext_proc.ProcessingResponse(
        response_trailers=ext_proc.TrailersResponse(header_mutation=mutation(headers, remove))
    )


def immediate(reply: Reply, prompt: str, request_id: str) -> Any:
    """``reply`` instead of whatever else the client would have got. ``prompt``: the verdict on the request."""
    headers = {
        "content-type": "application/json",
        PROMPT_VERDICT: prompt,
        VERDICT: reply.verdict,
        CATEGORIES: reply.categories,
        REQUEST_ID: request_id,
    }
    return ext_proc.ProcessingResponse(
        immediate_response=ext_proc.ImmediateResponse(
            status={"code": reply.status}, headers=mutation(headers), body=reply.data, details="guardlet"
        )
    )


def _common(headers: Mapping[str, str], remove: tuple[str, ...]) -> Any:
    return ext_proc.CommonResponse(header_mutation=mutation(headers, remove))
