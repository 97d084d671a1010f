"""The Hugging Face hub and its cache: what a model or a data set consists of, and what of it is on this machine.

`edgekit.base.download` downloads the rest. huggingface_hub keeps the cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from edgekit.base.errors import ConfigError
from edgekit.base.parts import missing_part

HINT = "There is no such file or folder on this machine either. Check the name, its revision and the network."


@dataclass(frozen=True)
class Repository:
    """A model or a data set on the hub. `revision` is a branch, a tag or a commit; None is the default branch."""

    name: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class File:
    """A file of a repository. `sha256` is empty for a small file, of which the hub lists no SHA-256."""

    name: str
    bytes: int
    sha256: str = ""


@dataclass(frozen=True)
class Listing:
    """The files of one commit. `weights` is the number of a model's weights, None where the hub does not know it."""

    commit: str
    files: tuple[File, ...]
    weights: int | None = None


class UnreachableError(ConfigError):
    """The hub could not be asked; what is in the cache can be used."""


def client() -> Any:
    """The package huggingface_hub. Raises `MissingPartError` without it."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    return huggingface_hub


def is_offline() -> bool:
    """Whether downloads are turned off, by `--offline` or by the environment."""
    return bool(client().constants.is_offline_mode())


def failed(repository: Repository, error: Exception, hint: str = HINT) -> ConfigError:
    """The error for a repository that could not be downloaded, with the first line of the hub's reason."""
    reason = re.sub(r"\[Errno -?\d+\] ", "", (str(error).splitlines() or [type(error).__name__])[0])
    found = ConfigError if "NotFound" in type(error).__name__ else UnreachableError
    return found(f"'{repository.label}' could not be downloaded from the hub: {reason}", hint)


@lru_cache(maxsize=16)
def listing(repository: Repository) -> Listing:
    """What the hub says of a revision; asked once, so that all files of a command are of one commit.

    Raises `ConfigError` for a name or a revision that the hub does not know, and `UnreachableError` without an answer.
    """
    hub = client()
    try:
        ask = {"model": hub.HfApi().model_info, "dataset": hub.HfApi().dataset_info}[repository.kind]
        found = ask(repository.name, revision=repository.revision, files_metadata=True)
    except Exception as error:
        raise failed(repository, error) from error
    total = getattr(getattr(found, "safetensors", None), "total", None)
    files = tuple(_file(file.rfilename, file) for file in found.siblings or ())
    return Listing(str(found.sha), files, int(total) if total else None)


def cache_folder() -> Path:
    """The folder of downloads."""
    return Path(client().constants.HF_HUB_CACHE)


def repository_folder(repository: Repository) -> Path:
    """The folder of a repository's downloads."""
    from huggingface_hub.file_download import repo_folder_name

    return cache_folder() / repo_folder_name(repo_id=repository.name, repo_type=repository.kind)


def cached(repository: Repository) -> Path | None:
    """The folder with the files of the revision that are in the cache; None if there are none."""
    folder = repository_folder(repository)
    ref = folder / "refs" / (repository.revision or "main")
    commit = ref.read_text("ascii", "replace").strip() if ref.is_file() else repository.revision
    found = folder / "snapshots" / commit if commit else None
    return found if found and found.is_dir() else None


def cached_listing(repository: Repository) -> tuple[File, ...] | None:
    """All files of the revision, as the cache notes them; None if it does not."""
    ask = getattr(client(), "get_cached_repo_tree", None)
    if ask is None:  # an older version of huggingface_hub
        return None
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        found = ask(repository.name, repo_type=repository.kind, revision=repository.revision)
    except CachedRepoTreeNotFoundError:
        return None
    return tuple(_file(file.path, file) for file in found)


def lacking(folder: Path | None, files: Iterable[File]) -> list[File]:
    """The `files` that are not in the `folder` of a revision, or are cut."""
    return [file for file in files if folder is None or not _is_whole(folder / file.name, file)]


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and (not file.bytes or path.stat().st_size == file.bytes)


def _file(name: str, file: Any) -> File:
    large = file.lfs
    return File(name, int((large.size if large else file.size) or 0), str(large.sha256) if large else "")
