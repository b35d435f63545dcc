"""Downloading a checkpoint from the Hugging Face hub, pinned to one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from guard.errors import CheckpointError, UnsupportedError

#: Everything the exporter reads, and nothing else: no pickle is ever downloaded.
_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
)


def download(repo_id: str, revision: str | None) -> tuple[Path, str]:
    """The directory with the files of ``repo_id`` at ``revision`` (default: its main branch), and the resolved commit.

    Files already in the hub cache are not fetched again; offline (``HF_HUB_OFFLINE=1`` or no network), the cache alone
    serves. Raises CheckpointError saying what to do when the model is gated, unknown, or out of reach.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise UnsupportedError(f"{repo_id}: downloading needs huggingface_hub (the export extra)") from error
    where = repo_id if revision is None else f"{repo_id} at {revision}"
    try:
        commit = _resolve(repo_id, revision)
        path = huggingface_hub.snapshot_download(
            repo_id, revision=commit or revision, allow_patterns=list(_FILES), local_files_only=commit is None
        )
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{where}: gated; accept its licence on huggingface.co/{repo_id} and log in (`hf auth login` or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{where}: the hub has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such local path, and no such model on the hub (or it is private)"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: no such local path; the hub cannot be reached and its cache has no copy"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise CheckpointError(f"{where}: the download failed ({type(error).__name__})") from error
    directory = Path(path)
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{where}: this repository has no config.json; of GGUF repositories, download one file")
    return directory, commit or directory.name  # the cache names a snapshot's directory after its commit


def _resolve(repo_id: str, revision: str | None) -> str | None:
    """The commit that ``revision`` names now, or None when the hub is out of reach."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        commit: str = huggingface_hub.HfApi().model_info(repo_id, revision=revision, timeout=30).sha
    except errors.HfHubHTTPError:
        raise
    except (errors.OfflineModeIsEnabled, OSError):
        return None
    return commit
