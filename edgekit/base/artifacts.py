"""Files as artifacts: digests, and outputs that are written completely or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, reason


def sha256_file(path: Path) -> str:
    """The hex SHA-256 of one file, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Every regular file below `folder`, in the order of their relative POSIX paths."""
    return sorted(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix()
    )


def sha256_tree(path: Path) -> str:
    """The hex SHA-256 of a file, or of a folder's relative names and contents."""
    if path.is_file():
        return sha256_file(path)
    return tree_digest({file.relative_to(path).as_posix(): sha256_file(file) for file in list_files(path)})


def tree_digest(files: Mapping[str, str]) -> str:
    """The hex SHA-256 of a folder, from the digest of each file below it, in the order of `list_files`."""
    lines = "".join(f"{path}\0{sha256}\n" for path, sha256 in files.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def digest_of(value: Any) -> str:
    """The hex SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in list_files(path))


def remove(path: Path) -> None:
    """Remove a file or a folder; a missing path is not an error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the file `path` when what writes it fails or is interrupted."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def check_output(
    final: Path,
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    file: bool = False,
    option: str = "--out",
) -> None:
    """Raise `ConfigError` when `final` cannot be written, or something would be lost by it.

    That is what exists, without `force`; and always one of the `inputs`, the working folder, a folder around them, and a
    folder in whose place a `file` would come. `option` gave the path.
    """
    another = f"Use another {option}."
    try:
        if file and final.is_dir():
            raise ConfigError(
                f"{final} is a folder; it was not changed.", f"Give {option} the name of a file."
            )
        if final.exists() and not force:
            raise ConfigError(
                f"{final} already exists; it was not changed.",
                f"Use another {option}, or add --force to replace it.",
            )
        for used in (*inputs, Path.cwd()) if final.exists() else ():
            if used.exists() and used.resolve().is_relative_to(final.resolve()):
                what = "is in use" if used.samefile(final) else f"holds {used}, which is in use"
                raise ConfigError(f"{final} {what}; it was not changed.", another)
        final.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(final, "partial")
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = (
            f"{final.parent} is no folder"
            if isinstance(error, FileExistsError | NotADirectoryError)
            else reason(error)
        )
        raise ConfigError(f"{final} cannot be written: {why}. Nothing was started.", another) from error


def _beside(final: Path, ending: str) -> Path:
    return final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.{ending}"


@contextmanager
def written_whole(
    final: Path,
    *,
    inputs: Iterable[Path] = (),
    force: bool = False,
    file: bool = False,
    option: str = "--out",
) -> Iterator[Path]:
    """Yield a temporary path in the folder of `final`; on success it is renamed to `final`, else removed.

    Raises as `check_output`, before anything is written.
    """
    check_output(final, inputs=inputs, force=force, file=file, option=option)
    staging = _beside(final, "partial")
    try:
        yield staging
        if final.is_dir():  # a folder cannot be replaced in one rename: move the old one aside first
            old = _beside(final, "old")
            os.rename(final, old)
            os.rename(staging, final)
            remove(old)
        else:
            os.replace(staging, final)
    finally:
        remove(staging)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, completely or not at all."""
    staging = path.with_name(f".{path.name}.partial")
    staging.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staging, path)
