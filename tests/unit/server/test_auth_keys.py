from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from server.auth.keys import find, is_hash, is_key, key_hash, new_key


def test_keys_are_random_and_long() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(is_key(key) and len(key) == 46 for key in made)


def test_the_hash_is_sha256() -> None:
    key = new_key()
    assert key_hash(key) == "sha256:" + hashlib.sha256(key.encode()).hexdigest()
    assert is_hash(key_hash(key))
    assert not is_hash(key)


def test_the_owner_of_a_key() -> None:
    keys = [new_key() for _ in range(3)]
    owners = {key_hash(key): f"owner {index}" for index, key in enumerate(keys)}
    assert [find(key, owners) for key in keys] == ["owner 0", "owner 1", "owner 2"]
    assert find(new_key(), owners) is None
    assert find(keys[0], {}) is None


@given(st.text(max_size=60))
def test_what_is_no_key_of_ours_is_never_found(text: str) -> None:
    """Not even with its hash in the file: a weak key cannot be put into use."""
    try:
        owners = {key_hash(text): "somebody"}
    except UnicodeEncodeError:
        return
    assert find(text, owners) == ("somebody" if is_key(text) else None)
