"""The failure tests live beside what they test; README.md lists them. This keeps the list honest."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.failure.claims import LAST, SLOW, TESTS, claimed, claims

README = Path(__file__).with_name("README.md")


def listed() -> dict[int, set[str]]:
    """Number to the files that the README names for it."""
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {int(number): set(re.findall(r"\(\.\./([^)]+)\)", files)) for number, files in rows}


def test_what_is_listed_is_claimed_by_tests_there() -> None:
    found = claims()
    assert {number: files - found[number] for number, files in listed().items() if files - found[number]} == {}
    assert all(listed().values())


def test_what_tests_claim_is_listed() -> None:
    assert sorted(claims().keys() - listed().keys()) == []


def test_every_number_has_tests() -> None:
    assert set(range(1, LAST + 1)) - listed().keys() == set()


def test_no_number_has_only_slow_tests() -> None:
    assert [number for number, files in claims().items() if all(file.startswith(SLOW) for file in files)] == []


def test_claims_are_read() -> None:
    assert claimed("Failure test 13. Failure tests 4, 5 and 6: more") == {13, 4, 5, 6}
    assert claimed(None) == claimed("A failure test") == set()
    assert max(claims()) <= LAST


def test_those_of_one_number_can_be_run() -> None:
    options = ["--collect-only", "--quiet", "-m", "failure_13", "tests/unit/guard/test_prompt.py"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=TESTS.parent, capture_output=True, text=True, check=True
    )
    assert "::test_special_tokens_in_a_text_add_no_control_token" in run.stdout
    assert "::test_prompt_is_byte_exact" not in run.stdout
