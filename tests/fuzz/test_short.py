"""A few seconds of each fuzz target; ``python -m tests.fuzz`` goes on with other seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.fuzz.targets import Findings, Fuzzer

_SECONDS = 1.5
TARGETS = (
    *("classify", "stream", "generate", "tag", "guard prompt", "chat prompt", "conversation", "custom categories"),
    *("tool calls", "tool schema", "output format", "token", "policies file", "callers file", "settings file"),
    *("manifest", "signature", "safetensors", "GGUF"),
)


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    made = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.close()


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_in_an_answer_or_an_error_with_a_name_goes_out(fuzzer: Fuzzer, target: str) -> None:
    """Failure tests 10, 11, 13, 19, 20 and 23."""
    found, seed, until = Findings(), 0, time.monotonic() + _SECONDS
    while time.monotonic() < until or seed < 20:
        fuzzer.one(target, seed, found)
        seed += 1
    assert found.findings == []
    assert found.ends[target]["answered"] > 0, found.ends


def test_all_targets_are_run(fuzzer: Fuzzer) -> None:
    assert tuple(fuzzer.targets) == TARGETS
