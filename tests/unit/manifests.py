"""The manifests in deploy/, as tests read them."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import yaml

from server.settings import Settings
from server.settings_sources import load_settings

ROOT = Path(__file__).resolve().parent.parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
COMPOSE = ROOT / "deploy" / "compose.yaml"


def read(name: str) -> Any:
    """A file in deploy/kubernetes."""
    return yaml.safe_load((KUBERNETES / name).read_text(encoding="utf-8"))


def patched() -> dict[str, Any]:
    """The Deployment with the JSON patch of tls/ applied."""
    document = copy.deepcopy(read("deployment.yaml"))
    for operation in read("tls/patch.yaml"):
        *parents, last = operation["path"].strip("/").split("/")
        target = document
        for part in parents:
            target = target[int(part)] if isinstance(target, list) else target[part]
        if last == "-":
            target.append(operation["value"])
        else:
            assert (last in target) == (operation["op"] == "replace"), operation
            target[last] = operation["value"]
    return document  # type: ignore[no-any-return]


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(deployment)["containers"]
    return only  # type: ignore[no-any-return]


def settings_of(deployment: dict[str, Any], tmp_path: Path) -> Settings:
    """What `guard serve` makes of the ConfigMap and the container's variables."""
    (tmp_path / "guard.yaml").write_text(read("configmap.yaml")["data"]["guard.yaml"], encoding="utf-8")
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    image = dict(re.findall(r"\b(GUARD_\w+)=(\S+)", dockerfile.partition("ENV")[2]))
    variables = {entry["name"]: entry["value"] for entry in container(deployment).get("env", [])}
    return load_settings({}, image | variables, tmp_path / "guard.yaml")
