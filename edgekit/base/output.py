"""An output folder that takes files of finished stages, without a second copy on the disk where that is possible.

A large file becomes a hard link: one file with a name in the cache and one in the output. Some readers refuse a file with
two names, because it could be changed under the other one (external weights of ONNX models). A file for such a reader is
copied, or, above 256 MiB, given to the output: the cache keeps a symbolic link to it instead, and copies it back when it
uses the stage again (`Cache.stage`). Where a link cannot be made, for example on another file system, the file is copied.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.base.artifacts import list_files, remove, sha256_file, written_whole
from edgekit.base.cache import SMALL, Cache, StageOutput
from edgekit.base.cache_users import others_wait
from edgekit.base.errors import StageError

GIVEN = 256 << 20  # bytes; a smaller file is copied for a reader that refuses links


@dataclass
class Output:
    """A folder that is being written; it gets its final name when it is complete."""

    folder: Path
    _cache: Cache
    _give: bool
    _open: contextlib.ExitStack
    _given: list[tuple[StageOutput, Path, Path]] = field(default_factory=list)

    def put(self, stage: StageOutput, source: Path, name: str, *, one_name: bool = False) -> None:
        """Put the file or folder `source` of a finished stage into the output as `name`.

        `one_name` says that its reader refuses files with a second name. Raises `StageError` when a file is not the one
        that the stage wrote; the stage then runs again the next time.
        """
        if not source.is_dir():
            return self._put(stage, source, name, one_name)
        (self.folder / name).mkdir()
        for file in list_files(source):
            self._put(stage, file, f"{name}/{file.relative_to(source).as_posix()}", one_name)

    def _put(self, stage: StageOutput, file: Path, name: str, one_name: bool) -> None:
        target, size = self.folder / name, file.stat().st_size
        target.parent.mkdir(parents=True, exist_ok=True)
        may_link = size > SMALL and not file.is_symlink()
        if one_name and may_link:
            may_link = self._give and size > GIVEN and self._is_alone()
        if may_link and _linked(file, target):
            if one_name:
                self._given.append((stage, file, Path(name)))
        else:
            shutil.copyfile(file, target)
        if sha256_file(target) != stage.files.get(file.relative_to(stage.path).as_posix()):
            remove(stage.path)
            raise StageError(
                f"{file} was changed after stage '{stage.name}' wrote it; {self.folder.name} was not written.",
                "Run the same command again: the stage runs again. Edit copies of files, not the files of a bundle.",
            )

    def _is_alone(self) -> bool:
        """Whether no other process uses the cache; from now on until the output is complete, none can begin to."""
        if not self._given:
            users = self._open.enter_context(others_wait(self._cache.root))
            self._give = users <= 1
        return self._give

    def finish(self, final: Path) -> None:
        """Leave the files that were given away to the output, which is now the folder `final`."""
        for stage, file, name in self._given:
            self._cache.give(stage, file, final / name)


@contextlib.contextmanager
def output(
    cache: Cache, final: Path, *, inputs: Iterable[Path] = (), force: bool = False, give: bool = True
) -> Iterator[Output]:
    """Yield a new `Output`, whose folder is renamed to `final` on success and removed otherwise; see `written_whole`.

    Without `give` no file leaves the cache.
    """
    with contextlib.ExitStack() as opened:
        with written_whole(final, inputs=inputs, force=force) as staging:
            made = Output(staging, cache, give, opened)
            yield made
        made.finish(final)


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file, target)
    except OSError:
        return False
    return True
