"""The commands of docs/export.md do what it says, and the files of deploy/export can be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from export.batch import Batch, load_batch
from tests.e2e.conftest import ROOT

TEXT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- run -->\n```console\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    tuple(step.split("\n", maxsplit=1)) for text in BLOCKS for step in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
]
SCHEMA = json.loads((ROOT / "export" / "batch" / "exports.schema.json").read_text(encoding="utf-8"))


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    """In their order: each builds on those before."""
    assert len(COMMANDS) == 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command, expected in COMMANDS:
        assert "/tmp/guardlet-exports" in command
        command = command.replace("/tmp/guardlet-exports", str(tmp_path))
        done = subprocess.run(
            ["bash", "-c", f"({command}) 2>&1"],
            cwd=ROOT,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        for piece in expected.splitlines():
            assert piece in done.stdout


@pytest.mark.parametrize("name", ["exports.yaml", "embedded.yaml"])
def test_the_examples_are_what_the_schema_says(name: str) -> None:
    path = ROOT / "deploy" / "export" / name
    jsonschema.validate(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA)
    assert load_batch(path).jobs


def example(name: str) -> Batch:
    return load_batch(ROOT / "deploy" / "export" / name)


def test_the_example_of_the_real_models() -> None:
    assert [job.name for job in example("exports.yaml").jobs] == [
        "Llama-Guard-3-1B-int8",
        "Llama-Guard-3-1B-int8-packed",
        "Llama-Guard-3-1B-int4-small",
        "Llama-Guard-3-1B-int4-small-packed",
        "Llama-3.2-1B-Instruct-int8",
        "Llama-3.2-1B-Instruct-int4",
        "Llama-3.2-1B-Instruct-int4-small",
    ]


def test_the_example_of_the_embedded_models_is_what_the_makefile_exports(models: Path) -> None:
    jobs = {job.name: job for job in example("embedded.yaml").jobs}
    for name in ("embedded-guard", "embedded-instruct"):
        manifest = json.loads((models / name / "manifest.json").read_text(encoding="utf-8"))
        request = jobs[f"{name}-int8"].request
        assert (manifest["task"], manifest["quantization"]["name"]) == (request.task, request.quantization)
        assert (manifest["source"]["adapter"] is None) == (request.adapter is None)
        assert manifest["source"]["name"] == Path(request.source).name


def test_every_key_is_documented() -> None:
    keys = {*SCHEMA["properties"], *SCHEMA["properties"]["exports"]["items"]["properties"]}
    first_cells = " ".join(re.findall(r"^\| (`[^|]+) \|", TEXT, flags=re.MULTILINE))
    assert keys - set(re.findall(r"`(\w+)`", first_cells)) == set()
