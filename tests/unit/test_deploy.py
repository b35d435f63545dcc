"""What is in deploy/ and the Dockerfile says what the server says: its settings, its drain. Memory: test_sizing.py.

Those who know the formats better are asked too, where they are installed (`make scan`): hadolint, kubernetes-validate,
trivy, and compose's own schema.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.policies import load_policies
from tests.unit.manifests import COMPOSE, KUBERNETES, ROOT, container, patched, pod, read, settings_of
from tools.image import missing


@pytest.mark.parametrize("deployment", [read("deployment.yaml"), patched()], ids=["plain", "tls"])
def test_the_configuration_is_read_by_the_server(deployment: dict[str, Any], tmp_path: Path) -> None:
    settings = settings_of(deployment, tmp_path)
    encrypted = deployment != read("deployment.yaml")
    assert (settings.tls is not None) is (settings.callers is not None) is encrypted
    assert settings.address == "0.0.0.0:50051"
    mounts = {mount["name"]: mount["mountPath"] for mount in container(deployment)["volumeMounts"]}
    assert {volume["name"] for volume in pod(deployment)["volumes"]} == mounts.keys()
    for file in (settings.guard, settings.policies, settings.tls_cert, settings.tls_key, settings.callers):
        assert file is None or any(file.is_relative_to(mount) for mount in mounts.values()), file
    (tmp_path / "policies.yaml").write_text(read("configmap.yaml")["data"]["policies.yaml"], encoding="utf-8")
    assert load_policies(tmp_path / "policies.yaml").default == "standard"


def test_only_scrapers_reach_the_metrics_and_only_clients_the_service(tmp_path: Path) -> None:
    deployment = read("deployment.yaml")
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
    settings = settings_of(deployment, tmp_path)
    assert settings.telemetry.metrics_host_port() == ("0.0.0.0", ports["metrics"])
    for name in ("service.yaml", "service-metrics.yaml"):
        (port,) = read(name)["spec"]["ports"]
        assert port["port"] == ports[port["targetPort"]]
    assert settings.http_address == "off"
    assert int(read("service-metrics.yaml")["metadata"]["annotations"]["prometheus.io/port"]) == ports["metrics"]
    allowed = {rule["ports"][0]["port"]: rule["from"] for rule in read("networkpolicy.yaml")["spec"]["ingress"]}
    assert allowed.keys() == set(ports.values()) - {ports["http"]}
    assert allowed[ports["metrics"]] == [{"namespaceSelector": {"matchLabels": {"guardlet-scraper": "true"}}}]
    (clients,) = allowed[ports["grpc"]]
    assert clients["podSelector"]["matchLabels"] == {"guardlet-client": "true"}


def with_variables_of(overlay: str) -> dict[str, Any]:
    """The Deployment as it is with the ConfigMap of ``overlay``."""
    variables, deployment = read(f"{overlay}/configmap.yaml"), read("deployment.yaml")
    assert {"configMapRef": {"name": variables["metadata"]["name"], "optional": True}} in container(deployment)[
        "envFrom"
    ]
    container(deployment)["env"] = [{"name": name, "value": value} for name, value in variables["data"].items()]
    return deployment  # type: ignore[no-any-return]


def test_http_is_spoken_where_the_network_lets_clients_in(tmp_path: Path) -> None:
    deployment = with_variables_of("http")
    settings = settings_of(deployment, tmp_path)
    ports = {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}
    assert settings.http_address == f"0.0.0.0:{ports['http']}"
    (rule,) = read("http/networkpolicy.yaml")["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [ports["http"]]
    assert rule["from"] == read("networkpolicy.yaml")["spec"]["ingress"][0]["from"]
    (port,) = read("http/service.yaml")["spec"]["ports"]
    assert port["targetPort"] == "http"


def test_spans_go_where_the_network_lets_them(tmp_path: Path) -> None:
    settings = settings_of(with_variables_of("tracing"), tmp_path)
    assert 0 < settings.trace_ratio < 1
    assert read("networkpolicy.yaml")["spec"]["egress"] == []
    names, spans = read("tracing/networkpolicy.yaml")["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert [settings.trace_endpoint.rpartition(":")[2]] == [str(port["port"]) for port in spans["ports"]]


def test_a_pod_that_goes_away_finishes_what_it_has_accepted(tmp_path: Path) -> None:
    deployment = read("deployment.yaml")
    settings = settings_of(deployment, tmp_path)
    patience = pod(deployment)["terminationGracePeriodSeconds"]
    assert patience >= settings.drain_delay_s + settings.grace_s + 5
    assert settings.max_deadline_s <= settings.grace_s
    probe = container(deployment)["readinessProbe"]
    assert settings.drain_delay_s >= probe["periodSeconds"] * 2  # endpoints change before the first refusal
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["guardlet"]
    grace = float(compose["environment"]["GUARD_GRACE_S"]) + float(compose["environment"]["GUARD_DRAIN_DELAY_S"])
    assert float(compose["stop_grace_period"].removesuffix("s")) >= grace + 5


def test_probes_ask_for_services_that_there_are() -> None:
    from server.app import MODELS, MODERATION

    plain = container(read("deployment.yaml"))
    assert plain["startupProbe"]["grpc"] == {"port": 50051}
    assert plain["readinessProbe"]["grpc"] == {"port": 50051, "service": MODERATION}
    assert plain["livenessProbe"]["grpc"] == {"port": 50051, "service": MODELS}
    encrypted = container(patched())
    for name, service in (("startupProbe", ""), ("readinessProbe", MODERATION), ("livenessProbe", MODELS)):
        command = encrypted[name]["exec"]["command"]
        assert "grpc" not in encrypted[name] and "--tls-ca" in command
        assert not service or command[-2:] == ["--service", service]


@pytest.mark.parametrize("deployment", [read("deployment.yaml"), patched()], ids=["plain", "tls"])
def test_the_pod_has_no_rights(deployment: dict[str, Any]) -> None:
    assert container(deployment)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(deployment)["automountServiceAccountToken"] is False
    assert pod(deployment)["securityContext"]["runAsUser"] == 65532
    assert all(mount["readOnly"] for mount in container(deployment)["volumeMounts"])
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["guardlet"]
    assert compose["read_only"] is True and compose["cap_drop"] == ["ALL"]
    assert compose["security_opt"] == ["no-new-privileges:true"] and compose["user"] == "65532:65532"
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])


def test_parts_find_each_other() -> None:
    labels = read("deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    for selector in (
        read("deployment.yaml")["spec"]["selector"]["matchLabels"],
        read("service.yaml")["spec"]["selector"],
        read("service-metrics.yaml")["spec"]["selector"],
        read("tracing/networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
        read("http/networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
        read("http/service.yaml")["spec"]["selector"],
        read("pdb.yaml")["spec"]["selector"]["matchLabels"],
        read("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector and selector.items() <= labels.items()
    assert read("hpa.yaml")["spec"]["scaleTargetRef"]["name"] == read("deployment.yaml")["metadata"]["name"]
    for directory in (KUBERNETES, KUBERNETES / "tracing", KUBERNETES / "http"):
        named = set(read(f"{directory}/kustomization.yaml")["resources"])
        assert named == {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}


def test_the_dockerfile_installs_what_is_locked_and_runs_as_nobody() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert text.count("--require-hashes --no-deps") == 2
    assert "USER 65532:65532" in text and "HEALTHCHECK" in text and "torch" not in text.partition("\n")[2]
    copied = {name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert {name.partition("/")[0] for name in copied - {"${MODELS}"}} <= kept


def test_every_package_of_the_image_has_hashes_and_the_versions_that_are_tested() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    lock = (ROOT / "deploy" / "requirements.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", lock, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^# ]", lock, re.MULTILINE)) > 20
    assert {name: version for name, version, _ in entries if pinned.get(name) != version} == {}
    assert "torch" not in {name for name, _, _ in entries}
    assert "://" not in lock and "--index" not in lock


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert missing(for_test=True) == "buildah is not installed"


def found(tool: str) -> str:
    """The path of ``tool``, of this environment or of the machine."""
    path = shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def rendered(directory: Path) -> list[Path]:
    """Every manifest on its own, those of tracing/ and http/, and the Deployment of tls/."""
    out = directory / "rendered"
    out.mkdir()
    (out / "deployment-tls.yaml").write_text(yaml.safe_dump(patched()), encoding="utf-8")
    for overlay in ("tracing", "http"):
        for name in read(f"{overlay}/kustomization.yaml")["resources"]:
            shutil.copy(KUBERNETES / overlay / name, out / f"{overlay}-{name}")
    names = read("kustomization.yaml")["resources"]
    return [*(KUBERNETES / name for name in names), *out.glob("*.yaml")]


def test_hadolint_finds_nothing() -> None:
    run = subprocess.run([found("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "")


def test_kubernetes_would_take_the_manifests(tmp_path: Path) -> None:
    command = [found("kubernetes-validate"), "--strict"]
    run = subprocess.run([*command, *map(str, rendered(tmp_path))], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    misspelt = (KUBERNETES / "pdb.yaml").read_text(encoding="utf-8").replace("maxUnavailable", "maxUnavailible")
    (tmp_path / "bad.yaml").write_text(misspelt, encoding="utf-8")
    assert subprocess.run([*command, str(tmp_path / "bad.yaml")], capture_output=True).returncode != 0


def test_compose_would_take_its_file(tmp_path: Path) -> None:
    command = [found("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    run = subprocess.run([*command, str(COMPOSE)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    misspelt = COMPOSE.read_text(encoding="utf-8").replace("read_only", "readonly")
    (tmp_path / "bad.yaml").write_text(misspelt, encoding="utf-8")
    assert subprocess.run([*command, str(tmp_path / "bad.yaml")], capture_output=True).returncode == 1


def test_trivy_finds_nothing(tmp_path: Path) -> None:
    trivy = found("trivy")
    scanned = tmp_path / "scanned"
    scanned.mkdir()
    for path in [*rendered(tmp_path), ROOT / "Dockerfile"]:
        shutil.copy(path, scanned)
    scan = [trivy, "config", "--skip-check-update", "--quiet", "--exit-code", "1", str(scanned)]
    run = subprocess.run(scan, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    deployment = read("deployment.yaml")
    container(deployment)["securityContext"]["privileged"] = True
    (scanned / "deployment.yaml").write_text(yaml.safe_dump(deployment), encoding="utf-8")
    assert subprocess.run(scan, capture_output=True).returncode == 1
