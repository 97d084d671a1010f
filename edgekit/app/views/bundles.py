"""Bundles that are there, and files of theirs read within bounds: a bundle may come from anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError
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
        raise CorruptError(f"{path} cannot be read: {error.strerror or error}.", hint) from error
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
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError:
        return []
    found = [each for name in names[:MOST_BUNDLES] if (each := look_at(folder / name)) is not None]
    return sorted(found, key=lambda bundle: (-bundle.written, bundle.name))


def newest(folder: Path) -> Path | None:
    """The bundle below `folder` that was written last."""
    try:
        with os.scandir(folder) as entries:
            written = [(_written(Path(entry.path)), entry.path) for entry in entries if entry.name[:1] != "."]
    except OSError:
        return None
    known = [(when, path) for when, path in written[:MOST_BUNDLES] if when]
    return Path(max(known)[1]) if known else None


def _written(folder: Path) -> float:
    """When a folder's manifest or report was written, 0 where it has neither."""
    times = [0.0]
    for name in (MANIFEST, REPORT):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def look_at(folder: Path) -> Found | None:
    """What a folder says of itself; None when it holds neither a manifest nor a report."""
    if not (written := _written(folder)):
        return None
    verdicts, faults = [], []
    for name in (REPORT, MANIFEST):
        try:
            verdicts.append(plain(read_json(folder / name, folder).get("verdict", "?"))[:20])
        except CorruptError as error:
            faults.append(error.message)
    if len(set(verdicts)) > 1:
        faults.append("its report and its manifest give different verdicts")
    verdict = "?" if faults else verdicts[0]
    return Found(folder, plain(folder.name), verdict, written, "; ".join(faults))
