"""The record of a build: what runs in a cache, or how it ended, for whoever watches from another process.

    <cache>/run.json        who builds what since when, the stages to come, and how it ended
    <cache>/events.jsonl    what it says meanwhile (`edgekit.events`)

A process is known by its id and its start, so that another one with the same id is not taken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from edgekit.artifacts import remove, write_json
from edgekit.errors import ConfigError, EdgekitError, StageError
from edgekit.events import LARGEST, Event, StageFinished
from edgekit.incidents.words import clock
from edgekit.releases.disk import locked

if TYPE_CHECKING:
    from edgekit.pipeline import Request

SCHEMA = "edgekit.run/1"
FILE, EVENTS, LOCK = "run.json", "events.jsonl", ".run.lock"
LONGEST = 1 << 20  # bytes of a record that is read
SAME_START_S = 1.5  # the system's own time of its start is rounded to seconds and may shift by one
KEPT = "Finished stages are kept: run the same command again to go on."

State = Literal["RUNNING", "PASSED", "FAILED", "STOPPED"]
Outcome = Literal["pass", "fail", "error", "interrupted"]
STATES: dict[str, State] = {"pass": "PASSED", "fail": "FAILED", "error": "STOPPED", "interrupted": "STOPPED"}


@dataclass(frozen=True)
class Run:
    """A build, under way or ended; times are Unix seconds.

    `process_start` is in seconds since the machine's own start, which a change of its clock does not touch. `seconds` is
    how long each stage takes, from earlier builds of the same model and data and from this one.
    """

    cache_dir: Path
    pid: int = 0
    process_start: float = 0.0
    started: float = 0.0
    model: str = ""
    target: str = ""
    data: str = ""
    out: Path = Path()
    stages: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    seconds_expected: float | None = None
    ended: float | None = None
    outcome: Outcome | None = None
    message: str = ""
    hint: str = ""
    alive: bool = False
    """Whether its process is there, when this was read."""

    @property
    def state(self) -> State:
        """RUNNING, PASSED, FAILED by a gate, or STOPPED before its end."""
        if self.outcome is not None:
            return STATES[self.outcome]
        return "RUNNING" if self.alive else "STOPPED"

    @property
    def ending(self) -> str:
        """How it ended and what to do now, in words; empty while it runs."""
        match self.state:
            case "RUNNING":
                return ""
            case "PASSED":
                return "Every gate held."
            case "FAILED":
                return self.message
        if self.outcome is None and not self.message:
            return f"Process {self.pid} is gone without a word: killed, or out of memory. {KEPT}"
        return f"{self.message} {self.hint}".strip()


def read(cache_dir: Path) -> Run | None:
    """The latest run in a cache; None where there was none. A record that cannot be read is a stopped run that says so."""
    path = cache_dir / FILE
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ValueError("it is too large")
        run = _parse(json.loads(text), cache_dir)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is damaged, or of another version"
        return Run(
            cache_dir,
            message=f"The record {FILE} of the last build cannot be read: {why}.",
            hint="The next build writes it anew.",
        )
    return replace(run, alive=run.outcome is None and _process(run) is not None)


def is_ours(run: Run) -> bool:
    """Whether this process started the run's."""
    process = _process(run)
    try:
        return process is not None and process.ppid() == os.getpid()
    except psutil.Error:
        return False


def interrupt(run: Run) -> None:
    """Stop a run as ctrl-c does: finished stages are kept. Raises `StageError` when that is not possible."""
    if _process(run) is None:
        raise StageError(f"Process {run.pid} is gone already; nothing was stopped.", KEPT)
    try:
        os.kill(run.pid, signal.SIGINT)
    except OSError as error:
        raise StageError(
            f"Process {run.pid} could not be stopped: {error.strerror}.", "Only who started it, or root, can."
        ) from error


def rss_mib(run: Run) -> float | None:
    """Resident memory of the run's process and those below it, MiB; None when it is gone or does not tell."""
    from edgekit.memory import tree_rss_mib

    process = _process(run)
    try:
        return None if process is None else tree_rss_mib(process)
    except psutil.Error:
        return None


class Recorder:
    """Writes the record of this process's build; `emit` is told every event."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def emit(self, event: Event) -> None:
        """Remember how long a stage took."""
        if isinstance(event, StageFinished):
            self.run.seconds[event.stage] = round(event.seconds, 3)
            if not event.cached:
                self._write()

    def expect(self, seconds: float) -> None:
        """Say how long the whole build may take."""
        self._write(seconds_expected=seconds)

    def judge(self, report: dict[str, Any]) -> None:
        """End the run with the verdict of its report."""
        failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
        if report["verdict"] == "pass":
            self.end("pass")
        else:
            self.end(
                "fail",
                f"Built, but worse than its budget allows: {', '.join(failed) or 'nothing was proven'}.",
            )

    def end(self, outcome: Outcome, message: str = "", hint: str = "") -> None:
        """Write how it ended, once."""
        if self.run.outcome is None:
            self._write(ended=time.time(), outcome=outcome, message=message, hint=hint)

    def _write(self, **changed: Any) -> None:
        self.run = replace(self.run, **changed)
        try:
            write_json(self.run.cache_dir / FILE, _document(self.run))
        except (
            OSError
        ):  # a full disk has its own error elsewhere; an old record must not say that this run goes on
            if self.run.outcome is not None:
                with contextlib.suppress(OSError):
                    remove(self.run.cache_dir / FILE)


@contextlib.contextmanager
def recorded(request: Request, stages: Sequence[str]) -> Iterator[Recorder]:
    """Keep the record of a build in this process, from before its first event until it ended in whatever way.

    Raises `ConfigError` when another build runs in the same cache, or when nothing can be written there.
    """
    recorder = Recorder(_begin(request, stages))
    try:
        yield recorder
    except KeyboardInterrupt:
        recorder.end("interrupted", "Interrupted.", KEPT)
        raise
    except EdgekitError as error:
        faults = getattr(error, "faults", [])
        recorder.end("error", " ".join([error.message, *(f"{fault}." for fault in faults)]), error.hint)
        raise
    except BaseException as error:
        recorder.end("error", f"{type(error).__name__}: {error}.", KEPT)
        raise
    recorder.end("error", "It ended without a verdict.", KEPT)


def _begin(request: Request, stages: Sequence[str]) -> Run:
    cache_dir = request.cache_dir.absolute()
    try:
        with locked(cache_dir / LOCK):
            before = read(cache_dir)
            if before is not None and before.state == "RUNNING":
                raise ConfigError(
                    f"Another build runs in {request.cache_dir}: process {before.pid}, {before.model} for "
                    f"{before.target} since {clock(before.started)}. Nothing was started.",
                    "`edgekit tui run` shows it. To build beside it, give another --cache-dir.",
                )
            run = Run(
                cache_dir=cache_dir,
                pid=os.getpid(),
                process_start=_start(psutil.Process()),
                started=time.time(),
                model=request.source.name,
                target=request.target.name,
                data=request.data.name,
                out=request.out.absolute(),
                stages=tuple(stages),
                alive=True,
            )
            if before is not None and (before.model, before.data) == (run.model, run.data):
                run.seconds.update(before.seconds)
            remove(
                cache_dir / EVENTS
            )  # before the record: who sees the new one must not read the events of the old
            write_json(cache_dir / FILE, _document(run))
            return run
    except OSError as error:
        raise ConfigError(
            f"Nothing can be written in {request.cache_dir}: {error.strerror or error}. Nothing was started.",
            "Give another --cache-dir.",
        ) from error


def _document(run: Run) -> dict[str, Any]:
    values = {name: value for name, value in vars(run).items() if name != "alive"}
    return {"schema": SCHEMA, **values, "out": str(run.out), "cache_dir": str(run.cache_dir)}


def _parse(document: Any, cache_dir: Path) -> Run:
    """The record in a JSON document; raises `ValueError`, `TypeError` or `KeyError` for any other document."""
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    ended, outcome, expected = document["ended"], document["outcome"], document["seconds_expected"]
    if outcome is not None and outcome not in STATES:
        raise ValueError(outcome)
    return Run(
        cache_dir=cache_dir,
        pid=int(document["pid"]),
        process_start=_finite(document["process_start"]),
        started=_finite(document["started"]),
        model=str(document["model"]),
        target=str(document["target"]),
        data=str(document["data"]),
        out=Path(document["out"]),
        stages=tuple(map(str, document["stages"])),
        seconds={str(name): _finite(value) for name, value in dict(document["seconds"]).items()},
        seconds_expected=None if expected is None else _finite(expected),
        ended=None if ended is None else _finite(ended),
        outcome=outcome,
        message=str(document["message"]),
        hint=str(document["hint"]),
    )


def _finite(value: Any) -> float:
    if not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise ValueError(value)
    return float(value)


def _process(run: Run) -> psutil.Process | None:
    """The process of the run, if it is there still."""
    try:
        process = psutil.Process(run.pid) if run.pid > 0 else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process if abs(_start(process) - run.process_start) < SAME_START_S else None
    except (psutil.Error, OverflowError, ValueError):
        return None


def _start(process: psutil.Process) -> float:
    return round(float(process.create_time()) - float(psutil.boot_time()), 2)
