"""Every operation that changes the disk, ordered so that a power failure at any step leaves the old or the new state.

A file is written under a temporary name, flushed to the disk, and renamed; then its folder is flushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.base import locks

BLOCK = 1 << 20


def _nothing(step: str, path: Path) -> None:
    """The default hook, which does nothing."""


before: Callable[[str, Path], None] = _nothing
"""Called with the name and path of each step before it is done; tests count steps here and interrupt at them."""


def make_folder(path: Path) -> None:
    """Create the folder `path` and its missing parents."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            before("mkdir", folder)
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


def write(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all; an earlier file is replaced."""
    staging = path.with_name(f".{path.name}.partial")
    before("write", staging)
    with staging.open("wb") as file:
        file.write(data)
        file.flush()
        before("fsync", staging)
        os.fsync(file.fileno())
    rename(staging, path)


def append(path: Path, line: str) -> None:
    """Append one line to `path`; an incomplete earlier line is ended first."""
    before("append", path)
    new = not path.exists()
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        before("fsync", path)
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def copy(source: Path, target: Path) -> str:
    """Copy a file's contents to `target` without a rename; returns the hex SHA-256 of what was written."""
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(BLOCK):
            before("write", target)
            digest.update(block)
            new.write(block)
        new.flush()
        before("fsync", target)
        os.fsync(new.fileno())
    return digest.hexdigest()


def link(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy where the file system has no hard links."""
    before("link", target)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        copy(source, target)


def rename(source: Path, target: Path) -> None:
    """Move `source` to `target` in one step, replacing a file there."""
    before("rename", target)
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of `folder`."""
    before("fsync", folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file or a folder with its contents; a missing path is not an error."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove(inner)
        before("rmdir", path)
        path.rmdir()
    else:
        before("unlink", path)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, for one writer at a time. Its folder is created first."""
    make_folder(path.parent)
    with locks.locked(path):
        yield
