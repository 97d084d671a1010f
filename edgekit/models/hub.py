"""Models on the Hugging Face hub: resolves names to commits, reads the size of weights, and downloads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.hub import client, failed

WEIGHTS = ("*.safetensors",)
SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", "README.md", "LICENSE*")
"""The files downloaded in addition to the weights: configuration, tokenizer, licence."""
HINT = "Check the name, its revision and the network, or give a folder on this machine."


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in the hub cache."""

    folder: Path
    commit: str


def fetch(repository: str, revision: str | None, patterns: Sequence[str]) -> Snapshot:
    """Download the files of `repository` that match one of `patterns` and are not in the hub cache.

    `revision` is a branch, a tag or a commit; None is the default branch. Raises `ConfigError` with the hub's reason
    when that fails, and `MissingPartError` without huggingface_hub.
    """
    hub = client()
    commit = str(_info(repository, revision).sha)
    try:
        folder = hub.snapshot_download(repository, revision=commit, allow_patterns=list(patterns))
    except Exception as error:
        raise _failed(repository, revision, error) from error
    return Snapshot(Path(folder), commit)


def missing_bytes(repository: str, revision: str | None) -> int:
    """Bytes of the model's weights that are not in the hub cache yet, by the sizes that the hub lists."""
    hub, info = client(), _info(repository, revision)

    def is_here(file: str) -> bool:
        return isinstance(hub.try_to_load_from_cache(repository, file, revision=info.sha), str)

    weights = [file for file in info.siblings or () if any(fnmatch(file.rfilename, name) for name in WEIGHTS)]
    return sum(int(file.size or 0) for file in weights if not is_here(file.rfilename))


def cache_folder() -> Path:
    """The folder of downloads."""
    return Path(client().constants.HF_HUB_CACHE)


def _info(repository: str, revision: str | None) -> Any:
    hub = client()
    try:
        return hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(repository, revision, error) from error


def _failed(repository: str, revision: str | None, error: Exception) -> ConfigError:
    return failed(f"{repository}@{revision}" if revision else repository, error, HINT)
