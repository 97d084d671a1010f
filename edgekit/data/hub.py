"""A data set on the Hugging Face hub: its data files of known kinds are downloaded, and nothing else of it.

`org/name` is all of its rows; `org/name/folder`, or a pattern such as `org/name/*.csv`, is some of its files. `@revision` at
the end, or `--data-revision`, pins a branch, a tag or a commit.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Emit
from edgekit.base.hub import client, failed
from edgekit.data.files import Files, by_split, located, note_on, within
from edgekit.data.kinds import SUFFIXES

CARD = "README.md"
NOT_CACHED = "is not whole in the hub's cache"
HINT = "There is no such file or folder on this machine either. Check the name, its revision and the network."

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:/([\w./* -]+?))?/?(?:@([\w./-]+))?")
_LICENCE = re.compile(r"^license:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class HubName:
    """The parts of a hub data set's name; `files` is a folder or a pattern within it, empty for all files."""

    repository: str
    files: str = ""
    revision: str | None = None

    def holds(self, name: str) -> bool:
        """Whether a file of the repository is meant."""
        wanted = self.files
        return not wanted or name == wanted or name.startswith(f"{wanted}/") or fnmatchcase(name, wanted)


def parse(given: str, revision: str = "") -> HubName | None:
    """The hub data set that `given` names; None for what can only be a path. Raises `ConfigError` for two revisions."""
    found = _ID.fullmatch(given)
    if found is None or given.startswith((".", "/", "~")):
        return None
    repository, files, at = found[1], found[2] or "", found[3]
    if not files and not at and repository.lower().removesuffix(".gz").endswith(SUFFIXES):
        return None  # a file that is missing
    if at and revision and at != revision:
        raise ConfigError(f"{given} and --data-revision {revision} name two revisions.", "Give one of them.")
    return HubName(repository, files, at or revision or None)


def fetch(name: HubName, *, offline: bool, emit: Emit) -> tuple[Files, str]:
    """The files of a hub data set in the hub's cache, and their commit; what is missing there is downloaded.

    An interrupted download continues where it ended. Without the network, or with `offline`, the cache is used if it is
    complete. Raises `ConfigError` with the hub's reason, and for a data set without files of a known kind.
    """
    hub = client()
    label = f"{name.repository}@{name.revision}" if name.revision else name.repository
    names, commit = _listed(hub, name, label, offline or bool(hub.constants.HF_HUB_OFFLINE), emit)
    hint = f"Name one, such as {name.repository}/{{0}}."
    held = within(label, (each for each in names if name.holds(each)))
    parts = by_split(label, held, hint)
    wanted = [each for part in parts.values() for each in part]
    if commit:
        missing = [each for each in wanted if not _is_here(hub, name.repository, each, commit)]
        size = sum(names[each] for each in missing) / 2**20
        if missing:
            emit(Alert("info", f"Downloading {len(missing)} files of {label}, {size:.1f} MiB."))
    try:
        folder = Path(
            hub.snapshot_download(
                name.repository,
                repo_type="dataset",
                revision=name.revision,
                allow_patterns=[glob.escape(each) for each in (*wanted, CARD)],
                local_files_only=not commit,
            )
        )
    except Exception as error:
        if not commit:
            raise _not_cached(label) from error
        raise failed(label, error, f"{HINT} Run the same command again to continue a download.") from error
    if commit and folder.name != commit:
        raise ConfigError(f"{label} changed while it was downloaded.", "Run the same command again.")
    note = note_on(held, parts)
    return Files(located(folder, parts), folder, card=_card(folder, label), note=note), folder.name


def _listed(hub: Any, name: HubName, label: str, offline: bool, emit: Emit) -> tuple[dict[str, int], str]:
    """The files of the repository with their bytes, and its commit; from the cache with an empty commit."""
    error: Exception | None = None
    if not offline:
        try:
            info = hub.HfApi().dataset_info(name.repository, revision=name.revision, files_metadata=True)
            return {file.rfilename: int(file.size or 0) for file in info.siblings or ()}, str(info.sha)
        except Exception as caught:
            if "NotFound" in type(caught).__name__:
                raise failed(label, caught, HINT) from caught
            error = caught
    try:
        files = hub.get_cached_repo_tree(name.repository, repo_type="dataset", revision=name.revision)
    except Exception as caught:
        if error is not None:
            raise failed(label, error, HINT) from error
        raise _not_cached(label) from caught
    if error is not None:
        emit(Alert("warning", f"The hub cannot be reached, so {label} is read from its cache."))
    return {file.path: int(file.size or 0) for file in files}, ""


def _not_cached(label: str) -> ConfigError:
    return ConfigError(
        f"There is no file or folder {label}, so it is taken as a hub data set, and it {NOT_CACHED}. It was not "
        "downloaded.",
        "Run the command once with the network and without --offline, or give a file or a folder.",
    )


def _is_here(hub: Any, repository: str, file: str, commit: str) -> bool:
    found = hub.try_to_load_from_cache(repository, file, repo_type="dataset", revision=commit)
    return isinstance(found, str)


def _card(folder: Path, label: str) -> dict[str, str]:
    """The source, and the licence that its card declares."""
    path = folder / CARD
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    licence = _LICENCE.search(text)
    return {"source": f"hub: {label}", **({"licence": licence[1]} if licence else {})}
