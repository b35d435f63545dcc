"""The issuer's keys: which are taken, and how long they live."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from server.auth import key_set
from server.auth.key_set import KeySet, KeySetError, read_keys, read_source

ALL = ("RS256", "PS256", "ES256", "ES384", "EdDSA")


def public(algorithm: Any, key: Any, kid: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return found | {"kid": kid} | more


@pytest.fixture(scope="module")
def keys() -> dict[str, dict[str, Any]]:
    return {
        "rsa": public(RSAAlgorithm, rsa.generate_private_key(65537, 2048), "rsa"),
        "short": public(RSAAlgorithm, rsa.generate_private_key(65537, 1024), "short"),
        "p256": public(ECAlgorithm, ec.generate_private_key(ec.SECP256R1()), "p256"),
        "p384": public(ECAlgorithm, ec.generate_private_key(ec.SECP384R1()), "p384"),
        "ed": public(OKPAlgorithm, ed25519.Ed25519PrivateKey.generate(), "ed"),
    }


def taken(algorithms: tuple[str, ...], *items: Any) -> set[tuple[str, str]]:
    return set(read_keys(json.dumps({"keys": items}).encode(), algorithms))


def test_each_kind_for_its_algorithms(keys: dict[str, dict[str, Any]]) -> None:
    every = (keys["rsa"], keys["p256"], keys["p384"], keys["ed"])
    assert taken(ALL, *every) == {
        ("rsa", "RS256"),
        ("rsa", "PS256"),
        ("p256", "ES256"),
        ("p384", "ES384"),
        ("ed", "EdDSA"),
    }
    assert taken(("RS256", "ES384"), *every) == {("rsa", "RS256"), ("p384", "ES384")}
    assert taken(ALL, keys["rsa"] | {"alg": "PS256"}) == {("rsa", "PS256")}


def test_what_is_not_for_us_is_left_out(keys: dict[str, dict[str, Any]]) -> None:
    good = keys["p256"]
    symmetric = {"kty": "oct", "kid": "o", "k": "AAAA"}
    without_id = {name: value for name, value in keys["rsa"].items() if name != "kid"}
    bad = [
        keys["short"],
        symmetric,
        symmetric | {"alg": "HS256"},
        without_id,
        keys["rsa"] | {"use": "enc"},
        keys["rsa"] | {"alg": "HS256"},
        keys["rsa"] | {"alg": "RSA-OAEP"},
        keys["rsa"] | {"alg": ["RS256"]},
        keys["rsa"] | {"kty": ["RSA"]},
        keys["rsa"] | {"n": "!"},
        keys["p256"] | {"kid": 7},
        keys["p256"] | {"kid": "wrong curve", "crv": "P-384"},
        {"kty": "EC", "kid": "empty", "crv": "P-256"},
        None,
        "key",
    ]
    assert taken(ALL, *bad, good) == {("p256", "ES256")}
    for item in bad:
        with pytest.raises(KeySetError, match="no key for the algorithms"):
            taken(ALL, item)


@given(
    st.binary(max_size=40)
    | st.recursive(st.none() | st.text(max_size=5), st.lists).map(lambda v: json.dumps(v).encode())
)
def test_garbage_is_no_key_set(data: bytes) -> None:
    with pytest.raises(KeySetError):
        read_keys(data, ALL)


class Source:
    """Answers with ``data``, or fails."""

    def __init__(self, data: bytes) -> None:
        self.data: bytes | None = data
        self.asked = 0
        self.now = 0.0

    def fetch(self, _: str) -> bytes:
        self.asked += 1
        if self.data is None:
            raise KeySetError("cannot be read")
        return self.data

    def set(self) -> KeySet:
        return KeySet("source", ALL, self.fetch, lambda: self.now)


async def test_the_source_is_asked_once_an_interval(keys: dict[str, dict[str, Any]]) -> None:
    source = Source(json.dumps({"keys": [keys["p256"]]}).encode())
    found = source.set()
    together = await asyncio.gather(*(found.find("p256", "ES256") for _ in range(10)))
    assert all(together)
    assert source.asked == 1
    for _ in range(10):
        assert await found.find("other", "ES256") is None
        assert await found.find("p256", "RS256") is None
    assert source.asked == 1
    source.data = json.dumps({"keys": [keys["p384"]]}).encode()
    source.now += key_set.MIN_INTERVAL_S
    assert await found.find("p384", "ES384")
    assert source.asked == 2
    assert await found.find("p256", "ES256") is None  # withdrawn


async def test_keys_outlive_their_issuer_for_a_day(keys: dict[str, dict[str, Any]]) -> None:
    source = Source(json.dumps({"keys": [keys["p256"]]}).encode())
    found = source.set()
    await found.refresh()
    for broken in (None, b"<html>", b'{"keys": []}'):
        source.data = broken
        source.now += 1000
        await found.refresh()
        assert await found.find("p256", "ES256")
    source.now += key_set.MAX_AGE_S
    assert await found.find("p256", "ES256") is None


async def test_an_error_nobody_thought_of_does_not_end_it(keys: dict[str, dict[str, Any]]) -> None:
    source = Source(json.dumps({"keys": [keys["p256"]]}).encode())
    broken = KeySet("source", ALL, lambda _: 1 / 0, lambda: source.now)  # type: ignore[arg-type,return-value]
    assert await broken.find("p256", "ES256") is None
    await broken.refresh()


def test_files_are_read_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(KeySetError, match="FileNotFoundError"):
        read_source(str(path))
    path.write_bytes(b"x" * key_set.MAX_BYTES)
    assert len(read_source(str(path))) == key_set.MAX_BYTES
    path.write_bytes(b"x" * (key_set.MAX_BYTES + 1))
    with pytest.raises(KeySetError, match="more than"):
        read_source(str(path))
