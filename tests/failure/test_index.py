"""The failure tests live beside what they test; README.md lists them. This keeps the list honest."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.failure.claims import LAST, claimed

TESTS = Path(__file__).resolve().parent.parent
README = Path(__file__).with_name("README.md")


def claims() -> dict[int, set[str]]:
    """Number to the files in which the docstring of a test, or of a module of tests, claims it."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_"):
                continue
            if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
                for number in claimed(ast.get_docstring(node)):
                    found[number].add(path.relative_to(TESTS).as_posix())
    return found


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


def test_the_input_and_output_faults_are_all_there() -> None:
    assert {11, 12, 13, 14, 15, 16, 22} <= listed().keys()


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
