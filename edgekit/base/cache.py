"""The stage cache: finished stages by the digest of everything that their result depends on.

    <root>/<stage>/<key>/            output of a finished stage, with `stage.json` beside its files
    <root>/<stage>/<key>.work/       what an interrupted stage left for its next try (checkpoints)
    <root>/<stage>/<key>.partial/    output being written; renamed when complete
    <root>/.locks/                   locks of running stages, and of the processes that use the cache

A key is the digest of the stage's name, its inputs and options, the code that does its work and the versions of the
packages which that code imports (`edgekit.base.code`). One process makes a stage at a time; another one that needs the
same stage waits and takes the finished output.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from edgekit.base.artifacts import digest_of, list_files, remove, sha256_file, tree_digest, write_json
from edgekit.base.cache_users import LOCKS, join
from edgekit.base.code import code_of, own_code, versions_of
from edgekit.base.errors import StageError, reason
from edgekit.base.events import Alert, Emit, Event, GateResult, Measured, StageFinished, StageStarted
from edgekit.base.locks import locked
from edgekit.base.memory import PeakRss, give_back, keep_for_good

RECORD = "stage.json"
SMALL = 1 << 20  # bytes; smaller files are read again whenever their stage is reused
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)

Run = Callable[[Path, Path], dict[str, Any] | None]


@dataclass(frozen=True)
class StageOutput:
    """A finished stage: its folder, the digest of its files, its result, and its cost."""

    name: str
    path: Path
    digest: str
    result: dict[str, Any]
    seconds: float
    peak_rss_mib: float
    facts: tuple[GateResult | Measured, ...]
    cached: bool
    files: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each file, by its path in the folder."""


class Cache:
    """Runs each stage once: the same inputs, options, code and package versions give the earlier output."""

    def __init__(self, root: Path, emit: Emit) -> None:
        self.root = root
        self.facts: list[GateResult | Measured] = []
        self._emit = emit
        self._lock: FileLock | None = (
            None  # held from the first stage on, so that no process cleans the cache
        )

    def emit(self, event: Event) -> None:
        """Pass `event` on; gates and measurements are stored, and emitted again when their stage comes from the cache."""
        if isinstance(event, GateResult | Measured):
            self.facts.append(event)
        self._emit(event)

    @property
    def gates(self) -> list[GateResult]:
        """Every gate of this run, in order."""
        return [fact for fact in self.facts if isinstance(fact, GateResult)]

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        run: Run,
        modules: Sequence[str] = (),
        packages: Sequence[str] = (),
    ) -> StageOutput:
        """The output of stage `name`, from an earlier run or from `run(out, work)`.

        `run` writes the new folder `out`, may keep files for resuming in the folder `work`, and returns JSON values. An
        exception leaves `work`, removes `out`, and keeps all finished stages. The key contains the code of `modules`, which
        do the work, of the module of `run`, and of all their imports, and the versions of imported packages and of the
        distributions `packages`. While another process makes the same stage, this one waits.
        """
        depends = {
            "code": {**code_of(modules), **own_code(run.__module__)},
            "versions": versions_of(modules, packages),
        }
        key = digest_of({"stage": name, "inputs": inputs, **depends})[:20]
        final = self.root / name / key
        with _disk_errors(name):
            self._lock = self._lock or join(self.root)
            with locked(
                self.root / LOCKS / f"{name}.{key}",
                waiting=lambda: self.emit(
                    Alert("info", f"Waiting for another edgekit process, which is making the stage '{name}'.")
                ),
            ):
                found = self._find(name, final)
                if found is not None:
                    for fact in found.facts:
                        self.emit(fact)
                    self.emit(StageFinished(name, found.seconds, cached=True))
                    return found
                return self._make(name, inputs, run, final)

    def _make(self, name: str, inputs: Mapping[str, Any], run: Run, final: Path) -> StageOutput:
        """Run the stage; the caller holds its lock, so a `.partial` folder belongs to a process that has ended."""
        work, out = (final.with_name(f"{final.name}.{kind}") for kind in ("work", "partial"))
        remove(out)
        work.mkdir(parents=True, exist_ok=True)
        self.emit(StageStarted(name))
        start, facts_before = time.perf_counter(), len(self.facts)
        try:
            with PeakRss() as memory:
                result = run(out, work) or {}
            out.mkdir(exist_ok=True)
            seconds = time.perf_counter() - start
            files = {file.relative_to(out).as_posix(): _state(file) for file in list_files(out)}
            record = {
                "stage": name,
                "inputs": dict(inputs),
                "result": result,
                "seconds": round(seconds, 3),
                "peak_rss_mib": round(memory.peak_mib, 1),
                "facts": [
                    {"event": type(fact).__name__, **asdict(fact)} for fact in self.facts[facts_before:]
                ],
                "digest": tree_digest({path: state["sha256"] for path, state in files.items()}),
                "files": files,
            }
            write_json(out / RECORD, record)
            os.rename(out, final)
        finally:
            remove(out)
            give_back()  # before the next stage needs it
            keep_for_good()  # what the stage has imported
        remove(work)
        self.emit(StageFinished(name, seconds))
        return _output(name, final, record, cached=False)

    def give(self, stage: StageOutput, file: Path, place: Path) -> None:
        """Leave `file` of a stage, of which `place` is a hard link, to `place`; the cache keeps a symbolic link to it.

        The stage's next use copies it back.
        """
        record = json.loads((stage.path / RECORD).read_text(encoding="utf-8"))
        name = file.relative_to(stage.path).as_posix()
        write_json(stage.path / RECORD, {**record, "given": sorted({*record.get("given", []), name})})
        link = stage.path.with_name(f"{stage.path.name}.partial")
        remove(link)
        link.symlink_to(place.resolve())
        os.replace(link, file)

    def _find(self, name: str, final: Path) -> StageOutput | None:
        try:
            record = json.loads((final / RECORD).read_text(encoding="utf-8"))
            states = {final / path: state for path, state in record["files"].items()}
            given = {final / path: states[final / path]["mtime_ns"] for path in record.get("given", ())}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            remove(final)
            return None
        given = {file: written for file, written in given.items() if file.is_symlink() and file.is_file()}
        for file in given:
            self._take_back(file, final)
        try:
            changed = next((file for file, state in states.items() if _changed(file, state)), None)
            for file, written in given.items():
                os.utime(file, ns=(written, written))
        except (OSError, ValueError, KeyError, TypeError):
            remove(final)
            return None
        if changed is not None:
            what = (
                f"{changed.readlink()} was moved or removed"
                if changed.is_symlink()
                else f"{changed} was changed"
            )
            self.emit(Alert("warning", f"{what} after stage '{name}' wrote it; the stage runs again."))
            remove(final)
            return None
        os.utime(final / RECORD)  # the time of last use, for `edgekit cache`
        return _output(name, final, record, cached=True)

    def _take_back(self, file: Path, final: Path) -> None:
        """Copy a file that an output was given, in place of the symbolic link to it."""
        staging = final.with_name(f"{final.name}.partial")
        remove(staging)
        staging.mkdir()
        self.emit(Alert("info", f"Copying {file.resolve()} back into the cache."))
        try:
            shutil.copyfile(file, staging / file.name)
            os.replace(staging / file.name, file)
        finally:
            remove(staging)


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *REFUSED):
            raise
        mend = "Free some disk space" if error.errno in FULL else "Make the folder of the cache writable"
        raise StageError(
            f"The stage '{name}' could not write its output: {reason(error)}.",
            f"{mend} and run the same command again; finished stages are kept.",
        ) from error


def _state(file: Path) -> dict[str, Any]:
    at = file.stat()
    return {"bytes": at.st_size, "mtime_ns": at.st_mtime_ns, "sha256": sha256_file(file)}


def _changed(file: Path, state: Mapping[str, Any]) -> bool:
    """Whether a cached file has changed since it was written.

    It compares the size, and the digest of small files and of large files with another modification time. A changed large
    file with its old modification time is not noticed here; the digests of a bundle are checked when it is opened.
    """
    try:
        at = file.stat()
    except OSError:
        return True
    if at.st_size != state["bytes"]:
        return True
    if at.st_size > SMALL and at.st_mtime_ns == state["mtime_ns"]:
        return False
    return sha256_file(file) != str(state["sha256"])


def _output(name: str, path: Path, record: Mapping[str, Any], *, cached: bool) -> StageOutput:
    facts = tuple(_fact(dict(fact)) for fact in record["facts"])
    return StageOutput(
        name,
        path,
        record["digest"],
        record["result"],
        record["seconds"],
        record["peak_rss_mib"],
        facts,
        cached,
        {file: state["sha256"] for file, state in record["files"].items()},
    )


def _fact(fields: dict[str, Any]) -> GateResult | Measured:
    return (GateResult if fields.pop("event") == "GateResult" else Measured)(**fields)
