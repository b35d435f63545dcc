"""The embedded models and one real server for all end-to-end tests."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guard.client import GuardClient
from tools.server_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def models() -> Path:
    """``models/``, built by ``make models``, which does nothing when it is up to date."""
    subprocess.run(["make", "--silent", "models"], cwd=ROOT, check=True, stdin=subprocess.DEVNULL)
    return ROOT / "models"


@pytest.fixture(scope="session")
def serve_flags(models: Path) -> list[str]:
    """Options of ``guard serve`` for both embedded models."""
    return ["--guard", str(models / "embedded-guard"), "--instruct", str(models / "embedded-instruct")]


@pytest.fixture(scope="session")
def server(serve_flags: list[str]) -> Iterator[ServerProcess]:
    """A server that all tests share; it must end well."""
    with ServerProcess(serve_flags) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture
def client(server: ServerProcess) -> Iterator[GuardClient]:
    """A client of the shared server."""
    with GuardClient(server.address) as guard_client:
        yield guard_client
