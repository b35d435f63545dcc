from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib import resources
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from export.pipeline import ExportRequest, export_model
from guard.bundle.manifest import Manifest
from guard.errors import BundleError

Json = dict[str, Any]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads((resources.files("guard.bundle") / "manifest.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture(scope="module")
def guard_manifest(tiny: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Json:
    out = tmp_path_factory.mktemp("schema") / "guard"
    export_model(ExportRequest(str(tiny), out, "guard", adapter=tiny_adapter))
    value: Json = json.loads((out / "manifest.json").read_bytes())
    return value


def test_real_manifests_are_valid(
    validator: Draft202012Validator, guard_manifest: Json, tiny: Path, tmp_path: Path
) -> None:
    validator.validate(guard_manifest)
    export_model(ExportRequest(str(tiny), tmp_path / "out", "instruct", "none", parity=False))
    validator.validate(json.loads((tmp_path / "out" / "manifest.json").read_bytes()))


def objects(value: Json, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all objects with fixed fields; maps with free keys are left out."""
    free = {"tools", "control", "categories"}
    found = [path]
    for key, item in value.items():
        if isinstance(item, dict) and key not in free and path[-1:] != ("files",) and key not in ("files", "adapter"):
            found += objects(item, (*path, key))
    return found


def changed(manifest: Json, path: tuple[str, ...], change: Callable[[Json], None]) -> Json:
    value = copy.deepcopy(manifest)
    target = value
    for key in path:
        target = target[key]
    change(target)
    return value


def test_schema_and_reader_agree_that_every_field_is_needed_and_no_other(
    validator: Draft202012Validator, guard_manifest: Json
) -> None:
    checked = 0
    for path in objects(guard_manifest):
        target = guard_manifest
        for key in path:
            target = target[key]
        mutants = [changed(guard_manifest, path, lambda item: item.update(surplus=1))]
        mutants += [changed(guard_manifest, path, methodcaller("pop", field)) for field in target]
        for mutant in mutants:
            assert not validator.is_valid(mutant), path
            with pytest.raises(BundleError):
                Manifest.from_json(json.dumps(mutant).encode())
            checked += 1
    assert checked > 60


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "other"),
        (("format_version",), 2),
        (("task",), "poetry"),
        (("guard",), None),
        (("graph", "interface"), "magic"),
        (("graph", "head_token_ids"), ["1"]),
        (("shape", "layers"), "2"),
        (("tokens", "stop"), None),
        (("parity", "mean_kl"), "low"),
        (("files",), {}),
    ],
)
def test_wrong_values_are_invalid(
    validator: Draft202012Validator, guard_manifest: Json, path: tuple[str, ...], value: object
) -> None:
    assert not validator.is_valid(changed(guard_manifest, path[:-1], lambda item: item.update({path[-1]: value})))


@pytest.mark.parametrize("name", ["../model.onnx", "a/b", "manifest.json", ".."])
def test_files_have_plain_names(validator: Draft202012Validator, guard_manifest: Json, name: str) -> None:
    record = {"sha256": "0" * 64, "bytes": 1}
    assert not validator.is_valid(changed(guard_manifest, ("files",), lambda item: item.update({name: record})))
