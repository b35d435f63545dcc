"""The page in a real browser, without a screen, on a real server with the embedded models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .facade import UNSAFE, node, served


def test_the_page_judges_generates_and_shows_numbers(serve_flags: list[str], tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    screenshot = tmp_path / "page.png"
    with served([*serve_flags]) as (_, url):
        seen = node("page.mjs", url, browser, UNSAFE, str(screenshot))
    assert seen["safe"] == seen["byKeyboard"] == seen["response"] == "Safe"
    assert seen["unsafe"].startswith("Unsafe: S")
    assert seen["bars"] == seen["meters"] == 13
    assert seen["flagged"] >= 3, "a name, a score and a bar at least"
    assert seen["generated"]["text"] and not seen["generated"]["outcome"].startswith("Not")
    assert seen["blocked"]["outcome"].startswith("Blocked: the prompt is unsafe (S")
    assert seen["blocked"]["text"] == ""
    assert float(seen["numbers"]["tokens"]) > 0
    assert seen["numbers"]["first"].endswith(" ms")
    assert seen["numbers"]["success"] == "100.0 %"
    assert int(seen["numbers"]["calls"]) >= 4
    assert seen["order"][:4] == ["kind", "text", "Judge", "prompt"]
    assert seen["contextHidden"] is True
    assert seen["kept"] == 0 and seen["elsewhere"] == [] and seen["problems"] == []
    assert seen["overflow"] <= 0 and seen["unlabelled"] == 0
    assert min(seen["contrast"]) >= 4.5
    assert screenshot.stat().st_size > 10_000
