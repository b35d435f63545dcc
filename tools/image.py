"""Builds the container image without a daemon, says what is in it, and runs the contract against it from outside.

``build`` needs buildah, and the registries of the Dockerfile's two bases. Where a base cannot be pulled, a stand-in of
the same Debian packages takes its name, which is said; that needs mmdebstrap. ``test`` needs root besides, for a mount
namespace. What is missing is named, and the exit status is 0: nothing was tested, nothing failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STORE = ROOT / ".cache" / "images"
TAG = "localhost/guardlet"
#: What an image may weigh without models.
LIMIT_MB = 400
_PULL_S = 60.0
#: By the repository of a base: how mmdebstrap makes its like. The second list is that of distroless' own build files.
_STAND_INS = {
    "docker.io/library/python": ("--variant=apt", "python3,python3-venv,ca-certificates"),
    "gcr.io/distroless/python3-debian12": (
        "--variant=extract",
        "base-files,netbase,libc6,libssl3,libgcc-s1,libgomp1,libstdc++6,zlib1g,libbz2-1.0,libdb5.3,libexpat1,liblzma5,"
        "libsqlite3-0,libuuid1,libncursesw6,libtinfo6,libcom-err2,libcrypt1,libgssapi-krb5-2,libk5crypto3,libkeyutils1,"
        "libkrb5-3,libkrb5support0,libnsl2,libreadline8,libtirpc3,libffi8,libpython3.11-minimal,libpython3.11-stdlib,"
        "python3.11-minimal",
    ),
}


def missing(for_test: bool) -> str | None:
    """What this machine lacks, by name."""
    if shutil.which("buildah") is None:
        return "buildah is not installed"
    if for_test and os.geteuid() != 0:
        return "root is needed to make a mount namespace"
    return None


def buildah(*arguments: str, timeout_s: float | None = None) -> str:
    """Runs it on this project's own store and returns what it printed."""
    command = ["buildah", "--storage-driver=vfs", f"--root={STORE}/store", f"--runroot={STORE}/run", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=timeout_s)
    return done.stdout.strip()


def build(options: Sequence[str] = ()) -> None:
    """Builds TAG; ``options`` are more of ``buildah build``, such as ``--build-arg MODELS=models``."""
    STORE.mkdir(parents=True, exist_ok=True)
    for base in re.findall(r"^ARG \w+=(\S+[:@]\S+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE):
        _ensure(base)
    print("==> building", flush=True)
    # The docker format has health checks, the OCI format has not. A chroot needs no daemon and no network of its own.
    fixed = ["--pull-never", "--isolation=chroot", "--network=host", "--format=docker", f"--tag={TAG}"]
    buildah("build", *fixed, *options, str(ROOT))


def config() -> dict[str, Any]:
    """The image's own configuration: User, Env, Entrypoint, Cmd, Healthcheck."""
    inspected = json.loads(buildah("inspect", "--type=image", TAG))
    found: dict[str, Any] = inspected["Docker"]["config"]
    return found


def sizes(root: Path) -> dict[str, int]:
    """Bytes of the files below ``root``: of the base, and of each thing in /opt/guardlet."""
    parts = {path.name: tree_bytes(path) for path in sorted((root / "opt/guardlet").iterdir())}
    return {"base": tree_bytes(root) - sum(parts.values()), **parts}


def tree_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(tree_bytes(entry) for entry in path.iterdir())


def mounted() -> tuple[str, Path]:
    """A container of the image and where its files are; ``buildah("rm", name)`` removes both."""
    name = buildah("from", "--pull-never", TAG)
    return name, Path(buildah("mount", name))


def report() -> None:
    """Prints the size; raises SystemExit when it is over the limit."""
    name, root = mounted()
    try:
        parts = sizes(root)
    finally:
        buildah("rm", name)
    total = sum(parts.values())
    largest = sorted(parts.items(), key=lambda item: -item[1])[:12]
    print(f"==> {TAG}: {total / 1e6:.0f} MB without models, of {LIMIT_MB} MB")
    print("    " + ", ".join(f"{part} {size / 1e6:.1f}" for part, size in largest))
    if total > LIMIT_MB * 1e6:
        raise SystemExit("the image is too large")


def _ensure(base: str) -> None:
    """Have the image ``base``: there already, pulled, or a stand-in."""
    if base in json.dumps([image["names"] for image in json.loads(buildah("images", "--json"))]):
        return
    try:
        buildah("pull", "--quiet", base, timeout_s=_PULL_S)
        return
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        repository = re.split(r"[:@]", base)[0]
        if shutil.which("mmdebstrap") is None or repository not in _STAND_INS:
            raise SystemExit(f"{base}: cannot be pulled") from None
    print(f"==> {base}: cannot be pulled; a stand-in of the same Debian packages takes its name", flush=True)
    variant, packages = _STAND_INS[repository]
    archive = STORE / "base.tar"
    command = ["mmdebstrap", "--quiet", variant, f"--include={packages}", "bookworm"]
    subprocess.run([*command, str(archive)], check=True)
    name = buildah("from", "scratch")
    buildah("add", "--quiet", name, str(archive), "/")
    alias = Path(buildah("mount", name)) / "usr/bin/python3"
    if not alias.exists():  # it is in none of the packages of distroless, which adds it too
        alias.symlink_to("python3.11")
    buildah("commit", "--quiet", "--rm", name, base)
    archive.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("build", "test"))
    args, options = parser.parse_known_args()
    lacking = missing(args.action == "test")
    if lacking:
        print(f"==> image {args.action}: skipped, {lacking}")
        return
    build([*options, *os.environ.get("IMAGE_BUILD_OPTIONS", "").split()])
    report()
    if args.action == "test":
        command = [sys.executable, "-m", "pytest", "tests/e2e/test_image.py", "-v"]
        raise SystemExit(subprocess.run(command, cwd=ROOT, env={**os.environ, "GUARDLET_IMAGE": TAG}).returncode)


if __name__ == "__main__":
    main()
