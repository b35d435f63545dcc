"""``pytest tests/failure`` runs every test that claims a failure test, in the order of the numbers and named by them.

The tests stand beside what they test; of the longest, a part is run. They are collected from there, and get names like
``tests/failure/03::contract/test_admission.py::test_a_deadline_that_cannot_be_met_costs_no_step``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.failure.claims import SLOW, TESTS, claims

HERE = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Collect the files with such tests too, when this folder is asked for as a whole."""
    if any(Path(arg).resolve() == HERE for arg in config.args):
        files = sorted({file for files in claims().values() for file in files if not file.startswith(SLOW)})
        os.environ.setdefault("GUARDLET_SIMULATION_SEEDS", "50")
        config.args += [os.fspath(TESTS / file) for file in files]


@pytest.hookimpl(trylast=True)  # after tests/conftest.py has set the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what claims no number, put the rest in order and the numbers in front."""
    if not any(Path(arg).resolve() == HERE for arg in config.args):
        return
    chosen = [(numbers_of(item), item) for item in items if HERE in item.path.parents or numbers_of(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in {item for _, item in chosen}])
    items[:] = [item for _, item in sorted(chosen, key=lambda pair: pair[0])]
    for numbers, item in chosen:
        if numbers:
            label = "+".join(f"{number:02}" for number in numbers)
            # pytest has no public way to name an item that is there; its version is pinned in constraints.txt.
            item._id = type(item.id).parse(item.nodeid.replace("tests/", f"tests/failure/{label}::", 1))


def numbers_of(item: pytest.Item) -> list[int]:
    """Those that it is marked with, see tests/conftest.py."""
    marks = [mark.name for mark in item.iter_markers() if mark.name.startswith("failure_")]
    return sorted(int(name.removeprefix("failure_")) for name in marks)
