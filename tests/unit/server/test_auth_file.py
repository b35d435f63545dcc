"""The file of callers, and that its published schema says the same as its reader."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from guard.errors import InvalidInputError
from server.auth import file
from server.auth.caller import Caller, Quota
from server.auth.file import load_callers, read_callers
from server.auth.keys import key_hash, new_key
from server.errors import SettingsError

VALIDATOR = jsonschema.Draft202012Validator(
    json.loads((Path(file.__file__).parent / "callers.schema.json").read_text(encoding="utf-8"))
)
HASH = key_hash("x")
OIDC = {"issuer": "https://i", "audience": "a", "jwks": "https://i/jwks"}


def read(value: Any, policies: tuple[str, ...] = ("default",)) -> file.Callers:
    return read_callers(yaml.safe_dump(value), policies, Path("/etc/guard"))


def test_a_whole_file() -> None:
    found = read(
        {
            "callers": {
                "news": {
                    "keys": [HASH, key_hash("y")],
                    "certificates": ["uri:spiffe://a/b", "dns:b", "subject:CN=b"],
                    "subjects": ["s"],
                    "policy": "lenient",
                    "services": ["moderation"],
                    "quota": {
                        "requests_per_minute": 60,
                        "bytes_per_minute": 1e6,
                        "concurrent": 2,
                        "tokens_per_minute": 500,
                    },
                },
                "root": {"admin": True},
            },
            "oidc": OIDC | {"algorithms": ["ES256", "EdDSA"], "claim": "azp", "leeway_s": 0, "refresh_s": 60},
        },
        ("default", "lenient"),
    )
    news = Caller("news", False, "lenient", Quota(60, 1e6, 2, 500), frozenset({"moderation"}))
    assert found.callers == {"news": news, "root": Caller("root", admin=True)}
    assert found.keys == {HASH: news, key_hash("y"): news}
    assert set(found.certificates) == {"uri:spiffe://a/b", "dns:b", "subject:CN=b"}
    assert found.subjects == {"s": news}
    assert found.policies == {"news": "lenient"}
    assert found.oidc is not None
    assert (found.oidc.algorithms, found.oidc.claim, found.oidc.refresh_s) == (("ES256", "EdDSA"), "azp", 60.0)
    assert found.oidc.leeway_s == 0


def test_the_example_of_the_documentation() -> None:
    text = (Path(file.__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    found = read_callers(example, ("lenient",))
    assert set(found.callers) == {"newsroom", "chat", "batch", "operator"}
    assert found.callers["operator"].admin
    assert VALIDATOR.is_valid(yaml.safe_load(example))


def test_nothing_is_nobody() -> None:
    assert read({}) == read({"callers": {}}) == file.Callers()


@pytest.mark.parametrize(
    ("jwks", "source"),
    [("keys.json", "/etc/guard/keys.json"), ("/k.json", "/k.json"), ("http://127.0.0.1:1/k", "http://127.0.0.1:1/k")],
)
def test_where_the_issuers_keys_are(jwks: str, source: str) -> None:
    found = read({"oidc": OIDC | {"jwks": jwks}}).oidc
    assert found is not None
    assert found.jwks == source


def caller(**fields: Any) -> dict[str, Any]:
    return {"callers": {"c": fields}}


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ([], "the file"),
        ({"caller": {}}, "caller"),
        ({"callers": []}, "callers"),
        ({"callers": {"a b": {}}}, "callers.a b"),
        ({"callers": {"c": None}}, "callers.c"),
        (caller(key=[HASH]), "callers.c.key"),
        (caller(keys=HASH), "callers.c.keys"),
        (caller(keys=["sha256:12"]), "callers.c.keys[0]"),
        (caller(keys=[HASH, HASH.upper()]), "callers.c.keys[1]"),
        (caller(keys=[7]), "callers.c.keys[0]"),
        (caller(certificates=["CN=x"]), "callers.c.certificates[0]"),
        (caller(certificates=["dns:"]), "callers.c.certificates[0]"),
        (caller(subjects=[""]), "callers.c.subjects[0]"),
        (caller(admin="yes"), "callers.c.admin"),
        (caller(policy=7), "callers.c.policy"),
        (caller(services=["all"]), "callers.c.services"),
        (caller(services=["moderation", 7]), "callers.c.services[1]"),
        (caller(quota={"tokens": 1}), "callers.c.quota.tokens"),
        (caller(quota={"requests_per_minute": 0.5}), "callers.c.quota.requests_per_minute"),
        (caller(quota={"bytes_per_minute": 0}), "callers.c.quota.bytes_per_minute"),
        (caller(quota={"bytes_per_minute": True}), "callers.c.quota.bytes_per_minute"),
        (caller(quota={"concurrent": 1.5}), "callers.c.quota.concurrent"),
        (caller(quota={"concurrent": 1e13}), "callers.c.quota.concurrent"),
        ({"oidc": {}}, "oidc.issuer"),
        ({"oidc": OIDC | {"audience": ""}}, "oidc.audience"),
        ({"oidc": OIDC | {"key": "x"}}, "oidc.key"),
        ({"oidc": OIDC | {"claim": ""}}, "oidc.claim"),
        ({"oidc": OIDC | {"algorithms": []}}, "oidc.algorithms"),
        ({"oidc": OIDC | {"algorithms": ["none"]}}, "oidc.algorithms"),
        ({"oidc": OIDC | {"algorithms": ["RS256", "HS256"]}}, "oidc.algorithms"),
        ({"oidc": OIDC | {"leeway_s": 301}}, "oidc.leeway_s"),
        ({"oidc": OIDC | {"refresh_s": 1}}, "oidc.refresh_s"),
    ],
)
def test_reader_and_schema_refuse_the_same(value: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(value)
    assert caught.value.field == field
    assert not VALIDATOR.is_valid(value)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"callers": {"a": {"keys": [HASH]}, "b": {"keys": [HASH]}}}, "callers.b.keys[0]"),
        (caller(keys=[HASH, HASH]), "callers.c.keys[1]"),
        (caller(subjects=["s"]), "callers.c.subjects"),
        (caller(policy="missing"), "callers.c.policy"),
        ({"oidc": OIDC | {"jwks": "http://issuer.example/k"}}, "oidc.jwks"),
        ({"oidc": OIDC | {"jwks": "file:///etc/passwd"}}, "oidc.jwks"),
        ({"oidc": OIDC | {"jwks": "ftp://127.0.0.1/k"}}, "oidc.jwks"),
    ],
)
def test_what_the_schema_cannot_say_is_refused_too(value: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(value)
    assert caught.value.field == field
    assert VALIDATOR.is_valid(value)


def test_a_key_in_the_clear_is_not_repeated(tmp_path: Path) -> None:
    key = new_key()
    path = tmp_path / "callers.yaml"
    path.write_text(f"callers: {{c: {{keys: [{key}]}}}}")
    with pytest.raises(SettingsError, match=r"callers\.c\.keys\[0\]: expected a hash") as caught:
        load_callers(path, ())
    assert key not in str(caught.value)


def test_keys_given_twice_and_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_callers(tmp_path / "missing.yaml", ())
    (tmp_path / "twice.yaml").write_text("callers: {c: {}, c: {admin: true}}")
    with pytest.raises(SettingsError, match="is given twice"):
        load_callers(tmp_path / "twice.yaml", ())
