"""``make demo`` shows what it promises and notices when something unsafe passes."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from guard.client import GuardClient
from guard.verdict import Verdict
from tests.e2e.conftest import ROOT
from tools import demo


def test_the_demo(serve_flags: list[str]) -> None:
    command = [sys.executable, "-m", "tools.demo", *serve_flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if re.search(r" (SAFE|UNSAFE) +\d\.\d{3} ", line)]
    assert len(rows) == len(demo.ITEMS)
    for row, item in zip(rows, demo.ITEMS, strict=True):
        if item.must_block:
            assert " UNSAFE " in row
    shown = done.stdout.partition("==> StreamClassify")[2].partition("==>")[0]
    assert "the text is unsafe" in shown
    assert "Once upon a time" in shown
    assert "pipe bomb" not in shown and "gunpowder" not in shown
    assert "INVALID_ARGUMENT" in done.stdout and "messages[0].content" in done.stdout
    assert "the server drained and exited 0" in done.stdout


def test_the_demo_fails_when_something_unsafe_passes(
    serve_flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harmless = demo.prompt("How long do I boil an egg?", Verdict.UNSAFE, must_block=True)
    monkeypatch.setattr(demo, "ITEMS", (harmless,))
    monkeypatch.setattr(sys, "argv", ["demo", *serve_flags])
    assert demo.main() == 1
    assert "not blocked: user: How long do I boil an egg?" in capsys.readouterr().err


def test_the_demo_notices_a_stream_that_is_not_stopped(client: GuardClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert not demo.show_stream(client, demo.STORY, "secret project")
    assert "not held back" in capsys.readouterr().err
