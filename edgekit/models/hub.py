"""Models on the Hugging Face hub: resolves names to commits, reads the size of weights, and downloads them.

huggingface_hub keeps the cache. A large file is downloaded here into that cache, because an interrupted download goes on
where it stopped; huggingface_hub 2 begins such a file again.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Emit, Progress, StageFinished, StageStarted, ignore
from edgekit.base.hub import client, failed
from edgekit.base.locks import locked
from edgekit.containers.safetensors import INDEX

WEIGHTS = ("*.safetensors",)
SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", "README.md", "LICENSE*")
"""The files downloaded in addition to the weights: configuration, tokenizer, licence."""
HINT = "Check the name, its revision and the network, or give a folder on this machine."
STAGE = "download"
MIB = 2**20
TOLD_EVERY_S = 0.5


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in the hub cache."""

    folder: Path
    commit: str


def fetch(repository: str, revision: str | None, patterns: Sequence[str], emit: Emit = ignore) -> Snapshot:
    """Download the files of `repository` that match one of `patterns` and are not in the hub cache.

    `revision` is a branch, a tag or a commit; None is the default branch. Where downloads are turned off, the cache must
    hold them. Raises `ConfigError` with the hub's reason when that fails, and `MissingPartError` without huggingface_hub.
    """
    hub = client()
    if hub.constants.is_offline_mode():
        return cached(repository, revision, patterns)
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # progress is told by events
    info = _info(repository, revision)
    commit = str(info.sha)
    files = [file for file in wanted(info.siblings or (), patterns) if not _here(repository, file, commit)]
    download = _Download(repository, commit, sum(int(file.size or 0) for file in files), emit)
    start = time.monotonic()
    if any(file.lfs for file in files):
        emit(StageStarted(STAGE, repository))
    try:
        for file in files:
            download.take(file)
        folder = Path(hub.hf_hub_download(repository, "config.json", revision=commit)).parent
    except (ConfigError, CorruptError):
        raise
    except Exception as error:
        raise _failed(repository, revision, error) from error
    if any(file.lfs for file in files):
        emit(StageFinished(STAGE, time.monotonic() - start))
    if revision != commit:  # so that the name is known without a network
        ref = folder.parents[1] / "refs" / (revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit, encoding="ascii")
    return Snapshot(folder, commit)


def cached(repository: str, revision: str | None, patterns: Sequence[str]) -> Snapshot:
    """The same from the hub cache alone. Raises `ConfigError`, which names what is missing."""
    hub = client()
    name = f"{repository}@{revision}" if revision else repository
    hint = "Run the same command once with a network and without --offline, or give a folder on this machine."
    config = hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        raise ConfigError(
            f"There is no folder {name}, so it is taken as a hub id, and --offline forbids its download: "
            f"the hub cache {cache_folder()} does not have it.",
            hint,
        )
    folder = Path(config).parent
    missing = _missing(folder, patterns)
    if missing:
        raise ConfigError(
            f"The hub cache has only a part of {name}: {', '.join(missing)} is missing, and --offline forbids its download.",
            hint,
        )
    return Snapshot(folder, folder.name)


def _missing(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files that a model needs and that its cached folder does not have."""
    needed = (
        {"config.json", "tokenizer.json"} if not (folder / "tokenizer.model").is_file() else {"config.json"}
    )
    if set(WEIGHTS) <= set(patterns):
        index = folder / INDEX
        try:
            named = json.loads(index.read_text("utf-8"))["weight_map"].values() if index.is_file() else ()
        except (OSError, ValueError, KeyError, AttributeError, RecursionError):
            named = ()
        needed |= set(map(str, named))
        if not named and not any(folder.glob(WEIGHTS[0])):
            needed.add("model.safetensors")
    return sorted(name for name in needed if not (folder / name).is_file())


def wanted(files: Iterable[Any], patterns: Sequence[str]) -> list[Any]:
    """The files to download: those of the top folder, and of the weights one form, if there are several.

    Some models have their weights twice, in transformers' form (`model-00001-of-00002.safetensors`) and in the maker's.
    """
    top = [file for file in files if "/" not in file.rfilename]
    weights = [file for file in top if fnmatch(file.rfilename, WEIGHTS[0])]
    standard = [file for file in weights if file.rfilename.startswith("model")]
    others = [file for file in weights if standard and file not in standard]
    return [
        file for file in top if file not in others and any(fnmatch(file.rfilename, one) for one in patterns)
    ]


def missing_bytes(repository: str, revision: str | None) -> int:
    """Bytes of the model's weights that are not in the hub cache yet, by the sizes that the hub lists."""
    if client().constants.is_offline_mode():
        return 0  # what is missing is an error of `cached`
    info = _info(repository, revision)
    weights = wanted(info.siblings or (), WEIGHTS)
    return sum(int(file.size or 0) for file in weights if not _here(repository, file, str(info.sha)))


def weight_count(repository: str, revision: str | None) -> int | None:
    """The number of weights by the hub's metadata of the safetensors files; None if it has none."""
    hub = client()
    if hub.constants.is_offline_mode():
        return None
    found = getattr(_info(repository, revision), "safetensors", None)
    total = getattr(found, "total", None)
    return int(total) if total else None


def cache_folder() -> Path:
    """The folder of downloads."""
    return Path(client().constants.HF_HUB_CACHE)


@dataclass
class _Download:
    """The files of one commit, taken one by one; `total` bytes altogether."""

    repository: str
    commit: str
    total: int
    emit: Emit
    done: int = 0
    received: int = 0
    start: float = field(default_factory=time.monotonic)
    told: float = 0.0

    def take(self, file: Any) -> None:
        """Download one file into the hub cache."""
        hub = client()
        if file.lfs:
            self._large(file)
        hub.hf_hub_download(self.repository, file.rfilename, revision=self.commit)
        if not file.lfs:
            self.done += int(file.size or 0)

    def _large(self, file: Any) -> None:
        """Download a large file to its place in the cache, beginning with what an earlier attempt has left."""
        from huggingface_hub.file_download import repo_folder_name

        digest = str(file.lfs.sha256)
        if not re.fullmatch("[0-9a-f]{64}", digest):  # it becomes a file's name
            raise CorruptError(
                f"The hub's list of {self.repository} has no valid SHA-256 for {file.rfilename}. It was not downloaded.",
                "Use another revision of the model, or a folder on this machine.",
            )
        blobs = cache_folder() / repo_folder_name(repo_id=self.repository, repo_type="model") / "blobs"
        blob, part = blobs / digest, blobs / f"{digest}.edgekit-part"
        with locked(part.with_suffix(".lock")):  # a second process waits, and then finds the file there
            if not blob.exists():
                self._continue(part, file)
                part.replace(blob)

    def _continue(self, part: Path, file: Any) -> None:
        """Download what `part` still lacks of a file. Raises `CorruptError`, and removes it, when it is another file."""
        from huggingface_hub.file_download import http_get

        hub = client()
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with _Counted(part, self, file.rfilename) as out:
            self.done += out.before
            url = hub.hf_hub_url(self.repository, file.rfilename, revision=self.commit)
            http_get(
                url,
                out,
                resume_size=out.before,
                headers=hub.utils.build_hf_headers(),
                expected_size=int(file.size),
                displayed_filename=file.rfilename,
            )
        if sha256_file(part) != file.lfs.sha256:
            part.unlink()
            raise CorruptError(
                f"{file.rfilename} of {self.repository} was damaged during its download; it was removed.",
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


def _here(repository: str, file: Any, commit: str) -> bool:
    return isinstance(client().try_to_load_from_cache(repository, file.rfilename, revision=commit), str)


@lru_cache(maxsize=16)
def _info(repository: str, revision: str | None) -> Any:
    """What the hub says of a revision; asked once, so that all files of a command are of one commit."""
    hub = client()
    try:
        return hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:
        raise _failed(repository, revision, error) from error


def _failed(repository: str, revision: str | None, error: Exception) -> ConfigError:
    return failed(f"{repository}@{revision}" if revision else repository, error, HINT)
