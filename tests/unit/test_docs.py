"""Documents that repeat the code say what the code says."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from itertools import chain
from pathlib import Path

from guard.cli import COMMANDS
from guard.v1.generation_pb2 import GenerateRequest
from server.settings import Settings
from server.settings_sources import PREFIX

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\S+) \|", text, flags=re.MULTILINE)
    assert rows == [(field.name, PREFIX + field.name.upper(), str(field.default).lower()) for field in fields(Settings)]


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"`guard {name}" not in text] == []


def test_every_field_of_a_generation_is_documented() -> None:
    text = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    first_cells = " ".join(re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(GenerateRequest.DESCRIPTOR.fields_by_name)


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            if not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []


def test_every_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    names = {re.split(r"[<>=\[ ;]", requirement)[0].lower().replace("_", "-") for requirement in wanted} - {"guardlet"}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - pinned == set()
