"""The record of a build in a cache, running or ended, for other processes to read.

    <cache>/run.json        the process, what it builds since when, its stages, and how it ended
    <cache>/events.jsonl    its events (`edgekit.base.events`)

A process is identified by its machine, the time that machine started, its id and its own start time, so that a reused id
is not mistaken for it. The previous build's record and events are moved aside, and are restored when the new build is
refused before it made anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from edgekit.base.artifacts import remove, write_json
from edgekit.base.clock import clock
from edgekit.base.errors import ConfigError, EdgekitError, StageError, reason
from edgekit.base.events import Event, StageFinished
from edgekit.base.locks import locked
from edgekit.base.numbers import moment
from edgekit.build.request import Request

SCHEMA = "edgekit.run/1"
FILE, EVENTS, LOCK = "run.json", "events.jsonl", ".run.lock"
ASIDE = {FILE: ".run.json.before", EVENTS: ".events.jsonl.before"}
BOOT = Path("/proc/sys/kernel/random/boot_id")
LONGEST = 1 << 20  # bytes of a record that is read
SAME_START_S = 1.5  # the system's own time of its start is rounded to seconds and may shift by one
KEPT = "Finished stages are kept; run the same command again to continue."

State = Literal["RUNNING", "PASSED", "FAILED", "STOPPED", "UNKNOWN"]
Outcome = Literal["pass", "fail", "error", "interrupted"]
STATES: dict[str, State] = {"pass": "PASSED", "fail": "FAILED", "error": "STOPPED", "interrupted": "STOPPED"}


@dataclass(frozen=True)
class Run:
    """A build, running or ended; times are Unix seconds.

    `process_start` is in seconds since the machine started, so that setting the clock does not change it; `boot`
    identifies that start where the system has an id for it. `seconds` is how long each stage takes, from earlier builds
    of the same model and data and from this one.
    """

    cache_dir: Path
    pid: int = 0
    process_start: float = 0.0
    host: str = ""
    boot: str = ""
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
    """Whether its process was running when this was read."""

    @property
    def state(self) -> State:
        """RUNNING, PASSED, FAILED by a gate, STOPPED before its end, or UNKNOWN for a build on another machine."""
        if self.outcome is not None:
            return STATES[self.outcome]
        if self.alive:
            return "RUNNING"
        return "UNKNOWN" if self.elsewhere else "STOPPED"

    @property
    def elsewhere(self) -> bool:
        """Whether it was started on another machine, whose processes are not visible here."""
        return self.host not in ("", platform.node())

    @property
    def ending(self) -> str:
        """How it ended and what to do next; empty while it runs."""
        match self.state:
            case "RUNNING":
                return ""
            case "PASSED":
                return "All gates passed."
            case "FAILED":
                return self.message
            case "UNKNOWN":
                return f"This build was started on {self.host}. Check or stop it there."
        if self.outcome is None and not self.message:
            return (
                f"Process {self.pid} ended unexpectedly; it was probably killed or ran out of memory. {KEPT}"
            )
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
        why = error.strerror if isinstance(error, OSError) else "it is damaged or has another version"
        return Run(
            cache_dir,
            message=f"The last build's record {FILE} cannot be read: {why}.",
            hint="The next build replaces it.",
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
    latest = read(run.cache_dir)  # it may have ended since `run` was read, while its process still exists
    if latest is None or (latest.pid, latest.started) != (run.pid, run.started) or latest.outcome is not None:
        raise StageError("This build has already ended; nothing was stopped.", "See how it ended.")
    if latest.elsewhere:
        raise StageError(f"This build was started on {latest.host}; nothing was stopped.", "Stop it there.")
    if _process(latest) is None:
        raise StageError(f"Process {run.pid} has already ended; nothing was stopped.", KEPT)
    try:
        os.kill(run.pid, signal.SIGINT)
    except OSError as error:
        raise StageError(
            f"Process {run.pid} could not be stopped: {error.strerror}.",
            "Only the user who started it, or root, can stop it.",
        ) from error


def rss_mib(run: Run) -> float | None:
    """Resident memory of the run's process and its children, MiB; None when it has ended or cannot be read."""
    from edgekit.base.memory import tree_rss_mib

    process = _process(run)
    try:
        return None if process is None else tree_rss_mib(process)
    except psutil.Error:
        return None


class Recorder:
    """Writes the record of this process's build; `emit` receives every event."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._begun = False

    def begin(self) -> None:
        """Note that stages are made from now on: the previous build's record is no longer needed."""
        self._begun = True
        for name in ASIDE.values():
            remove(self.run.cache_dir / name)

    def emit(self, event: Event) -> None:
        """Note how long a stage took."""
        if isinstance(event, StageFinished):
            self.run.seconds[event.stage] = round(event.seconds, 3)
            if not event.cached:
                self._write()

    def expect(self, seconds: float) -> None:
        """Note how long the whole build may take."""
        self._write(seconds_expected=seconds)

    def judge(self, report: dict[str, Any]) -> None:
        """End the run with the verdict of its report."""
        failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
        if report["verdict"] == "pass":
            self.end("pass")
        else:
            self.end(
                "fail",
                f"Build finished, but these gates failed: {', '.join(failed) or 'none was checked'}.",
            )

    def end(self, outcome: Outcome, message: str = "", hint: str = "") -> None:
        """Write how it ended, once; a build that made nothing restores the previous build's record instead."""
        if not self._begun and STATES[outcome] == "STOPPED" and _put_back(self.run.cache_dir):
            return
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
    """Keep the record of a build in this process, from before its first event until its end.

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
    recorder.end("error", "The build ended without a verdict.", KEPT)


def _begin(request: Request, stages: Sequence[str]) -> Run:
    cache_dir = request.cache_dir.absolute()
    try:
        with locked(cache_dir / LOCK):
            before = read(cache_dir)
            if before is not None and before.state == "RUNNING":
                raise ConfigError(
                    f"Another build is running in {request.cache_dir}: process {before.pid}, {before.model} for "
                    f"{before.target} since {clock(before.started)}. Nothing was started.",
                    "`edgekit tui run` shows it. To build at the same time, give another --cache-dir.",
                )
            if before is not None and before.state == "UNKNOWN":
                raise ConfigError(
                    f"A build of {before.model} for {before.target} was started in {request.cache_dir} at "
                    f"{clock(before.started)} on another machine, {before.host}. Nothing was started.",
                    f"To build at the same time, give another --cache-dir. If it has ended, remove {request.cache_dir / FILE}.",
                )
            run = replace(
                of_this_process(cache_dir),
                started=time.time(),
                model=request.source.name,
                target=request.target.name,
                data=request.data.name,
                out=request.out.absolute(),
                stages=tuple(stages),
            )
            if before is not None and (before.model, before.data) == (run.model, run.data):
                run.seconds.update(before.seconds)
            _put_aside(cache_dir)
            try:
                write_json(cache_dir / FILE, _document(run))
            except OSError:
                _put_back(cache_dir, locked_already=True)
                raise
            return run
    except OSError as error:
        raise ConfigError(
            f"Nothing can be written in {request.cache_dir}: {reason(error)}. Nothing was started.",
            "Give another --cache-dir.",
        ) from error


def of_this_process(cache_dir: Path) -> Run:
    """A run of this process that has no plan yet."""
    return Run(
        cache_dir,
        pid=os.getpid(),
        process_start=_start(psutil.Process()),
        host=platform.node(),
        boot=_boot(),
        alive=True,
    )


def _put_aside(cache_dir: Path) -> None:
    """Move the previous build's events and record aside, events first, so that no reader sees a new record with old events.

    Files that were moved aside before stay: they belong to the last build that made something.
    """
    if not (cache_dir / ASIDE[FILE]).exists():
        for name in (EVENTS, FILE):
            with contextlib.suppress(FileNotFoundError):
                os.replace(cache_dir / name, cache_dir / ASIDE[name])
    remove(cache_dir / EVENTS)


def _put_back(cache_dir: Path, *, locked_already: bool = False) -> bool:
    """Restore the previous build's record and events; returns whether there were any."""
    with (
        contextlib.suppress(OSError),
        contextlib.nullcontext() if locked_already else locked(cache_dir / LOCK),
    ):
        os.replace(cache_dir / ASIDE[FILE], cache_dir / FILE)
        with contextlib.suppress(FileNotFoundError):
            os.replace(cache_dir / ASIDE[EVENTS], cache_dir / EVENTS)
        return True
    return False


def _document(run: Run) -> dict[str, Any]:
    values = {name: value for name, value in vars(run).items() if name != "alive"}
    return {"schema": SCHEMA, **values, "out": str(run.out), "cache_dir": str(run.cache_dir)}


def _parse(document: Any, cache_dir: Path) -> Run:
    """The record in a JSON document; raises `ValueError`, `TypeError` or `KeyError` for any other document."""
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    ended, outcome, expected = document["ended"], document["outcome"], document["seconds_expected"]
    seconds = dict(document["seconds"])
    if outcome is not None and outcome not in STATES:
        raise ValueError(outcome)
    return Run(
        cache_dir=cache_dir,
        pid=int(document["pid"]),
        process_start=moment(document, "process_start"),
        host=str(document.get("host", "")),
        boot=str(document.get("boot", "")),
        started=moment(document, "started"),
        model=str(document["model"]),
        target=str(document["target"]),
        data=str(document["data"]),
        out=Path(document["out"]),
        stages=tuple(map(str, document["stages"])),
        seconds={str(name): moment(seconds, name) for name in seconds},
        seconds_expected=None if expected is None else moment(document, "seconds_expected"),
        ended=None if ended is None else moment(document, "ended"),
        outcome=outcome,
        message=str(document["message"]),
        hint=str(document["hint"]),
    )


def _process(run: Run) -> psutil.Process | None:
    """The process of the run, while it is running."""
    if run.elsewhere or run.boot not in ("", _boot()):
        return None
    try:
        process = psutil.Process(run.pid) if run.pid > 0 else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process if abs(_start(process) - run.process_start) < SAME_START_S else None
    except (psutil.Error, OverflowError, ValueError):
        return None


def _start(process: psutil.Process) -> float:
    return round(float(process.create_time()) - float(psutil.boot_time()), 2)


def _boot() -> str:
    """The name of this start of the machine; empty where the system gives none."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
