from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.checkpoint.hub import download
from guard.errors import CheckpointError, UnsupportedError

huggingface_hub = pytest.importorskip("huggingface_hub")
requests = pytest.importorskip("requests")
errors = pytest.importorskip("huggingface_hub.errors")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """A hub that answers or fails as a test says, and keeps what it was asked."""

    def __init__(self, snapshot: Path) -> None:
        self.snapshot = snapshot
        self.info_error: Exception | None = None
        self.download_error: Exception | None = None
        self.asked: dict[str, Any] = {}

    def model_info(self, repo_id: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
        if self.info_error is not None:
            raise self.info_error
        return SimpleNamespace(sha=COMMIT)

    def snapshot_download(self, repo_id: str, **asked: Any) -> str:
        self.asked = {"repo_id": repo_id, **asked}
        if self.download_error is not None:
            raise self.download_error
        return str(self.snapshot)


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    snapshot = tmp_path / COMMIT
    snapshot.symlink_to(tiny)
    fake = Hub(snapshot)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def http(kind: type[Exception]) -> Exception:
    return kind("the hub's own words", response=requests.Response())  # type: ignore[call-arg]  # the hub's errors take it


def test_the_resolved_commit_is_downloaded(hub: Hub) -> None:
    assert download("org/name", "main") == (hub.snapshot, COMMIT)
    assert hub.asked["revision"] == COMMIT
    assert hub.asked["local_files_only"] is False
    assert "config.json" in hub.asked["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".pth", "*")) for pattern in hub.asked["allow_patterns"])


@pytest.mark.parametrize("offline", [errors.OfflineModeIsEnabled("off"), requests.ConnectionError("no route")])
def test_offline_the_cache_serves(hub: Hub, offline: Exception) -> None:
    hub.info_error = offline
    assert download("org/name", "v1") == (hub.snapshot, COMMIT)
    assert hub.asked["revision"] == "v1"
    assert hub.asked["local_files_only"] is True


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (errors.GatedRepoError, "org/name at v1: gated; accept its licence"),
        (errors.RepositoryNotFoundError, "no such model on the hub"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.HfHubHTTPError, "HfHubHTTPError"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(hub: Hub, error: type[Exception], named: str) -> None:
    hub.info_error = http(error)
    with pytest.raises(CheckpointError, match=named):
        download("org/name", "v1")


def test_offline_without_a_copy(hub: Hub) -> None:
    hub.info_error = errors.OfflineModeIsEnabled("off")
    hub.download_error = errors.LocalEntryNotFoundError("no copy")
    with pytest.raises(CheckpointError, match="cannot be reached and its cache has no copy"):
        download("org/name", None)


def test_a_full_disk(hub: Hub) -> None:
    hub.download_error = OSError(28, "No space left on device")
    with pytest.raises(CheckpointError, match=r"download failed \(OSError\)"):
        download("org/name", None)


def test_a_repository_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    hub.snapshot = tmp_path
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        download("org/name", None)


def test_without_the_export_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match="huggingface_hub"):
        download("org/name", None)
