"""A data set on the Hugging Face hub: its data files of known kinds are downloaded, and nothing else of it.

`org/name` is all of its rows; `org/name/folder`, or a pattern such as `org/name/*.csv`, is some of its files. `@revision` at
the end, or `--data-revision`, pins a branch, a tag or a commit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from edgekit.base import hub
from edgekit.base.download import download
from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Emit
from edgekit.base.hub import Repository, UnreachableError
from edgekit.data.files import Files, by_split, located, note_on, within
from edgekit.data.kinds import SUFFIXES

CARD = "README.md"
NOT_CACHED = "is not whole in the hub's cache"

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
    if revision and not re.fullmatch(r"[\w./-]+", revision):
        raise ConfigError(
            f"--data-revision '{revision}' is not the name of a branch, a tag or a commit.",
            "Check --data-revision.",
        )
    return HubName(repository, files, at or revision or None)


def fetch(name: HubName, *, offline: bool, emit: Emit) -> tuple[Files, str]:
    """The files of a hub data set in the hub's cache, and their commit; what is missing there is downloaded.

    An interrupted download continues where it ended. Without the network, or with `offline`, the cache is used if it is
    complete. Raises `ConfigError` with the hub's reason, and for a data set without files of a known kind.
    """
    repository = Repository(name.repository, "dataset", name.revision)
    found, files = _listed(repository, offline or hub.is_offline(), emit)
    label = repository.label
    held = within(label, (file.name for file in files if name.holds(file.name)))
    parts = by_split(label, held, f"Name one, such as {name.repository}/{{0}}.")
    wanted = {each for part in parts.values() for each in part}
    needed = [file for file in files if file.name in wanted]
    if found is not None:
        card = [file for file in files if file.name == CARD]
        folder = download(repository, found, [*needed, *card], emit)
    else:
        here = hub.cached(repository)
        if here is None or hub.lacking(here, needed):
            raise _not_cached(label, [file.name for file in hub.lacking(here, needed)])
        folder = here
    note = note_on(held, parts)
    return Files(located(folder, parts), folder, card=_card(folder, label), note=note), folder.name


def _listed(
    repository: Repository, offline: bool, emit: Emit
) -> tuple[hub.Listing | None, tuple[hub.File, ...]]:
    """What the hub lists, and the files; where it is not or cannot be asked None, and the files by the cache."""
    unreachable: UnreachableError | None = None
    if not offline:
        try:
            found = hub.listing(repository)
            return found, found.files
        except UnreachableError as error:
            unreachable = error
    files = hub.cached_listing(repository)
    if files is None:
        raise unreachable or _not_cached(repository.label)
    if unreachable:
        emit(Alert("warning", f"The hub cannot be reached, so {repository.label} is read from its cache."))
    return None, files


def _not_cached(label: str, missing: Sequence[str] = ()) -> ConfigError:
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    lacks = f" It lacks {', '.join(missing[:5])}{more}." if missing else ""
    return ConfigError(
        f"There is no file or folder {label}, so it is taken as a hub data set, and it {NOT_CACHED}.{lacks} Nothing was "
        "downloaded.",
        "Run the command once with the network and without --offline, or give a file or a folder.",
    )


def _card(folder: Path, label: str) -> dict[str, str]:
    """The source, and the licence that its card declares."""
    path = folder / CARD
    text = path.read_text("utf-8", "replace") if path.is_file() else ""
    licence = _LICENCE.search(text)
    return {"source": f"hub: {label}", **({"licence": licence[1]} if licence else {})}
