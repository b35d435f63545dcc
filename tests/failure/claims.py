"""Which of the failure tests a docstring claims: "Failure test 13", "Failure tests 4 and 5"."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
_CLAIM = re.compile(r"Failure tests? (\d+(?:(?:, | and )\d+)*)")
#: As many as the table in README.md may number.
LAST = 26
#: Files below TESTS that need torch, or minutes: they run with the other tests only.
SLOW = ("parity/", "e2e/test_eval.py")


def claimed(docstring: str | None) -> set[int]:
    """The numbers in ``docstring``."""
    return {int(number) for numbers in _CLAIM.findall(docstring or "") for number in re.findall(r"\d+", numbers)}


def claims() -> dict[int, set[str]]:
    """Number to the files, below TESTS, in which the docstring of a test, or of a module of tests, claims it."""
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
