"""The manifest of a bundle: read, and held against the files beside it. All that a device needs of a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import CorruptError

SCHEMA = "edgekit.bundle/1"
MANIFEST = "manifest.json"


def release_name(manifest: bytes) -> str:
    """The name of the release with this manifest: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises `CorruptError` when it is missing or not one that this version reads."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptError(
            f"{folder} is not an edgekit bundle: {MANIFEST} cannot be read.", "Check the path."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise CorruptError(
            f"{folder / MANIFEST} is not of schema {SCHEMA}.", "Use the edgekit version that wrote it."
        )
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], below: str = "") -> None:
    """Raise `CorruptError` unless every listed file below `below` has its size and sha256."""
    for entry in manifest["files"]:
        path = folder / entry["path"]
        if below and entry["path"] != below and not entry["path"].startswith(f"{below}/"):
            continue
        if not path.is_file():
            raise CorruptError(f"{path} is missing from the bundle.", "Copy the bundle again, whole.")
        if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
            raise CorruptError(
                f"{path} is not the file in the manifest: its digest differs.", "Copy the bundle again."
            )
