"""Downloads from the Hugging Face hub into its cache; an interrupted download goes on where it stopped.

huggingface_hub 2 begins a large file again after an interruption, so large files are downloaded here.
"""

from __future__ import annotations

import glob
import io
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import CorruptError, EdgekitError
from edgekit.base.events import Alert, Emit, Progress, StageFinished, StageStarted, ignore
from edgekit.base.hub import File, Listing, Repository, client, failed, lacking, repository_folder
from edgekit.base.locks import locked

STAGE = "download"
AGAIN = "Run the same command again; the download continues where it stopped."
IN_EACH = ".gitattributes"  # in every repository that has large files
MIB = 2**20
TOLD_EVERY_S = 0.5


def download(repository: Repository, found: Listing, files: Sequence[File], emit: Emit = ignore) -> Path:
    """Download those of `files` that the cache lacks; returns the folder of the commit in the cache.

    The list of all files is kept beside them. Raises `ConfigError` with the hub's reason when that fails, and
    `CorruptError` for a file that is not the one that the hub lists.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # progress is told by events
    hub, start = client(), time.monotonic()
    cache = repository_folder(repository)
    snapshot = cache / "snapshots" / found.commit
    missing = lacking(snapshot, files)
    for cut in filter(Path.is_file, (snapshot / file.name for file in missing)):
        cut.resolve().unlink()
        cut.unlink(missing_ok=True)
    large = [file for file in missing if file.sha256]
    under_way = _Download(repository, found.commit, sum(file.bytes for file in missing), emit)
    if missing:
        count = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        size = f"{under_way.total / MIB:,.1f} MiB"
        emit(Alert("info", f"Downloading {count} of {repository.label}, {size}."))
    if large:
        emit(StageStarted(STAGE, repository.name))
    small = [file.name for file in files if not file.sha256] or [IN_EACH]
    try:
        folder = hub.snapshot_download(
            repository.name,
            repo_type=repository.kind,
            revision=found.commit,
            allow_patterns=[glob.escape(name) for name in small],
        )
        under_way.done += sum(file.bytes for file in missing if not file.sha256)
        ref = cache / "refs" / (repository.revision or "main")
        if not ref.exists():  # after an interruption, what is missing can be named without a network
            _write_ref(ref, found.commit)
        for file in large:
            under_way.take(file)
    except EdgekitError:
        raise
    except Exception as error:
        raise failed(repository, error, AGAIN) from error
    if large:
        emit(StageFinished(STAGE, time.monotonic() - start))
    _write_ref(ref, found.commit)
    return Path(folder)


def _write_ref(ref: Path, commit: str) -> None:
    """Note which commit a branch or a tag is, so that its name is known without a network."""
    if ref.name != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="ascii")


@dataclass
class _Download:
    """The large files of one commit, taken one by one; `total` bytes altogether."""

    repository: Repository
    commit: str
    total: int
    emit: Emit
    done: int = 0
    received: int = 0
    start: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def take(self, file: File) -> None:
        """Download a file to its place in the cache, beginning with what an earlier attempt has left."""
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):  # it becomes a file's name
            raise CorruptError(
                f"The hub's list of {self.repository.name} has no valid SHA-256 for {file.name}. It was not downloaded.",
                "Use another revision, or files on this machine.",
            )
        blobs = repository_folder(self.repository) / "blobs"
        blob, part = blobs / file.sha256, blobs / f"{file.sha256}.edgekit-part"
        with locked(part.with_suffix(".lock")):  # a second process waits, and then finds the file there
            if not blob.exists():
                self._continue(part, file)
                part.replace(blob)
        client().hf_hub_download(
            self.repository.name, file.name, repo_type=self.repository.kind, revision=self.commit
        )

    def _continue(self, part: Path, file: File) -> None:
        """Download what `part` still lacks of a file. Raises `CorruptError`, and removes it, when it is another file."""
        from huggingface_hub.file_download import http_get

        hub = client()
        if part.exists() and part.stat().st_size > file.bytes:
            part.unlink()
        with _Counted(part, self, file.name) as out:
            self.done += out.before
            http_get(
                hub.hf_hub_url(
                    self.repository.name, file.name, repo_type=self.repository.kind, revision=self.commit
                ),
                out,
                resume_size=out.before,
                headers=hub.utils.build_hf_headers(),
                expected_size=file.bytes,
                displayed_filename=file.name,
            )
        if sha256_file(part) != file.sha256:
            part.unlink()
            raise CorruptError(
                f"{file.name} of {self.repository.name} was damaged during its download; it was removed.",
                "Run the same command again.",
            )

    def count(self, size: int, name: str) -> None:
        """Note that `size` bytes of the file `name` have arrived."""
        self.done += size
        self.received += size
        now = time.monotonic()
        if now - self.told >= TOLD_EVERY_S or self.done == self.total:
            self.told = now
            rate = self.received / max(now - self.start, 1e-6) / MIB
            note = f"{name}, {rate:.1f} MiB/s"
            self.emit(Progress(STAGE, round(self.done / MIB, 1), round(self.total / MIB, 1), "MiB", note))


class _Counted(io.FileIO):
    """A file that is continued at its end, and that counts what is written to it."""

    def __init__(self, path: Path, download: _Download, name: str) -> None:
        super().__init__(path, "ab+")
        self.before = path.stat().st_size
        self._download, self._name = download, name

    def write(self, data: Any, /) -> int:
        """Write all of `data`."""
        written = super().write(data)
        self._download.count(written, self._name)
        return written
