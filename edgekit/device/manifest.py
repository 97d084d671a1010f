"""Reads the manifest of a bundle, and compares the files of the bundle with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import CorruptError

SCHEMA = "edgekit.bundle/1"
MANIFEST = "manifest.json"
COPY = "Copy the whole bundle again from a source that you trust."
ONE_NAME = ("onnxruntime",)  # runtimes whose files edgekit refuses when they have another hard link
DIGEST = re.compile(r"[0-9a-f]{64}")


def release_name(manifest: bytes) -> str:
    """The name of the release with this manifest: the first 12 hex digits of its SHA-256."""
    return hashlib.sha256(manifest).hexdigest()[:12]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises `CorruptError` when it is missing or of an unknown schema."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{folder} is not an edgekit bundle: {MANIFEST} cannot be read.", "Check the path."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise CorruptError(
            f"{folder / MANIFEST} is not of schema {SCHEMA}.", "Use the edgekit version that wrote it."
        )
    return manifest


def check_files(folder: Path, manifest: Mapping[str, Any], below: str = "") -> None:
    """Compare the files of a bundle with its manifest: all of them, or only the file or folder `below`.

    Raises `CorruptError` unless every listed file exists with its size and SHA-256, every format's path is listed, no
    unlisted file is in a listed folder, and no link leads out of the bundle.
    """
    listed = _listed(folder, manifest)
    for name, entry in _formats(folder, manifest).items():
        _below(folder, listed, entry.get("path"), f"its format {ascii(name)[:80]}")
    wanted = _below(folder, listed, below, "what was asked for") if below else listed
    root = folder.resolve()
    for path, entry in wanted.items():
        file = folder / path
        if not file.is_file():
            raise CorruptError(f"{file} is missing from the bundle.", COPY)
        if not file.resolve().is_relative_to(root):
            raise CorruptError(f"{file} is a link that leads out of the bundle.", COPY)
        if file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
            raise CorruptError(f"{file} is not the file in the manifest: its digest differs.", COPY)
    for top in {PurePosixPath(path).parts[0] for path in wanted if len(PurePosixPath(path).parts) > 1}:
        for file in sorted((folder / top).rglob("*")):
            path = file.relative_to(folder).as_posix()
            if path not in listed and (file.is_symlink() or not file.is_dir()):
                raise CorruptError(f"{file} is not in the manifest of the bundle.", COPY)


def _listed(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The entries of `files` by path, after a check that each path is inside the bundle and has a size and digest."""
    files = manifest.get("files")
    if not isinstance(files, list) or not files:
        raise CorruptError(f"{folder / MANIFEST} lists no files.", COPY)
    listed: dict[str, Mapping[str, Any]] = {}
    for entry in files:
        fields = entry if isinstance(entry, dict) else {}
        path = fields.get("path")
        if not isinstance(path, str) or not _inside(path) or not isinstance(fields.get("bytes"), int):
            raise CorruptError(
                f"{folder / MANIFEST} has an entry that is not a file of the bundle: {ascii(entry)[:200]}.",
                COPY,
            )
        if path in listed or not DIGEST.fullmatch(str(fields.get("sha256"))):
            raise CorruptError(f"{folder / MANIFEST} lists {path} twice or without a sha256.", COPY)
        listed[path] = fields
    return listed


def _formats(folder: Path, manifest: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    formats = manifest.get("formats")
    if not isinstance(formats, dict) or not all(isinstance(entry, dict) for entry in formats.values()):
        raise CorruptError(f"{folder / MANIFEST} does not name its formats.", COPY)
    return formats


def _below(
    folder: Path, listed: Mapping[str, Mapping[str, Any]], path: Any, what: str
) -> dict[str, Mapping[str, Any]]:
    """The listed files at `path`; raises `CorruptError` when there are none."""
    found = {
        name: entry for name, entry in listed.items() if name == path or name.startswith(f"{path}/")
    } if _inside(path) else {}  # fmt: skip
    if not found:
        raise CorruptError(
            f"{folder / MANIFEST} lists no file for {what}, whose path is {ascii(path)[:80]}.", COPY
        )
    return found


def _inside(path: Any) -> bool:
    """Whether `path` is a plain relative path that stays in the bundle."""
    if not isinstance(path, str) or not path or "\\" in path or "\0" in path:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == path and path != MANIFEST
