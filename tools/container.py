"""Runs the image's server as Kubernetes would, without a container engine: tools/image.py says what for.

A mount namespace has the image's files as a root that nobody can write to, with the models mounted read-only; the
process is number 1 of a PID namespace, has the image's user, environment and entry point, no capabilities and
no_new_privs. What is missing against a real runtime: a seccomp profile, a network of its own, and a cgroup. A memory
limit is therefore only told, in the files where a cgroup would tell it; the kernel does not enforce it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from tools.image import buildah, config, mounted

_START_S = 180.0
_POLL_S = 0.1
_STOP_S = 60.0
#: $1 the root, $2 the models, $3 what is seen of the cgroup, $4 the user; the rest is the command.
_ENTER = """\
root=$1 models=$2 cgroup=$3 user=$4; shift 4
mount --bind "$root" "$root" && mount --bind "$models" "$root/models" &&
mount -o remount,bind,ro "$root/models" && mount -o remount,bind,ro "$root" &&
mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" && mount --bind /sys "$root/sys" &&
mount --bind "$cgroup" "$root/sys/fs/cgroup" &&
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
"""


class Container:
    """The server of the image on a free port of this machine, from entry to exit of the block.

    ``environment`` adds variables, ``memory`` is the limit in bytes that it is told. ``address`` is where it listens,
    ``root`` where its files are from outside, ``environment`` what was added.
    """

    def __init__(self, models: Path, memory: int | None = None, **environment: str) -> None:
        self._models = models
        self.environment = environment
        self._config = config()
        self._name, self.root = mounted()
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self.root.parent / f"{self._name}.log"
        self._cgroup = tempfile.TemporaryDirectory(prefix="guardlet-cgroup-")
        Path(self._cgroup.name).chmod(0o755)
        (Path(self._cgroup.name) / "memory.max").write_text("max" if memory is None else str(memory), encoding="ascii")
        self.address = free_address()

    def __enter__(self) -> Container:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command([*self._config["Entrypoint"], *self._config["Cmd"]]), stdin=subprocess.DEVNULL, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                for child in self._children():  # it changed its user, after which a dead parent kills nobody
                    os.kill(child, signal.SIGKILL)
                self._process.kill()
                self._process.wait()
        finally:
            self._log.unlink(missing_ok=True)
            self._cgroup.cleanup()
            buildah("rm", self._name)

    def wait_ready(self) -> None:
        """Returns once it serves; raises RuntimeError with its log when it ends or takes too long."""
        self._wait_for("ready")

    def events(self) -> list[dict[str, object]]:
        """Its log so far."""
        lines = self._log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def log(self) -> str:
        """What it wrote to standard error."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another process of the same image, user and environment."""
        return subprocess.run(self._command(list(command)), capture_output=True, text=True, timeout=60)

    def healthy(self) -> bool:
        """What the image's own health check says."""
        kind, *command = self._config["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*command).returncode == 0

    def server_status(self) -> dict[str, str]:
        """/proc/PID/status of the server."""
        lines = Path(f"/proc/{self._server_pid()}/status").read_text(encoding="utf-8").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def stop(self, timeout_s: float = _STOP_S) -> int:
        """SIGTERM to the server; returns its exit status."""
        assert self._process is not None
        subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(self._server_pid())], check=True)
        return self._process.wait(timeout_s)

    def wait(self, timeout_s: float = _STOP_S) -> int:
        """Its exit status, once it ends by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def _command(self, command: list[str]) -> list[str]:
        own = {"GUARD_ADDRESS": self.address} | self.environment
        variables = [*self._config["Env"], *(f"{name}={value}" for name, value in own.items())]
        if not any(variable.startswith("PATH=") for variable in variables):
            variables.append("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")  # a runtime's own
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--propagation=private"]
        enter = ["env", "-i", *variables, "/bin/sh", "-c", _ENTER, "enter"]
        places = [str(self.root), str(self._models), self._cgroup.name]
        return [*namespaces, *enter, *places, self._config["User"], *command]

    def _server_pid(self) -> int:
        return self._children()[0]

    def _children(self) -> list[int]:
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
        return [int(child) for child in children.split()]

    def _wait_for(self, event: str) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            if any(found["event"] == event for found in self.events()):
                return
            if self._process.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise RuntimeError(f"the server did not say {event!r}:\n{self.log()}")


def free_address() -> str:
    """HOST:PORT of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
