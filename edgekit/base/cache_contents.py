"""The contents of a cache by stage, size and age, and their removal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.base.artifacts import remove
from edgekit.base.cache import RECORD
from edgekit.base.cache_users import alone
from edgekit.base.errors import ConfigError

Kind = Literal["finished", "interrupted"]
SUFFIXES = (".work", ".partial")


@dataclass(frozen=True)
class Entry:
    """A finished stage, or the remains of an interrupted one; `used` is the time of last use, Unix seconds.

    `bytes` is what removing it frees: not files that also lie in an output folder.
    """

    stage: str
    key: str
    kind: Kind
    path: Path
    bytes: int
    used: float


@dataclass(frozen=True)
class StageTotal:
    """All entries of one stage together."""

    stage: str
    finished: int
    interrupted: int
    bytes: int
    oldest_used: float
    newest_used: float


def entries(root: Path) -> list[Entry]:
    """Every entry of the cache `root`, by stage and then by last use, the oldest first.

    Raises `ConfigError` when there is no folder `root`.
    """
    if not root.is_dir():
        raise ConfigError(f"There is no cache {root}.", "Use the same --cache-dir as for the build.")
    found = [
        entry
        for stage in root.iterdir()
        if stage.is_dir() and not stage.name.startswith(".")
        for path in stage.iterdir()
        if path.is_dir() and (entry := _entry(stage.name, path)) is not None
    ]
    return sorted(found, key=lambda entry: (entry.stage, entry.used))


def totals(found: Sequence[Entry]) -> list[StageTotal]:
    """The entries of each stage added up, the largest stage first."""
    by_stage: dict[str, list[Entry]] = {}
    for entry in found:
        by_stage.setdefault(entry.stage, []).append(entry)
    result = [
        StageTotal(
            stage,
            finished=sum(entry.kind == "finished" for entry in members),
            interrupted=sum(entry.kind == "interrupted" for entry in members),
            bytes=sum(entry.bytes for entry in members),
            oldest_used=min(entry.used for entry in members),
            newest_used=max(entry.used for entry in members),
        )
        for stage, members in by_stage.items()
    ]
    return sorted(result, key=lambda total: -total.bytes)


def clean(
    root: Path, *, older_than_s: float = 0.0, stages: Sequence[str] = (), dry_run: bool = False
) -> list[Entry]:
    """Remove and return the entries that were not used for `older_than_s`, only of `stages` if it is not empty.

    With `dry_run` nothing is removed. Raises `ConfigError` for a stage that the cache does not hold, and while another
    process uses the cache.
    """
    found = entries(root)
    if unknown := set(stages) - {entry.stage for entry in found}:
        known = ", ".join(sorted({entry.stage for entry in found})) or "none"
        raise ConfigError(
            f"The cache {root} has no stage '{min(unknown)}'; nothing was removed.", f"Its stages: {known}."
        )
    if dry_run:
        return _chosen(found, older_than_s, stages)
    with alone(root):
        chosen = _chosen(entries(root), older_than_s, stages)  # entries that were used in the meantime stay
        for entry in chosen:
            remove(entry.path)
        for folder in {entry.path.parent for entry in chosen}:
            if not any(folder.iterdir()):
                folder.rmdir()
    return chosen


def _chosen(found: Sequence[Entry], older_than_s: float, stages: Sequence[str]) -> list[Entry]:
    limit = time.time() - older_than_s
    return [entry for entry in found if entry.used <= limit and (not stages or entry.stage in stages)]


def _entry(stage: str, path: Path) -> Entry | None:
    """The entry at `path`; None for other folders."""
    finished = (path / RECORD).is_file() and path.suffix not in SUFFIXES
    if not finished and path.suffix not in SUFFIXES:
        return None
    status = [
        file.lstat() for file in path.rglob("*")
    ]  # a link counts as a link: its file is not in the cache
    used = (
        (path / RECORD).stat().st_mtime
        if finished
        else max((at.st_mtime for at in status), default=path.stat().st_mtime)
    )
    size = sum(at.st_size for at in status if at.st_nlink == 1)
    return Entry(
        stage,
        path.stem if not finished else path.name,
        "finished" if finished else "interrupted",
        path,
        size,
        used,
    )
