"""Which of the failure tests a docstring claims: "Failure test 13", "Failure tests 4 and 5"."""

from __future__ import annotations

import re

_CLAIM = re.compile(r"Failure tests? (\d+(?:(?:, | and )\d+)*)")
#: As many as the table in README.md may number.
LAST = 26


def claimed(docstring: str | None) -> set[int]:
    """The numbers in ``docstring``."""
    return {int(number) for numbers in _CLAIM.findall(docstring or "") for number in re.findall(r"\d+", numbers)}
