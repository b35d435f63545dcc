from __future__ import annotations

import pytest

from export.quantize.profile import PROFILES, profile
from guard.errors import UnsupportedError


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"'int3': expected one of none, int8, int4"):
        profile("int3")


@pytest.mark.parametrize("name", PROFILES)
def test_the_manifest_says_how_each_part_is_stored(name: str) -> None:
    chosen = profile(name)
    described = chosen.quantization(head_pruned=False, rotation="some")
    assert (described.name, described.head, described.down_proj) == (name, chosen.head, chosen.down_proj)
    assert described.rotation == ("some" if chosen.rotate else "none")
    assert described.linears.startswith(chosen.linears)
    assert chosen.quantization(head_pruned=True, rotation="").head == "float32"


def test_linears_with_a_format_of_their_own() -> None:
    chosen = profile("int8")
    assert (chosen.form("q_proj"), chosen.form("v_proj")) == ("int8_rows", "int16_rows")
    assert chosen.form("down_proj") == "int8_groups"
