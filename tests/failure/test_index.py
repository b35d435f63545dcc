"""The failure tests live beside what they test; README.md lists them. This keeps the list honest."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
README = Path(__file__).with_name("README.md")
_CLAIM = re.compile(r"Failure tests? (\d+(?:(?:, | and )\d+)*)")


def claims() -> dict[int, set[str]]:
    """Number to the files in which the docstring of a test, or of a module of tests, claims it."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_"):
                continue
            if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
                for numbers in _CLAIM.findall(ast.get_docstring(node) or ""):
                    for number in re.findall(r"\d+", numbers):
                        found[int(number)].add(path.relative_to(TESTS).as_posix())
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
