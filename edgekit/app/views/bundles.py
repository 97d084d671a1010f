"""Bundles that are there, and files of theirs read within bounds: a bundle may come from anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError, reason
from edgekit.base.texts import plain
from edgekit.device.manifest import MANIFEST

MOST_BYTES = 16 * 2**20
MOST_BUNDLES = 500
REPORT = "report.json"


@dataclass(frozen=True)
class Found:
    """A folder with a manifest or a report; `verdict` is its word, or `?` with the reason in `fault`."""

    path: Path
    name: str
    verdict: str
    written: float
    """Unix seconds."""
    fault: str = ""


def read_bounded(path: Path, verify: Path) -> str:
    """The text of a regular file of at most 16 MiB. Raises `CorruptError`, with the next step for bundle `verify`."""
    hint = f"edgekit verify {verify}"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise CorruptError(f"{path} is not a file.", hint)
        if found.st_size > MOST_BYTES:
            raise CorruptError(
                f"{path} has {found.st_size / 2**20:,.0f} MiB; it is not read over 16 MiB.", hint
            )
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CorruptError(f"{path} cannot be read: {reason(error)}.", hint) from error
    return data[:MOST_BYTES].decode("utf-8", "replace")


def read_json(path: Path, verify: Path) -> dict[str, Any]:
    """The JSON object in a file, read within bounds. Raises `CorruptError`, with the next step for bundle `verify`."""
    try:
        value = json.loads(read_bounded(path, verify))
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path} is damaged: {plain(error)[:200]}.", f"edgekit verify {verify}") from error
    if not isinstance(value, dict):
        raise CorruptError(f"{path} is damaged: it holds no JSON object.", f"edgekit verify {verify}")
    return value


def bundles_in(folder: Path) -> list[Found]:
    """The bundles directly below `folder`, the newest first; none when it is not there."""
    return [look_at(path, written) for written, path in _folders(folder)]


def newest(folder: Path) -> Path | None:
    """The bundle below `folder` that was written last."""
    return next((path for _, path in _folders(folder)), None)


def _folders(folder: Path) -> list[tuple[float, Path]]:
    """When each folder with a manifest or a report was written, the newest first."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".")][:MOST_BUNDLES]
    except OSError:
        return []
    found = [(written, folder / name) for name in names if (written := _written(folder / name))]
    return sorted(found, key=lambda each: (-each[0], each[1]))


def _written(folder: Path) -> float:
    """When a folder's manifest or report was written, 0 where it has neither."""
    times = [0.0]
    for name in (MANIFEST, REPORT):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def look_at(folder: Path, written: float = 0.0) -> Found:
    """What a bundle says of itself."""
    verdicts, faults = [], []
    for name in (REPORT, MANIFEST):
        try:
            verdicts.append(plain(read_json(folder / name, folder).get("verdict", "?"))[:20])
        except CorruptError as error:
            faults.append(error.message)
    if len(set(verdicts)) > 1:
        faults.append("The report and the manifest give different verdicts: one of them was changed.")
    verdict = "?" if faults else verdicts[0]
    return Found(folder, plain(folder.name), verdict, written, " ".join(faults))
