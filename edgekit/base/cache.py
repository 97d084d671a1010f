"""Finished stages, kept by the digest of everything their result depends on.

    <root>/<stage>/<key>/            output of a finished stage, with `stage.json` beside its files
    <root>/<stage>/<key>.work/       what an interrupted stage left for its next try (checkpoints)
    <root>/<stage>/<key>.partial/    output being written; renamed when whole

A key is the digest of the stage's name, inputs, options and the versions of the packages that do the work.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import digest_of, list_files, remove, sha256_tree, write_json
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Emit, Event, GateResult, Measured, StageFinished, StageStarted
from edgekit.base.memory import PeakRss

RECORD = "stage.json"


@dataclass(frozen=True)
class StageOutput:
    """A finished stage: its folder, the digest of its files, what it returned, and what it cost."""

    name: str
    path: Path
    digest: str
    result: dict[str, Any]
    seconds: float
    peak_rss_mib: float
    facts: tuple[GateResult | Measured, ...]
    cached: bool


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of `packages`; one that is missing is left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class Cache:
    """Runs stages once: the same inputs, options and versions give the earlier output."""

    def __init__(self, root: Path, emit: Emit) -> None:
        self.root = root
        self.facts: list[GateResult | Measured] = []
        self._emit = emit

    def emit(self, event: Event) -> None:
        """Pass `event` on; gates and measurements are kept, and told again when their stage comes from the cache."""
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
        run: Callable[[Path, Path], dict[str, Any] | None],
        packages: Sequence[str] = (),
    ) -> StageOutput:
        """The output of stage `name`, from an earlier run or from `run(out, work)`.

        `run` writes the new folder `out` and may keep what helps to resume in the folder `work`; what it returns
        must be JSON. An exception leaves `work`, removes `out`, and keeps every finished stage.
        """
        key = digest_of({"stage": name, "inputs": inputs, "versions": versions(("edgekit", *packages))})[:20]
        final = self.root / name / key
        found = self._find(name, final)
        if found is not None:
            for fact in found.facts:
                self.emit(fact)
            self.emit(StageFinished(name, found.seconds, cached=True))
            return found
        work, out = final.with_name(f"{key}.work"), final.with_name(f"{key}.partial")
        remove(out)
        work.mkdir(parents=True, exist_ok=True)
        self.emit(StageStarted(name))
        start, facts_before = time.perf_counter(), len(self.facts)
        try:
            with PeakRss() as memory:
                result = run(out, work) or {}
            out.mkdir(exist_ok=True)
            seconds = time.perf_counter() - start
            record = {
                "stage": name,
                "inputs": dict(inputs),
                "result": result,
                "seconds": round(seconds, 3),
                "peak_rss_mib": round(memory.peak_mib, 1),
                "facts": [
                    {"event": type(fact).__name__, **asdict(fact)} for fact in self.facts[facts_before:]
                ],
                "digest": sha256_tree(out),
                "sizes": {file.relative_to(out).as_posix(): file.stat().st_size for file in list_files(out)},
            }
            write_json(out / RECORD, record)
            os.rename(out, final)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            raise StageError(
                f"The stage '{name}' could not write its output: {error.strerror or error}.",
                "Free some disk space and run the same command again; finished stages are kept.",
            ) from error
        finally:
            remove(out)
        remove(work)
        self.emit(StageFinished(name, seconds))
        return _output(name, final, record, cached=False)

    def _find(self, name: str, final: Path) -> StageOutput | None:
        try:
            record = json.loads((final / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            remove(final)
            return None
        for relative, size in record["sizes"].items():
            file = final / relative
            if not file.exists() or file.stat().st_size != size:
                self.emit(
                    Alert(
                        "warning", f"{file} was changed after stage '{name}' wrote it; the stage runs again."
                    )
                )
                remove(final)
                return None
        return _output(name, final, record, cached=True)


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
    )


def _fact(fields: dict[str, Any]) -> GateResult | Measured:
    return (GateResult if fields.pop("event") == "GateResult" else Measured)(**fields)
