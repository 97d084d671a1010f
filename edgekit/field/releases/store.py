"""The store of versions: each file once, named by its digest, and a folder for each version that links to them.

objects/<sha256>                 a file of any version
versions/<release>/              a whole bundle: its manifest, and hard links to objects (copies where there are none)
records/<release>/               import.json, health.json, comparison.json: results of checks on this device

The files of an ONNX folder are not shared: its reader refuses files with more than one name, because they could be
changed under the other name. A name that begins with a dot is unfinished: nothing reads it, and `sweep` removes it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.base.artifacts import list_files, sha256_file
from edgekit.base.errors import CorruptError
from edgekit.device.manifest import MANIFEST, ONE_NAME, check_files, read_manifest, release_name
from edgekit.field.releases import disk

NAME = re.compile(r"[0-9a-f]{12}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def read_checked(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The manifest of a bundle, as bytes and as values, with its list of files known to be safe to copy.

    Raises `CorruptError` when it cannot be read, or lists a file outside the bundle or without a digest.
    """
    manifest = read_manifest(folder)
    files: Any = manifest.get("files")
    for entry in files if isinstance(files, list) and files else [{}]:
        if not _to_copy(entry):
            raise CorruptError(
                f"{folder / MANIFEST} lists no files, or a file that is not safe to copy: {entry!r:.200}.",
                "Copy the bundle again, or build it again; nothing was imported.",
            )
    data = (folder / MANIFEST).read_bytes()
    twice = len({PurePosixPath(entry["path"]) for entry in manifest["files"]}) < len(manifest["files"])
    known = isinstance(manifest.get("formats"), dict) and "verdict" in manifest
    if twice or not known or json.loads(data) != manifest:
        raise CorruptError(
            f"{folder / MANIFEST} lists a file twice, or lacks its formats or its verdict.",
            "Build the bundle again; nothing was imported.",
        )
    return data, manifest


def _to_copy(entry: Any) -> bool:
    """Whether an entry of a manifest names a file inside the bundle, with its size and digest."""
    try:
        path = PurePosixPath(entry["path"])
        inside = path.parts and not path.is_absolute() and ".." not in path.parts and path.name != MANIFEST
        return bool(inside and DIGEST.fullmatch(entry["sha256"]) and entry["bytes"] >= 0)
    except (TypeError, KeyError):
        return False


def _unshared(manifest: Mapping[str, Any], path: str) -> bool:
    """Whether the runtime that reads this file refuses hard links to it."""
    formats = [entry for entry in manifest["formats"].values() if entry.get("runtime") in ONE_NAME]
    return any(path == entry["path"] or path.startswith(f"{entry['path']}/") for entry in formats)


class Store:
    """The versions in one folder. The caller holds the lock while it writes."""

    def __init__(self, root: Path) -> None:
        self.objects = root / "objects"
        self.versions = root / "versions"
        self.records = root / "records"

    def names(self) -> list[str]:
        """The names of all versions."""
        if not self.versions.is_dir():
            return []
        found = [path.name for path in self.versions.iterdir() if NAME.fullmatch(path.name)]
        return sorted(name for name in found if (self.versions / name / MANIFEST).is_file())

    def folder(self, release: str) -> Path:
        """The folder of a version's bundle."""
        return self.versions / release

    def check(self, release: str) -> None:
        """Raise `CorruptError` unless the version is undamaged: its name fits its manifest, and its files match it."""
        folder = self.folder(release)
        data, manifest = read_checked(folder)
        if release_name(data) != release:
            raise CorruptError(
                f"{folder / MANIFEST} does not belong to {release}.", "Import the bundle again."
            )
        check_files(folder, manifest)

    def holds(self, release: str) -> str:
        """How the version is damaged; empty when it is not."""
        try:
            self.check(release)
        except CorruptError as error:
            return error.message
        return ""

    def add(
        self, bundle: Path, data: bytes, manifest: Mapping[str, Any], prove: Callable[[Path], None]
    ) -> str:
        """Copy a bundle into the store, check the copy with `prove(folder)`, name it, and return the name.

        Raises `CorruptError` when a file differs from the manifest, and whatever `prove` raises; the store is then
        unchanged. An existing but damaged version is replaced.
        """
        release = release_name(data)
        staging = self.versions / f".{release}.partial"
        try:
            for folder in (self.objects, self.records, self.versions):
                disk.make_folder(folder)
            disk.remove(staging)
            disk.make_folder(staging)
            for entry in manifest["files"]:
                target = staging / entry["path"]
                disk.make_folder(target.parent)
                if _unshared(manifest, entry["path"]):
                    self._copy(bundle, entry, target)
                else:
                    disk.link(self._object(bundle, entry), target)
            disk.write(staging / MANIFEST, data)
            for folder in sorted({file.parent for file in list_files(staging)}):
                disk.sync_folder(folder)
            check_files(staging, manifest)
            prove(staging)
            final = self.folder(release)
            if final.exists():
                self._discard(final)
            disk.rename(staging, final)
        except BaseException:
            self.sweep()
            raise
        return release

    def _object(self, bundle: Path, entry: Mapping[str, Any]) -> Path:
        """The object of one file of `bundle`, copied unless it exists undamaged."""
        digest = str(entry["sha256"])
        path = self.objects / digest
        if path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == digest:
            return path
        staging = self.objects / f".{digest}.partial"
        self._copy(bundle, entry, staging)
        disk.rename(staging, path)
        return path

    def _copy(self, bundle: Path, entry: Mapping[str, Any], target: Path) -> None:
        """Copy one file of `bundle`; raises `CorruptError` unless the copy matches the manifest."""
        source = bundle / entry["path"]
        if not source.is_file():
            raise CorruptError(f"{source} is missing from the bundle.", "Copy the bundle again, whole.")
        if disk.copy(source, target) != entry["sha256"]:
            raise CorruptError(
                f"{source} differs from the manifest (SHA-256); nothing was imported.",
                "Copy the bundle again.",
            )

    def remove(self, release: str) -> None:
        """Remove a version; `sweep` then removes its objects."""
        if self.folder(release).exists():
            self._discard(self.folder(release))

    def _discard(self, folder: Path) -> None:
        gone = folder.with_name(f".{folder.name}.gone")
        disk.remove(gone)
        disk.rename(folder, gone)  # in one step: a version is never partly removed
        disk.remove(gone)

    def sweep(self) -> int:
        """Remove unfinished files and objects that no version uses; returns the bytes of the removed objects."""
        names, used, inodes, freed = set(self.names()), set[str](), set[int](), 0
        for release in names:
            inodes |= {file.stat().st_ino for file in list_files(self.folder(release))}
            with contextlib.suppress(CorruptError):  # a damaged manifest: linked files are still kept
                used |= {entry["sha256"] for entry in read_checked(self.folder(release))[1]["files"]}
        for path in self._all(self.versions):
            if path.name not in names:
                disk.remove(path)
        for path in self._all(self.records):
            if path.name not in names:
                disk.remove(path)
        for path in self._all(self.objects):
            if path.name not in used and path.stat().st_ino not in inodes:
                freed += path.stat().st_size
                disk.remove(path)
        return freed

    def _all(self, folder: Path) -> Iterator[Path]:
        yield from sorted(folder.iterdir()) if folder.is_dir() else ()

    def note(self, release: str, kind: str, value: Mapping[str, Any]) -> None:
        """Save the result of a check of a version as `records/<release>/<kind>.json`."""
        disk.make_folder(self.records / release)
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        disk.write(self.records / release / f"{kind}.json", text.encode() + b"\n")

    def noted(self, release: str, kind: str) -> dict[str, Any]:
        """The saved result; empty when there is none."""
        try:
            value = json.loads((self.records / release / f"{kind}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
