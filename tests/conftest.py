"""Marks each test with the failure tests that its docstring, or its module's, claims: ``pytest -m failure_13``.

And takes hypothesis' deadline of 200 ms an example away: on a busy machine it fails tests that are right.
"""

from __future__ import annotations

import inspect

import pytest
from hypothesis import settings

from tests.failure.claims import LAST, claimed

settings.register_profile("guardlet", deadline=None)
settings.load_profile("guardlet")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks."""
    for number in range(1, LAST + 1):
        config.addinivalue_line("markers", f"failure_{number}: failure test {number} of tests/failure/README.md")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set them."""
    for item in items:
        if isinstance(item, pytest.Function):
            for number in claimed(inspect.getdoc(item.function)) | claimed(inspect.getdoc(item.module)):
                item.add_marker(f"failure_{number}")
