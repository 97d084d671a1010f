"""Models on the Hugging Face hub: which files a model consists of, how large its weights are, and its folder in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from edgekit.base import hub
from edgekit.base.download import download
from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Emit, ignore
from edgekit.base.hub import File, Repository, UnreachableError
from edgekit.models.folder_check import missing_weights

WEIGHTS = ("*.safetensors",)
CARDS = ("README.md", "LICENSE*")
SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", *CARDS)
"""The files downloaded in addition to the weights: configuration, tokenizer, licence."""
HINT = "Run the same command once with a network and without --offline, or give a folder on this machine."


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in the hub cache."""

    folder: Path
    commit: str


def fetch(name: str, revision: str | None, patterns: Sequence[str], emit: Emit = ignore) -> Snapshot:
    """Download the files of the model `name` that match one of `patterns` and are not in the hub cache.

    `revision` is a branch, a tag or a commit; None is the default branch. Where downloads are turned off, or the hub does
    not answer, the cache must hold them. Raises `ConfigError` with the hub's reason when that fails, and `MissingPartError`
    without huggingface_hub.
    """
    repository = Repository(name, "model", revision)
    if hub.is_offline():
        return cached(name, revision, patterns)
    try:
        found = hub.listing(repository)
    except UnreachableError as error:
        try:
            here = cached(name, revision, patterns)
        except ConfigError:
            raise error from None
        emit(Alert("warning", f"The hub cannot be reached, so {repository.label} is read from its cache."))
        return here
    folder = download(repository, found, wanted(found.files, patterns), emit)
    return Snapshot(folder, found.commit)


def cached(name: str, revision: str | None, patterns: Sequence[str]) -> Snapshot:
    """The same from the hub cache alone. Raises `ConfigError`, which names every file that is missing."""
    repository = Repository(name, "model", revision)
    folder = hub.cached(repository)
    if folder is None or not (folder / "config.json").is_file():
        raise ConfigError(
            f"There is no folder {repository.label}, so it is taken as a hub id, and --offline forbids its download: "
            f"the hub cache {hub.cache_folder()} does not have it.",
            HINT,
        )
    files = hub.cached_listing(repository)
    needed = [pattern for pattern in patterns if pattern not in CARDS]
    missing = (
        _missing(folder, patterns)
        if files is None
        else [file.name for file in hub.lacking(folder, wanted(files, needed))]
    )
    if missing:
        raise ConfigError(
            f"The hub cache has only a part of {repository.label}: {_some(missing)} missing, and --offline forbids "
            "the download.",
            HINT,
        )
    return Snapshot(folder, folder.name)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


def _missing(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files that a model needs and its cached folder lacks, where the cache has no list of its files."""
    needed = (
        {"config.json", "tokenizer.json"} if not (folder / "tokenizer.model").is_file() else {"config.json"}
    )
    missing = [name for name in needed if not (folder / name).is_file()]
    return sorted([*missing, *(missing_weights(folder) if set(WEIGHTS) <= set(patterns) else ())])


def wanted(files: Iterable[File], patterns: Sequence[str]) -> list[File]:
    """The files to download: those of the top folder, and of the weights one form, if there are several.

    Some models have their weights twice, in transformers' form (`model-00001-of-00002.safetensors`) and in the maker's.
    """
    top = [file for file in files if "/" not in file.name]
    weights = [file for file in top if fnmatch(file.name, WEIGHTS[0])]
    standard = [file for file in weights if file.name.startswith("model")]
    others = [file for file in weights if standard and file not in standard]
    return [file for file in top if file not in others and any(fnmatch(file.name, one) for one in patterns)]


def missing_bytes(name: str, revision: str | None) -> int:
    """Bytes of the model's weights that are not in the hub cache yet, by the sizes that the hub lists."""
    repository = Repository(name, "model", revision)
    if hub.is_offline():
        return 0  # what is missing is an error of `cached`
    try:
        found = hub.listing(repository)
    except UnreachableError:
        files = wanted(hub.cached_listing(repository) or (), WEIGHTS)
        return sum(file.bytes for file in hub.lacking(hub.cached(repository), files))
    folder = hub.repository_folder(repository) / "snapshots" / found.commit
    return sum(file.bytes for file in hub.lacking(folder, wanted(found.files, WEIGHTS)))


def weight_count(name: str, revision: str | None) -> int | None:
    """The number of weights by the hub's metadata of the safetensors files; None if it has none."""
    if hub.is_offline():
        return None
    try:
        return hub.listing(Repository(name, "model", revision)).weights
    except UnreachableError:
        return None
