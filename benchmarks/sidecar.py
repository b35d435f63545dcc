"""What the moderation sidecar adds: the same requests through Envoy with and without it, in turns.

``python -m benchmarks.sidecar --guard models/embedded-guard`` needs Envoy (the dev extra). The LLM behind Envoy answers
at once, so all that is measured is Envoy and the guard. Texts are new, so no verdict comes from the cache, but for the
last row, which is what the sidecar costs beside the guard's passes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

from tools.envoy_process import EnvoyProcess
from tools.fake_llm import FakeLlm
from tools.server_process import ServerProcess

_QUESTION = "please tell me how a small boat with three sails finds its way home across the bay at night"
#: An answer of about 100 tokens.
_ANSWER = [f"{word} " for word in (_QUESTION.split() * 5)[:90]] + ["."]
_JUDGED, _PLAIN = "/v1/chat/completions", "/plain/v1/chat/completions"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guard", required=True, metavar="DIR", help="bundle of the guard model")
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="requests of each kind, with and without")
    options = parser.parse_args(arguments)
    with (
        ServerProcess(["--guard", options.guard], {"GUARD_EXT_PROC": "true", "GUARD_ACCESS_LOG": "false"}) as server,
        FakeLlm(says=[_ANSWER]) as llm,
        EnvoyProcess(int(server.address.rpartition(":")[2]), llm.port, _add_plain_route) as envoy,
    ):
        print("| | without, ms | with, ms | added, ms |\n|---|---|---|---|")
        for what, stream, first, new in (
            ("whole answer", False, False, True),
            ("stream, to its first text", True, True, True),
            ("stream, to its end", True, False, True),
            ("whole answer, both verdicts known", False, False, False),
        ):
            without, judged = measured(envoy.address, stream, first, new, options.pairs)
            print(f"| {what} | {without * 1e3:.1f} | {judged * 1e3:.1f} | {(judged - without) * 1e3:.1f} |")


def measured(address: str, stream: bool, first: bool, new: bool, pairs: int) -> tuple[float, float]:
    """Medians in seconds, without and with the sidecar; a first pair is not counted. ``new``: each request
    asks something else.
    """
    took: dict[str, list[float]] = {_PLAIN: [], _JUDGED: []}
    for number in range(pairs + 1):
        for path in (_PLAIN, _JUDGED) if number % 2 else (_JUDGED, _PLAIN):
            seconds = _one(address, path, f"{number * new}.{stream}.{first}.{new} {_QUESTION}?", stream, first)
            if number:
                took[path].append(seconds)
    return statistics.median(took[_PLAIN]), statistics.median(took[_JUDGED])


def _one(address: str, path: str, text: str, stream: bool, first: bool) -> float:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.connect()
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]})
    began = time.perf_counter()
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise RuntimeError(f"{path}: {answer.status}")
    if first:
        while b'"content":"' not in (line := answer.readline().replace(b'": "', b'":"')) or b'"content":""' in line:
            if not line:
                raise RuntimeError("the stream had no text")
    else:
        answer.read()
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


def _add_plain_route(config: dict[str, Any]) -> None:
    """A route to the same LLM that the sidecar does not see."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    kind = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
    manager["route_config"]["virtual_hosts"][0]["routes"].insert(
        0,
        {
            "match": {"path": _PLAIN},
            "route": {"cluster": "llm", "prefix_rewrite": _JUDGED},
            "typed_per_filter_config": {"guardlet": {"@type": kind, "disabled": True}},
        },
    )


if __name__ == "__main__":
    main()
